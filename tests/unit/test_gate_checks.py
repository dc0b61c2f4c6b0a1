from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from siltstone.gate.checks import CHECKS, run_check
from siltstone.gate.policy import Kind, Policy, Rule, Statistic, load_policy
from siltstone.gate.verdict import explain, judge
from siltstone.sleep_values import CheckResult, Evidence, Measurement

NUM_ITEMS = 40
WAVE = tuple(math.sin(7.0 * i) for i in range(NUM_ITEMS))
CLUSTERS = tuple(f"c{i % 10}" for i in range(NUM_ITEMS))


def rule(kind: Kind, threshold: float, **changes: Any) -> Rule:
    return dataclasses.replace(Rule("check", kind, "skill", threshold, 0.95, 0.8, 20, "because"), **changes)


def skill(gain: float = 0.0, spread: float = 0.1, higher_is_better: bool = True) -> Measurement:
    """Returns a measurement in which the candidate is better than both others by about `gain`."""
    sign = 1 if higher_is_better else -1
    ease = tuple(10 * one for one in WAVE)
    own = tuple(base + sign * (gain + spread * WAVE[(i * 3) % NUM_ITEMS]) for i, base in enumerate(ease))
    return Measurement("skill", "nats", own, ease, ease, CLUSTERS, higher_is_better)


def run(checked: Rule, *measurements: Measurement) -> CheckResult:
    return run_check(checked, Evidence("new", "old", "first", measurements))


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("kind", "margin", "gain", "passes"),
    [
        (Kind.SUPERIOR, 0.0, 0.2, True),
        (Kind.SUPERIOR, 0.0, 0.0, False),
        (Kind.SUPERIOR, 0.15, 0.12, False),
        (Kind.NON_INFERIOR_CHAMPION, 0.1, -0.02, True),
        (Kind.NON_INFERIOR_CHAMPION, 0.1, -0.2, False),
        (Kind.NON_INFERIOR_CHAMPION, 0.0, 0.0, False),
        (Kind.NON_INFERIOR_ORIGIN, 0.1, 0.0, True),
        (Kind.NON_INFERIOR_ORIGIN, 0.1, -0.2, False),
        (Kind.EQUIVALENT_CHAMPION, 0.1, 0.0, True),
        (Kind.EQUIVALENT_CHAMPION, 0.1, -0.2, False),
        (Kind.EQUIVALENT_CHAMPION, 0.1, 0.2, False),
    ],
)
def test_a_comparison_passes_only_when_its_bound_does(
    kind: Kind, margin: float, gain: float, passes: bool, higher_is_better: bool
) -> None:
    result = run(rule(kind, margin), skill(gain, higher_is_better=higher_is_better))
    assert result.passed is passes, result.reason
    assert result.reason.startswith("skill: ")
    assert result.smallest_effect is not None
    assert 0 < result.smallest_effect < 0.1
    assert (result.num_items, result.unit) == (NUM_ITEMS, "nats")
    assert result.value is not None
    assert result.limit is not None


def test_a_loss_that_is_only_not_proven_does_not_pass() -> None:
    noisy = skill(0.0, spread=5.0)
    result = run(rule(Kind.NON_INFERIOR_CHAMPION, 0.1), noisy)
    assert not result.passed
    assert result.smallest_effect is not None
    assert result.smallest_effect > 0.1


def test_champion_and_origin_are_told_apart() -> None:
    drifted = dataclasses.replace(skill(0.0), origin=tuple(one + 1 for one in skill(0.0).champion))
    assert run(rule(Kind.NON_INFERIOR_CHAMPION, 0.1), drifted).passed
    assert not run(rule(Kind.NON_INFERIOR_ORIGIN, 0.1), drifted).passed


