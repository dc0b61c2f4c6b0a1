"""The demo's figures: what was measured, what it should be, and whether it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Final

from siltstone.evaluation.figures import Origin, count_text, format_value
from siltstone.evaluation.forced_choice import Accuracy
from siltstone.evaluation.office_material import NUM_USERS
from siltstone.sleep_values import CoreVersion
from siltstone.values import Figure
from siltstone_services.demo_outcome import Bits, Column, NightOutcome, Outcome, choice_accuracy

MIN_CHOSEN_PERCENT: Final = 90.0
MIN_FREE_PERCENT: Final[Mapping[Column, float]] = {"weights": 50.0, "both": 90.0}
MAX_NEUTRAL_CHANGE_PERCENT: Final = 1.0
MAX_SLEEP_S: Final = 300.0
MIN_SHARED_PERCENT: Final = 90.0
MAX_LEAKED_PERCENT: Final = 2.5
"""How far above chance what one person alone has said may be found."""
MIN_KEPT_SHARE: Final = 0.95


def figures_of(outcome: Outcome, origin: Origin, elapsed_s: float, max_duration_s: float | None = None) -> list[Figure]:
    """Returns the figures of a course."""
    return [
        *_recall(outcome, origin),
        *_harm(outcome, origin),
        *_speed(outcome, origin),
        *(_night(outcome.night, origin) if outcome.night is not None else ()),
        origin.figure(
            "demo duration",
            elapsed_s,
            "s",
            target="" if max_duration_s is None else f"<= {max_duration_s:g} s",
            reached=None if max_duration_s is None else elapsed_s <= max_duration_s,
        ),
    ]


def _recall(outcome: Outcome, origin: Origin) -> list[Figure]:
    choices = outcome.choices
    before = choice_accuracy(choices.without_text, "plain_core")
    after = choice_accuracy(choices.without_text, "raised")
    figures = [
        _share(origin, "demo forced choice before", before, note=f"chance {format_value(100 / NUM_USERS)} %"),
        _share(origin, "demo forced choice after", after, MIN_CHOSEN_PERCENT),
        _share(
            origin,
            "demo forced choice after, not calibrated",
            choice_accuracy(choices.without_text, "plain_user"),
            note="the likeliest value, whatever the core makes of it",
        ),
    ]
    for column, given in (("text", choices.with_text), ("both", choices.with_both)):
        if given:
            figures.append(_share(origin, f"demo forced choice, {column}", choice_accuracy(given, "raised")))
    for name, answering in outcome.answering.items():
        figures.append(_share(origin, f"demo free answers, {name}", answering.accuracy, MIN_FREE_PERCENT.get(name)))
    return figures


def _harm(outcome: Outcome, origin: Origin) -> list[Figure]:
    isolation, forgetting = outcome.isolation, outcome.forgetting
    neutral, worst = _mean_change(outcome.neutral)
    own_words, least = _mean_change(outcome.own_words)
    return [
        origin.figure(
            "demo neutral text, bits per byte",
            neutral,
            "% more",
            target=f"<= {MAX_NEUTRAL_CHANGE_PERCENT:g} %",
            reached=neutral <= MAX_NEUTRAL_CHANGE_PERCENT,
            spread=f"worst user {worst}, n={len(outcome.neutral)} users",
        ),
        origin.figure(
            "demo own words never shown, bits per byte", own_words, "% more", spread=f"least helped user {least}"
        ),
        origin.figure(
            "demo other users changed",
            isolation.num_changed,
            f"of {isolation.num_compared}",
            target="0",
            reached=isolation.num_changed == 0,
            spread=count_text(isolation.num_changed, isolation.num_compared),
        ),
        origin.figure(
            "demo user who learned meanwhile changed",
            float(isolation.has_learner_changed),
            "of 1",
            target="1",
            reached=isolation.has_learner_changed,
            spread="the control of the comparison above",
        ),
        origin.figure(
            "demo forgotten user's difference from the core",
            forgetting.difference_after,
            "nats",
            target="0",
            reached=forgetting.difference_after == 0 and forgetting.is_empty,
            spread=f"largest of {forgetting.num_scores}; {format_value(forgetting.difference_before)} before",
        ),
    ]


def _speed(outcome: Outcome, origin: Origin) -> list[Figure]:
    teaching = outcome.teaching
    ordered = sorted(teaching.effect_s)
    answered_s = sum(answering.elapsed_s for answering in outcome.answering.values())
    num_answered = sum(answering.num_tokens for answering in outcome.answering.values())
    spread = f"{format_value(ordered[0])}..{format_value(ordered[-1])}, n={len(ordered)}"
    rates = [answering.num_tokens / answering.elapsed_s for answering in outcome.answering.values()]
    return [
        origin.figure(
            "demo absorbed",
            teaching.num_tokens / teaching.elapsed_s,
            "tokens/s",
            spread=f"{teaching.num_tokens:,} tokens of {teaching.num_interactions} interactions",
        ),
        origin.figure("demo interaction to effect, p50", quantile(ordered, 0.50), "s", spread=spread),
        origin.figure("demo interaction to effect, p95", quantile(ordered, 0.95), "s", spread=spread),
        origin.figure(
            "demo answered",
            num_answered / answered_s,
            "tokens/s",
            spread=f"{format_value(min(rates))}..{format_value(max(rates))}, by way of recall",
        ),
        origin.figure("demo largest memory of a user", outcome.memory_bytes / 2**20, "MiB"),
    ]


def _night(night: NightOutcome, origin: Origin) -> list[Figure]:
    is_accepted, is_bad_accepted = (
        one.verdict is not None and one.verdict.accepted for one in (night.version, night.bad)
    )
    figures = [
        origin.figure(
            "night duration",
            night.sleep_s,
            "s",
            target=f"<= {MAX_SLEEP_S:g} s",
            reached=night.sleep_s <= MAX_SLEEP_S,
            spread=f"{night.num_dreams} dreams, from the plan to the verdict",
        ),
        origin.figure(
            "night accepted by the gate",
            float(is_accepted),
            "of 1",
            target="1",
            reached=is_accepted,
            spread=failed_text(night.version),
        ),
        origin.figure(
            "bad night refused by the gate",
            float(not is_bad_accepted),
            "of 1",
            target="1",
            reached=not is_bad_accepted,
            spread=failed_text(night.bad),
        ),
    ]
    if night.shared is not None and night.private is not None and night.recalled_after is not None:
        most = 100 / NUM_USERS + MAX_LEAKED_PERCENT
        private = _share(origin, "newcomer's forced choice, private facts", night.private, note="of 12 values")
        kept = night.recalled_after.share / max(night.recalled_before.share, 1e-9)
        figures += [
            _share(origin, "newcomer's forced choice, shared facts", night.shared, MIN_SHARED_PERCENT),
            dataclasses.replace(
                private, target=f"<= {format_value(most)} %", reached=100 * night.private.share <= most
            ),
            origin.figure(
                "own facts kept by users carried over",
                100 * kept,
                "%",
                target=f">= {100 * MIN_KEPT_SHARE:g} %",
                reached=kept >= MIN_KEPT_SHARE,
                spread=f"{night.recalled_before.num_right} before, {night.recalled_after.num_right} after, "
                f"of {night.recalled_after.num_asked}; {night.num_carried_over} users carried over",
            ),
        ]
    if night.rollback_s is not None and night.difference_after_rollback is not None:
        figures += [
            origin.figure("rollback, until the server answers by the version before", night.rollback_s, "s"),
            origin.figure(
                "newcomer's difference after the rollback",
                night.difference_after_rollback,
                "nats",
                target="0",
                reached=night.difference_after_rollback == 0,
            ),
        ]
    return figures


def failed_text(version: CoreVersion) -> str:
    """Returns which checks a version did not pass, in words."""
    if version.verdict is None:
        return "not judged"
    failed = [result.check for result in version.verdict.results if not result.passed]
    count = f"{len(failed)} of {len(version.verdict.results)} checks failed"
    return f"{count}: {'; '.join(failed)}" if failed else f"all {len(version.verdict.results)} checks passed"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns the smallest of the ordered values that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percent_text(accuracy: Accuracy) -> str:
    """Returns a share as a table shows it."""
    return f"{format_value(100 * accuracy.share)} % ({accuracy.num_right} of {accuracy.num_asked})"


def _share(origin: Origin, name: str, accuracy: Accuracy, minimum: float | None = None, note: str = "") -> Figure:
    value = 100 * accuracy.share
    interval = f"{format_value(100 * accuracy.low)}..{format_value(100 * accuracy.high)} %"
    counted = f"{accuracy.num_right} of {accuracy.num_asked}, {interval} (95 %)"
    return origin.figure(
        name,
        value,
        "%",
        target="" if minimum is None else f">= {minimum:g} %",
        reached=None if minimum is None else value >= minimum,
        spread=f"{counted}; {note}" if note else counted,
    )


def _mean_change(bits: Mapping[str, Bits]) -> tuple[float, str]:
    """Returns the mean change in percent, and the user with the largest one, in words."""
    changes = {user: 100 * one.change for user, one in bits.items()}
    worst = max(changes, key=changes.__getitem__)
    return sum(changes.values()) / len(changes), f"{worst} {changes[worst]:+.2f} %"
