"""Measures a candidate beside the champion and the frozen origin, item by item."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.gate.anchors import Passage, measure_anchors
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.gate.scoring import ALONE, Asked, Score, score_answers_of
from siltstone.model.core import Core
from siltstone.ports import Tokenizer
from siltstone.sleep_values import Measurement
from siltstone.values import Message, Role

NUM_COMPARED: Final = 1000
"""References that a secret is ranked among."""


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


@dataclass(frozen=True, slots=True)
class Reading:
    """What one core says to all that is asked. Of a core that stays, it can be kept for the next candidate.

    `items` holds, by measurement, a number a question; `secrets` the log-probability of each canary's secret, followed
    by those of its references.
    """

    items: Mapping[str, tuple[float, ...]]
    secrets: tuple[tuple[float, ...], ...]


def read_core(core: Core, tokenizer: Tokenizer, material: Material, crew: Crew = ALONE) -> Reading:
    """Asks one core everything but the anchors, on which cores are compared token by token."""
    return read_cores([core], tokenizer, material, crew)[0]


def read_cores(
    cores: Sequence[Core],
    tokenizer: Tokenizer,
    material: Material,
    crew: Crew = ALONE,
    kept: Sequence[Mapping[str, tuple[float, ...]]] = (),
) -> list[Reading]:
    """Asks some cores of one vocabulary everything but the anchors, together: where they are alike they are read once.

    What each has said before to a suite, by name, is handed in as `kept`.
    """
    items = [dict(one) for one in kept] or [{} for _ in cores]
    for suite in material.suites:
        news = [at for at, own in enumerate(items) if suite.name not in own]
        found = read_margins([cores[at] for at in news], tokenizer, suite, crew) if news else []
        for at, margins in zip(news, found, strict=True):
            items[at][suite.name] = margins
    benefits = read_benefit(cores, tokenizer, material.questions, crew)
    secrets = read_secrets(cores, tokenizer, material.canaries, crew)
    return [
        Reading(own | {"benefit": benefit}, secret)
        for own, benefit, secret in zip(items, benefits, secrets, strict=True)
    ]


def measure_candidate(
    cores: Cores,
    tokenizer: Tokenizer,
    material: Material,
    champion: Reading | None = None,
    origin: Reading | None = None,
    crew: Crew = ALONE,
    *,
    candidate: Reading | None = None,
) -> tuple[Measurement, ...]:
    """Returns everything that is measured on the cores themselves; speed and loading are measured in a clean process.

    A reading that is handed in must be of the same material; without one the core is asked.
    Raises: InvalidInput when the cores have different vocabularies, or a text does not fit them.
    """
    widths = {core.config.vocab_size for core in (cores.candidate, cores.champion, cores.origin)}
    if len(widths) != 1:
        raise InvalidInput("cores", "one vocabulary", f"vocabularies of {sorted(widths)} tokens")
    candidate = candidate or read_core(cores.candidate, tokenizer, material, crew)
    champion = champion or read_core(cores.champion, tokenizer, material, crew)
    if origin is None:
        origin = champion if cores.origin is cores.champion else read_core(cores.origin, tokenizer, material, crew)
    return (
        *compare_readings(candidate, champion, origin, material),
        *measure_anchors(cores.candidate, cores.champion, cores.origin, tokenizer, material.passages, crew),
    )


def compare_readings(
    candidate: Reading, champion: Reading, origin: Reading, material: Material
) -> tuple[Measurement, ...]:
    """Returns the measurements of what three cores say: the benefit, each suite, the exposure of the canaries."""

    def of(name: str, unit: str, clusters: tuple[str, ...]) -> Measurement:
        own, serving, first = (reading.items.get(name, ()) for reading in (candidate, champion, origin))
        return Measurement(name, unit, own, serving, first, clusters)

    return (
        of("benefit", "nats", tuple(one.user for one in material.questions)),
        *(of(one.name, "nats/token", tuple(probe.cluster for probe in one.probes)) for one in material.suites),
        Measurement(
            "canary_exposure",
            "bits",
            exposures(candidate.secrets, origin.secrets),
            clusters=tuple(one.holder for one in material.canaries),
            higher_is_better=False,
        ),
    )


def read_margins(
    cores: Sequence[Core], tokenizer: Tokenizer, suite: ProbeSuite, crew: Crew = ALONE
) -> list[tuple[float, ...]]:
    """Returns, under each core, how much likelier the right answer is than the wrong one, per probe, in nats a token.

        margin = mean over pairs (mean over tokens of log p(right | prompt) - mean over tokens of log p(wrong | prompt))

    The mean and not the sum: a long answer shall not weigh more than a short one.
    """
    offered = suite.answer_pairs()
    asked = [
        Asked(_ask(tokenizer, probe.prompt), tuple(tokenizer.encode(answer)))
        for probe, pairs in zip(suite.probes, offered, strict=True)
        for pair in pairs
        for answer in pair
    ]
    return [tuple(_margins(offered, scores)) for scores in score_answers_of(cores, asked, crew)]


def _margins(offered: Sequence[Sequence[object]], scores: Sequence[Score]) -> Iterator[float]:
    nats = iter(one.per_token for one in scores)
    for pairs in offered:
        yield math.fsum([next(nats) - next(nats) for _ in pairs]) / len(pairs)


def read_benefit(
    cores: Sequence[Core], tokenizer: Tokenizer, questions: Sequence[HeldOutQuestion], crew: Crew = ALONE
) -> list[tuple[float, ...]]:
    """Returns, under each core, the log-probability of the right value among those offered, per question, in nats.

    log p(value) - log sum over offered values v of p(v)
    """
    offered = [(_ask(tokenizer, one.question, one.stem), (one.value, *one.alternatives)) for one in questions]
    return [
        tuple(logs[0] - _log_sum(logs) for logs in groups) for groups in _score_groups(cores, tokenizer, offered, crew)
    ]


def read_secrets(
    cores: Sequence[Core], tokenizer: Tokenizer, canaries: Sequence[Canary], crew: Crew = ALONE
) -> list[tuple[tuple[float, ...], ...]]:
    """Returns, under each core, the log-probability of each canary's secret and of its references, in nats."""
    offered = [(_ask(tokenizer, one.prompt, one.stem), (one.secret, *one.references)) for one in canaries]
    return [tuple(map(tuple, groups)) for groups in _score_groups(cores, tokenizer, offered, crew)]