@pytest.mark.parametrize(
    ("kind", "statistic", "limit", "passes"),
    [
        (Kind.AT_MOST, Statistic.MEAN, 1.0, True),
        (Kind.AT_MOST, Statistic.MEAN, 0.2, False),
        (Kind.AT_MOST, Statistic.P99, 2.0, True),
        (Kind.AT_MOST, Statistic.P99, 0.5, False),
        (Kind.AT_MOST, Statistic.WORST, 9.0, True),
        (Kind.AT_MOST, Statistic.WORST, 8.0, False),
        (Kind.AT_LEAST, Statistic.MEAN, 0.0, True),
        (Kind.AT_LEAST, Statistic.MEAN, 0.5, False),
        (Kind.AT_LEAST, Statistic.WORST, 0.0, True),
        (Kind.AT_LEAST, Statistic.WORST, 0.1, False),
        (Kind.AT_LEAST, Statistic.P99, 0.005, True),
        (Kind.AT_LEAST, Statistic.P99, 0.5, False),
    ],
)
def test_a_limit_is_held_against_mean_tail_and_worst(
    kind: Kind, statistic: Statistic, limit: float, passes: bool
) -> None:
    values = (*(i / 400 for i in range(400)), 8.5)
    result = run(rule(kind, limit, statistic=statistic), Measurement("skill", "nats", values))
    assert result.passed is passes, result.reason


def test_all_of_few_prove_less_than_all_of_many() -> None:
    agreed = rule(Kind.AT_LEAST, 0.95)
    few, many = (Measurement("skill", "of the tokens", (1.0,) * num, clusters=()) for num in (40, 400))
    assert not run(agreed, few).passed
    assert run(agreed, many).passed
    never = rule(Kind.AT_MOST, 0.05)
    assert not run(never, Measurement("skill", "of the tokens", (0.0,) * 40)).passed


def test_none_means_not_one_and_the_bound_is_printed() -> None:
    checked = rule(Kind.NONE_ABOVE, 9.5)
    clean = run(checked, Measurement("skill", "bits", (1.0,) * 99 + (9.5,)))
    assert clean.passed
    assert "2.95%" in clean.reason
    assert clean.smallest_effect == pytest.approx(1 - 0.2**0.01)
    leaky = run(checked, Measurement("skill", "bits", (1.0,) * 99 + (9.6,)))
    assert not leaky.passed
    assert "1 of 100" in leaky.reason
    assert (leaky.value, leaky.limit) == (1.0, 0.0)


def unfit() -> dict[str, Measurement]:
    whole = skill(1.0)
    nan, inf = (math.nan, *WAVE[1:]), (math.inf, *WAVE[1:])
    changes: dict[str, dict[str, Any]] = {
        "is empty": {"candidate": ()},
        "items of the candidate": {"candidate": nan},
        "1 of 40 items of the candidate": {"candidate": inf},
        "items of the champion": {"champion": nan},
        "items of the origin": {"origin": nan},
        "different numbers of items": {"champion": WAVE[1:]},
        "says nothing of the": {"champion": (), "origin": ()},
        "fewer than the 20": dict.fromkeys(("candidate", "champion", "origin"), WAVE[:10]) | {"clusters": ()},
        "does not match": {"clusters": CLUSTERS[1:]},
        "allows no check": {"clusters": ("one",) * NUM_ITEMS},
    }
    return {words: dataclasses.replace(whole, **change) for words, change in changes.items()}


@pytest.mark.parametrize("kind", [Kind.SUPERIOR, Kind.NON_INFERIOR_ORIGIN, Kind.EQUIVALENT_CHAMPION])
@pytest.mark.parametrize("trouble", unfit())
def test_a_measurement_that_does_not_fit_refuses_and_is_named(kind: Kind, trouble: str) -> None:
    result = run(rule(kind, 5.0), unfit()[trouble])
    assert not result.passed
    assert result.reason.startswith("skill: ")
    assert trouble in result.reason
    assert result.value is None
    assert result.smallest_effect is None


@pytest.mark.parametrize("kind", Kind)
def test_a_measurement_missing_or_made_twice_refuses(kind: Kind) -> None:
    other = dataclasses.replace(skill(1.0), name="other")
    assert "skill: the measurement was not made" in run(rule(kind, 5.0), other).reason
    twice = run(rule(kind, 5.0), skill(1.0), skill(1.0))
    assert not twice.passed
    assert "made 2 times" in twice.reason


