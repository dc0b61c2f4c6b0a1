"""Bad candidates of each kind are refused for what is bad about them, and candidates with nothing wrong are not."""

from __future__ import annotations

import pytest
from planted import KINDS, REASONS, evidence

from siltstone.gate.policy import load_policy
from siltstone.gate.statistics import binomial_upper_bound
from siltstone.gate.verdict import explain, judge

FEW, MANY = range(2), range(2, 20)
NUM_GOOD = 100


def check_that_it_is_refused(kind: str, seed: int) -> None:
    verdict = judge(evidence(kind, seed), load_policy())
    named = {result.reason.split(":")[0] for result in verdict.results if not result.passed}
    assert not verdict.accepted
    assert named >= REASONS[kind], "\n".join(explain(verdict))


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_candidate_is_refused_and_the_reason_named(kind: str, seed: int) -> None:
    check_that_it_is_refused(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_candidates_of_many_seeds_are_refused(kind: str, seed: int) -> None:
    check_that_it_is_refused(kind, seed)


def refusals(seeds: range) -> list[str]:
    verdicts = [judge(evidence("good", seed), load_policy()) for seed in seeds]
    return ["\n".join(explain(verdict)[:3]) for verdict in verdicts if not verdict.accepted]


def test_candidates_with_nothing_wrong_are_accepted() -> None:
    refused = refusals(range(10))
    # With one in twenty refused falsely, two of ten or more would be so in one run of twelve.
    assert len(refused) <= 1, "\n".join(refused)


@pytest.mark.slow
def test_false_refusals_are_at_most_five_in_a_hundred() -> None:
    refused = refusals(range(NUM_GOOD))
    bound = binomial_upper_bound(len(refused), NUM_GOOD, 0.95)
    assert len(refused) <= 0.05 * NUM_GOOD, f"{len(refused)} of {NUM_GOOD}, at most {bound:.1%}:\n" + "\n".join(refused)
