"""One function a check: a rule of the policy held against the evidence. What cannot be checked has not passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from siltstone.errors import InvalidInput
from siltstone.gate.policy import Kind, Rule, Statistic
from siltstone.gate.statistics import (
    Estimate,
    binomial_lower_bound,
    binomial_upper_bound,
    estimate_difference,
    estimate_mean,
)
from siltstone.sleep_values import CheckResult, Evidence, Measurement

Check = Callable[[Rule, Measurement], CheckResult]


def run_check(rule: Rule, evidence: Evidence) -> CheckResult:
    """Makes one check. It refuses, naming the measurement, when that is missing, empty, not finite or does not fit.

    Why a measurement came out as it did is said in the evidence's notes, under its name; a failure repeats it.
    """
    result = _run(rule, evidence)
    note = evidence.notes.get(rule.measurement)
    return result if result.passed or not note else replace(result, reason=f"{result.reason} ({note})")


def _run(rule: Rule, evidence: Evidence) -> CheckResult:
    found = [one for one in evidence.measurements if one.name == rule.measurement]
    if len(found) != 1:
        return _refuse(rule, None, "was not made" if not found else f"was made {len(found)} times")
    (measurement,) = found
    if trouble := _trouble(rule, measurement):
        return _refuse(rule, measurement, trouble)
    try:
        return CHECKS[rule.kind](rule, measurement)
    except InvalidInput as error:
        return _refuse(rule, measurement, f"allows no check: {error}")


def check_superior(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when the candidate is better than the champion by more than the margin, with the rule's confidence."""
    gain = _gain(measurement, measurement.champion)
    lower = gain.lower_bound(rule.confidence)
    return _compared(rule, measurement, gain, lower, rule.threshold, lower > rule.threshold, "the champion")