def test_every_kind_has_its_check() -> None:
    assert set(CHECKS) == set(Kind)


def passing(policy: Policy) -> list[Measurement]:
    """Returns evidence that passes every check of the shipped policy."""
    made = {}
    for one in policy.rules:
        num = max(one.min_items, 100)
        base = tuple(0.5 * WAVE[i % NUM_ITEMS] for i in range(num))
        clusters = tuple(f"c{i % 20}" for i in range(num))
        if one.kind is Kind.SUPERIOR:
            made[one.measurement] = Measurement(
                one.measurement, "nats", tuple(x + 1 for x in base), base, base, clusters
            )
        elif one.kind in (Kind.AT_MOST, Kind.NONE_ABOVE):
            made[one.measurement] = Measurement(one.measurement, "nats", (0.0,) * num)
        elif one.kind is Kind.AT_LEAST:
            made[one.measurement] = Measurement(one.measurement, "share", (1.0,) * num)
        else:
            made[one.measurement] = Measurement(one.measurement, "nats", base, base, base, clusters)
    return list(made.values())


def test_evidence_without_fault_is_accepted() -> None:
    policy = load_policy()
    verdict = judge(Evidence("new", "old", "first", tuple(passing(policy))), policy)
    assert verdict.accepted, explain(verdict)
    assert "accepted: all" in explain(verdict)[0]
    assert len(explain(verdict)) == 1 + len(policy.rules)


@pytest.mark.parametrize("name", sorted({rule.measurement for rule in load_policy().rules}))
@pytest.mark.parametrize("fate", ["missing", "empty", "NaN"])
def test_each_measurement_missing_empty_or_nan_refuses_the_candidate(name: str, fate: str) -> None:
    policy = load_policy()
    measurements = {one.name: one for one in passing(policy)}
    gone = measurements.pop(name)
    if fate != "missing":
        values = () if fate == "empty" else (math.nan, *gone.candidate[1:])
        measurements[name] = dataclasses.replace(gone, candidate=values)
    verdict = judge(Evidence("new", "old", "first", tuple(measurements.values())), policy)
    assert not verdict.accepted
    failed = [result for result in verdict.results if not result.passed]
    assert failed
    assert all(result.reason.startswith(f"{name}: ") for result in failed)
    lines = explain(verdict, policy)
    assert "FAIL" in lines[1]
    assert "why the limit" in lines[2]


def test_no_evidence_at_all_and_no_checks_are_no_pass() -> None:
    assert not any(result.passed for result in judge(Evidence("new", "old", "first", ()), load_policy()).results)
    assert not judge(Evidence("new", "old", "first", ()), Policy("empty", ())).accepted


def test_a_slow_drift_is_stopped_by_the_origin() -> None:
    """Fifty nights, each just inside the champion's margin: the origin stops them after a few (reliability, row 23)."""
    policy = Policy("drift", tuple(one for one in load_policy().rules if one.measurement == "bits_per_byte"))
    margins = {one.kind: one.threshold for one in policy.rules}
    step = 0.9 * margins[Kind.NON_INFERIOR_CHAMPION]
    origin = tuple(1 + 0.1 * one for one in WAVE)
    champion, nights = origin, 0
    for _ in range(50):
        candidate = tuple(one + step for one in champion)
        measured = Measurement("bits_per_byte", "bits/byte", candidate, champion, origin, CLUSTERS, False)
        if not judge(Evidence("new", "old", "first", (measured,)), policy).accepted:
            break
        champion, nights = candidate, nights + 1
    assert nights == 3
    assert sum(champion) - sum(origin) <= margins[Kind.NON_INFERIOR_ORIGIN] * NUM_ITEMS


def test_a_failure_repeats_what_the_evidence_notes_of_its_measurement() -> None:
    notes = {"skill": "1 of 4 people took no part"}
    for gain, passes in ((0.2, True), (-0.2, False)):
        evidence = Evidence("new", "old", "first", (skill(gain),), notes)
        result = run_check(rule(Kind.SUPERIOR, 0.0), evidence)
        assert result.passed is passes
        assert ("1 of 4 people" in result.reason) is not passes
