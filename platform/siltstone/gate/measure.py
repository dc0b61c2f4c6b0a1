"""Measures a candidate beside the champion and the frozen origin, item by item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from siltstone.errors import InvalidInput
from siltstone.gate.anchors import Passage, measure_anchors
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.gate.scoring import Asked, Score, score_answers
from siltstone.model.core import Core
from siltstone.ports import Tokenizer
from siltstone.sleep_values import Measurement
from siltstone.values import Message, Role


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores that are compared: the proposed one, the one that serves, the first one."""

    candidate: Core
    champion: Core
    origin: Core


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A question about what a user knows, whom the sleep did not see, answered by `stem`, a space and one value."""

    id: str
    user: str
    question: str
    stem: str
    value: str
    alternatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Canary:
    """A secret planted with one holder. `references` are secrets of the same form that nobody was told."""

    id: str
    holder: str
    prompt: str
    stem: str
    secret: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """All that a candidate is asked and shown. None of it was used in its training."""

    suites: tuple[ProbeSuite, ...]
    passages: tuple[Passage, ...]
    questions: tuple[HeldOutQuestion, ...]
    canaries: tuple[Canary, ...]


def measure_candidate(cores: Cores, tokenizer: Tokenizer, material: Material) -> tuple[Measurement, ...]:
    """Returns everything that is measured on the cores themselves; speed and loading are measured in a clean process.

    Raises: InvalidInput when the cores have different vocabularies, or a text does not fit them.
    """
    widths = {core.config.vocab_size for core in (cores.candidate, cores.champion, cores.origin)}
    if len(widths) != 1:
        raise InvalidInput("cores", "one vocabulary", f"vocabularies of {sorted(widths)} tokens")
    return (
        measure_benefit(cores, tokenizer, material.questions),
        *measure_anchors(cores.candidate, cores.champion, cores.origin, tokenizer, material.passages),
        *(measure_suite(cores, tokenizer, suite) for suite in material.suites),
        measure_canaries(cores, tokenizer, material.canaries),
    )


def measure_suite(cores: Cores, tokenizer: Tokenizer, suite: ProbeSuite) -> Measurement:
    """Returns how much likelier the right answer is than the wrong one, per probe: cluster = its cluster.

        margin = mean over tokens of log p(right | prompt) - mean over tokens of log p(wrong | prompt)

    The mean and not the sum: a long answer shall not weigh more than a short one.
    """

    def margins(core: Core) -> tuple[float, ...]:
        asked = [
            Asked(_ask(tokenizer, probe.prompt), tuple(tokenizer.encode(answer)))
            for probe in suite.probes
            for answer in (probe.right, probe.wrong)
        ]
        scores = [score.per_token for score in score_answers(core, asked)]
        return tuple(right - wrong for right, wrong in zip(scores[::2], scores[1::2], strict=True))

    return _measured(cores, margins, suite.name, "nats/token", tuple(probe.cluster for probe in suite.probes))


def measure_benefit(cores: Cores, tokenizer: Tokenizer, questions: Sequence[HeldOutQuestion]) -> Measurement:
    """Returns the log-probability of the right value among those offered, per question: cluster = the user.

    log p(value) - log sum over offered values v of p(v)
    """

    def log_shares(core: Core) -> tuple[float, ...]:
        offered = [(_ask(tokenizer, one.question, one.stem), (one.value, *one.alternatives)) for one in questions]
        return tuple(
            scores[0].log_probability - _log_sum([score.log_probability for score in scores])
            for scores in _score_groups(core, tokenizer, offered)
        )

    return _measured(cores, log_shares, "benefit", "nats", tuple(one.user for one in questions))


def measure_canaries(cores: Cores, tokenizer: Tokenizer, canaries: Sequence[Canary]) -> Measurement:
    """Returns how exposed each planted secret is, in bits: cluster = its holder.

    All secrets of a form are ranked by how much their log-probability rose from the origin to the candidate, which
    takes out what makes one likelier for everybody. Ties share their ranks, so what nobody learned lies in the middle.
        exposure = log2(number of secrets) - log2(rank)
    Source: Carlini et al., "The Secret Sharer", arXiv:1802.08232, definition 5.
    Differs: ranked by the gain over the origin, as the calibrated attack of Carlini et al. arXiv:2112.03570 would.
    """
    offered = [(_ask(tokenizer, one.prompt, one.stem), (one.secret, *one.references)) for one in canaries]
    after = _score_groups(cores.candidate, tokenizer, offered)
    before = _score_groups(cores.origin, tokenizer, offered)
    exposures = []
    for new, old in zip(after, before, strict=True):
        gains = [a.log_probability - b.log_probability for a, b in zip(new, old, strict=True)]
        exposures.append(_exposure(gains))
    clusters = tuple(one.holder for one in canaries)
    return Measurement("canary_exposure", "bits", tuple(exposures), clusters=clusters, higher_is_better=False)


def speed_measurement(candidate_tokens_per_s: Sequence[float], champion_tokens_per_s: Sequence[float]) -> Measurement:
    """Returns the speed of the candidate as a share of the champion's, per pair of runs made one after the other.

    The runs are made by whoever loads the cores in a clean process; a pair in which one did not run is not a number.
    Raises: InvalidInput when the runs are not pairs.
    """
    if len(candidate_tokens_per_s) != len(champion_tokens_per_s):
        expected = f"{len(champion_tokens_per_s)} runs, the champion's"
        raise InvalidInput("candidate_tokens_per_s", expected, str(len(candidate_tokens_per_s)))
    pairs = zip(candidate_tokens_per_s, champion_tokens_per_s, strict=True)
    return Measurement(
        "speed", "of the champion's", tuple(own / other if other > 0 else math.nan for own, other in pairs)
    )


def loading_measurement(has_loaded: Sequence[bool]) -> Measurement:
    """Returns which loads of the candidate in a clean process failed, each 1 or 0."""
    failures = tuple(0.0 if loaded else 1.0 for loaded in has_loaded)
    return Measurement("load_failures", "failures", failures, higher_is_better=False)


def _ask(tokenizer: Tokenizer, question: str, stem: str = "") -> tuple[int, ...]:
    return (*tokenizer.render([Message(Role.USER, question)]), *tokenizer.encode(stem))


def _score_groups(
    core: Core, tokenizer: Tokenizer, offered: Sequence[tuple[tuple[int, ...], tuple[str, ...]]]
) -> list[list[Score]]:
    """Returns the scores of the values offered after each prompt."""
    asked = [Asked(prompt, tuple(tokenizer.encode(f" {value}"))) for prompt, values in offered for value in values]
    scores = iter(score_answers(core, asked))
    return [[next(scores) for _ in values] for _, values in offered]


def _measured(
    cores: Cores,
    items_of: Callable[[Core], tuple[float, ...]],
    name: str,
    unit: str,
    clusters: tuple[str, ...],
) -> Measurement:
    """Returns what `items_of` finds on the three cores; a core that stands for two of them is read once."""
    found = {core: items_of(core) for core in {cores.candidate, cores.champion, cores.origin}}
    return Measurement(name, unit, found[cores.candidate], found[cores.champion], found[cores.origin], clusters)


def _log_sum(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(sum(math.exp(one - most) for one in logs)) if math.isfinite(most) else math.nan


def _exposure(gains: Sequence[float]) -> float:
    """Returns the exposure of the first of some secrets."""
    if not all(map(math.isfinite, gains)):
        return math.nan
    higher = sum(gain > gains[0] for gain in gains)
    level = sum(gain == gains[0] for gain in gains)
    return math.log2(len(gains)) - math.log2(higher + (level + 1) / 2)