def exposures(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Returns how exposed each planted secret is, in bits; the first of each group is the secret.

    All secrets of a form are ranked by how much their log-probability rose from the origin (`before`) to the candidate
    (`after`), which takes out what makes one likelier for everybody. Ties share their ranks, so that what nobody
    learned lies in the middle. Of more than `NUM_COMPARED` references those are taken that the origin finds about as
    likely as the secret: what fits a sentence as well may rise with what was learned of it, and is no secret for that.
        exposure = log2(number of secrets) - log2(rank)
    Source: Carlini et al., "The Secret Sharer", arXiv:1802.08232, definition 5.
    Differs: ranked by the gain over the origin, as the calibrated attack of Carlini et al., arXiv:2112.03570, would.

    Raises: InvalidInput when the two are not of the same canaries.
    """
    if [len(logs) for logs in after] != [len(logs) for logs in before]:
        raise InvalidInput("secrets", "those of the candidate", "others")
    return tuple(_exposure(_gains(new, old)) for new, old in zip(after, before, strict=True))


def _gains(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """Returns how much a secret rose, and then each of the references it is compared with."""
    if not all(map(math.isfinite, (*after, *before))):
        return [math.nan]
    nearest = sorted(range(1, len(before)), key=lambda at: (abs(before[at] - before[0]), at))[:NUM_COMPARED]
    return [after[at] - before[at] for at in (0, *nearest)]


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
    cores: Sequence[Core],
    tokenizer: Tokenizer,
    offered: Sequence[tuple[tuple[int, ...], tuple[str, ...]]],
    crew: Crew,
) -> list[list[list[float]]]:
    """Returns, under each core, the log-probability of each value offered after each prompt."""
    asked = [Asked(prompt, tuple(tokenizer.encode(f" {value}"))) for prompt, values in offered for value in values]
    found = []
    for own in score_answers_of(cores, asked, crew):
        scores = iter(own)
        found.append([[next(scores).log_probability for _ in values] for _, values in offered])
    return found


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