def check_non_inferior_champion(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when the candidate is not worse than the champion by the margin or more, with the rule's confidence."""
    return _non_inferior(rule, measurement, measurement.champion, "the champion")


def check_non_inferior_origin(rule: Rule, measurement: Measurement) -> CheckResult:
    """The same against the frozen first version: many small losses in a row are seen only from there."""
    return _non_inferior(rule, measurement, measurement.origin, "the origin")


def check_equivalent_champion(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when the candidate is neither worse nor better than the champion by the margin or more.

    Source: two one-sided tests, Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    gain = _gain(measurement, measurement.champion)
    lower, upper = gain.lower_bound(rule.confidence), gain.upper_bound(rule.confidence)
    is_low_side = lower + upper < 0
    bound, limit = (lower, -rule.threshold) if is_low_side else (upper, rule.threshold)
    passed = -rule.threshold < lower and upper < rule.threshold
    return _compared(rule, measurement, gain, bound, limit, passed, "the champion")


def check_at_most(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when the quantity does not exceed the limit."""
    return _limited(rule, measurement, is_upper=True)


def check_at_least(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when the quantity does not fall below the limit."""
    return _limited(rule, measurement, is_upper=False)


def check_none_above(rule: Rule, measurement: Measurement) -> CheckResult:
    """Passes when not one item lies above the limit; says what share of unseen ones could still, the 3/n bound."""
    above, n = sum(value > rule.threshold for value in measurement.candidate), len(measurement.candidate)
    bound = binomial_upper_bound(above, n, rule.confidence)
    words = (
        f"{above} of {n} are above {rule.threshold:g} {measurement.unit}, and none may be; "
        f"of others like these at most {bound:.2%} are ({rule.confidence:.0%} sure)"
    )
    # So rare an event is seen at least once among n with this power.
    smallest = 1 - (1 - rule.power) ** (1 / n)
    return CheckResult(
        rule.name, above == 0, f"{rule.measurement}: {words}", float(above), 0.0, smallest, f"of {n} items", n
    )


CHECKS: Final[Mapping[Kind, Check]] = MappingProxyType(
    {
        Kind.SUPERIOR: check_superior,
        Kind.NON_INFERIOR_CHAMPION: check_non_inferior_champion,
        Kind.NON_INFERIOR_ORIGIN: check_non_inferior_origin,
        Kind.EQUIVALENT_CHAMPION: check_equivalent_champion,
        Kind.AT_MOST: check_at_most,
        Kind.AT_LEAST: check_at_least,
        Kind.NONE_ABOVE: check_none_above,
    }
)


def _trouble(rule: Rule, measurement: Measurement) -> str:
    """Says what makes a measurement unfit for a rule; nothing when it is fit."""
    parts = {
        "candidate": measurement.candidate,
        "champion": measurement.champion,
        "origin": measurement.origin,
    }
    if not measurement.candidate:
        return "is empty"
    for name, part in parts.items():
        if num_bad := sum(not math.isfinite(value) for value in part):
            return f"is not finite: {num_bad} of {len(part)} items of the {name}"
    if not measurement.is_whole:
        return "does not match: its parts hold different numbers of items"
    needed = "origin" if rule.kind is Kind.NON_INFERIOR_ORIGIN else "champion"
    is_comparison = rule.kind not in (Kind.AT_MOST, Kind.AT_LEAST, Kind.NONE_ABOVE)
    if is_comparison and not parts[needed]:
        return f"does not match: it says nothing of the {needed}"
    if len(measurement.candidate) < rule.min_items:
        return f"has {len(measurement.candidate)} items, fewer than the {rule.min_items} asked for"
    return ""


def _refuse(rule: Rule, measurement: Measurement | None, trouble: str) -> CheckResult:
    unit, num_items = (measurement.unit, len(measurement.candidate)) if measurement else ("", 0)
    reason = f"{rule.measurement}: the measurement {trouble}"
    return CheckResult(rule.name, False, reason, None, rule.threshold, None, unit, num_items)


def _gain(measurement: Measurement, reference: tuple[float, ...]) -> Estimate:
    """Returns how much better the candidate is than the reference, item by item: positive is better."""
    better, worse = measurement.candidate, reference
    if not measurement.higher_is_better:
        better, worse = worse, better
    return estimate_difference(better, worse, measurement.clusters)


def _non_inferior(rule: Rule, measurement: Measurement, reference: tuple[float, ...], name: str) -> CheckResult:
    gain = _gain(measurement, reference)
    lower = gain.lower_bound(rule.confidence)
    return _compared(rule, measurement, gain, lower, -rule.threshold, lower > -rule.threshold, name)


def _compared(
    rule: Rule, measurement: Measurement, gain: Estimate, bound: float, limit: float, passed: bool, name: str
) -> CheckResult:
    side = "at least" if bound <= gain.mean else "at most"
    word = "better" if gain.mean >= 0 else "worse"
    needed = "must lie above" if bound <= gain.mean else "must lie below"
    words = (
        f"{rule.measurement}: {abs(gain.mean):.4g} {measurement.unit} {word} than {name}; "
        f"the gain is {side} {bound:.4g} ({rule.confidence:.0%} sure), which {needed} {limit:.4g}"
    )
    smallest = gain.smallest_effect(rule.confidence, rule.power)
    return CheckResult(rule.name, passed, words, bound, limit, smallest, measurement.unit, gain.num_items)


def _limited(rule: Rule, measurement: Measurement, is_upper: bool) -> CheckResult:
    values, n = measurement.candidate, len(measurement.candidate)
    limit_words = f"{'at most' if is_upper else 'at least'} {rule.threshold:.4g} {measurement.unit} is allowed"
    if rule.statistic is Statistic.MEAN:
        estimate = estimate_mean(values, measurement.clusters)
        found = estimate.upper_bound(rule.confidence) if is_upper else estimate.lower_bound(rule.confidence)
        found = _not_surer_than_counted(rule, values, found, is_upper)
        smallest = estimate.smallest_effect(rule.confidence, rule.power)
        told = f"{estimate.mean:.4g} on average, {found:.4g} with the bound ({rule.confidence:.0%} sure)"
    else:
        # The items are all there are, not a sample of others: what is found on them is exact.
        ordered = sorted(values, reverse=not is_upper)
        found = ordered[-1 if rule.statistic is Statistic.WORST else math.ceil(0.99 * n) - 1]
        smallest = abs(rule.threshold)
        told = f"{found:.4g}, the {'worst' if rule.statistic is Statistic.WORST else '99th in a hundred'} of {n}"
    passed = found <= rule.threshold if is_upper else found >= rule.threshold
    words = f"{rule.measurement}: {told}; {limit_words}"
    return CheckResult(rule.name, passed, words, found, rule.threshold, smallest, measurement.unit, n)


def _not_surer_than_counted(rule: Rule, values: tuple[float, ...], bound: float, is_upper: bool) -> float:
    """Returns the bound, or the exact binomial one where that is wider and the items are yes or no.

    Where all items say the same the standard error is zero, though n of n proves no more than 1 - 3/n.
    """
    if not set(values) <= {0.0, 1.0}:
        return bound
    num_yes = round(sum(values))
    if is_upper:
        return max(bound, binomial_upper_bound(num_yes, len(values), rule.confidence))
    return min(bound, binomial_lower_bound(num_yes, len(values), rule.confidence))
