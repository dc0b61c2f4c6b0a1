"""The policy of the gate: which checks are made, and against what. No threshold is written in code."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final, TypeVar

from siltstone.errors import ConfigInvalid

E = TypeVar("E", bound=StrEnum)


class Kind(StrEnum):
    """What a check asks."""

    SUPERIOR = "superior"
    NON_INFERIOR_CHAMPION = "non_inferior_champion"
    NON_INFERIOR_ORIGIN = "non_inferior_origin"
    EQUIVALENT_CHAMPION = "equivalent_champion"
    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    NONE_ABOVE = "none_above"


class Statistic(StrEnum):
    """What is held against a limit: the mean with its bound, or what is found on the items themselves."""

    MEAN = "mean"
    P99 = "p99"
    WORST = "worst"


MEASURED: Final = (
    "benefit",
    "canary_exposure",
    "bits_per_byte",
    "agreement_champion",
    "kl_champion",
    "kl_origin",
    "load_failures",
    "speed",
)
"""What is measured besides one thing a suite, and may be judged. Not `similarity_champion`: see `gate/anchors.py`."""

_COMPARISONS: Final = (
    Kind.SUPERIOR,
    Kind.NON_INFERIOR_CHAMPION,
    Kind.NON_INFERIOR_ORIGIN,
    Kind.EQUIVALENT_CHAMPION,
)
_SHARED_KEYS: Final = frozenset({"name", "kind", "measurement", "confidence", "power", "min_items", "reason"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One check of a policy.

    `threshold` is the margin of a comparison with another core, else the limit, in the unit of the measurement.
    `confidence` is that of the one-sided bound; `power` is what the smallest effect is told for. `reason` says why the
    threshold is what it is. `statistic` matters where a limit is held against items.
    """

    name: str
    kind: Kind
    measurement: str
    threshold: float
    confidence: float
    power: float
    min_items: int
    reason: str
    statistic: Statistic = Statistic.MEAN


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a candidate has to pass."""

    name: str
    rules: tuple[Rule, ...]


def load_policy() -> Policy:
    """Returns the policy that comes with the package."""
    text = resources.files("siltstone.gate").joinpath("policy.toml").read_text(encoding="utf-8")
    return parse_policy(tomllib.loads(text))


def parse_policy(tree: Mapping[str, Any]) -> Policy:
    """Returns the policy of a parsed TOML file.

    Raises: ConfigInvalid for an unknown or missing key, a number that is none, a check named twice, no check at all.
    """
    _check_keys("policy", tree, frozenset({"name", "checks"}))
    entries = tree["checks"]
    if not isinstance(entries, list) or not entries:
        raise ConfigInvalid("policy.checks", "expected at least one check")
    rules = tuple(_parse_rule(f"policy.checks[{at}]", entry) for at, entry in enumerate(entries))
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigInvalid("policy.checks", f"two checks are named {twice[0]!r}")
    return Policy(_text("policy", tree, "name"), rules)


def require_whole(policy: Policy, suites: Iterable[str]) -> None:
    """Refuses a policy that leaves out a check of the shipped one, or has one of what nobody measures.

    A limit may be another than the shipped one; a check may not be missing. `suites` are those that are asked: each is
    a measurement of its name.
    Raises: ConfigInvalid.
    """
    shipped = load_policy()
    if policy.name == shipped.name:
        # A verdict names its policy, and is to be understood by that name later.
        raise ConfigInvalid("policy.name", f"{policy.name!r} is the shipped one's: expected a name of its own")
    known = {*MEASURED, *suites}
    for rule in policy.rules:
        if rule.measurement not in known:
            expected = f"expected one of {', '.join(sorted(known))}"
            raise ConfigInvalid(f"policy, check {rule.name!r}", f"nobody measures {rule.measurement!r}; {expected}")
    asked = {(rule.kind, rule.measurement, rule.statistic) for rule in policy.rules}
    for rule in shipped.rules:
        if (rule.kind, rule.measurement, rule.statistic) not in asked:
            told = f"{rule.kind.value} of {rule.measurement} ({rule.statistic.value})"
            raise ConfigInvalid("policy.checks", f"missing: the shipped policy's {rule.name!r}, {told}")


def _parse_rule(where: str, entry: object) -> Rule:
    if not isinstance(entry, Mapping):
        raise ConfigInvalid(where, "expected a table")
    kind = _choice(where, entry, "kind", Kind)
    if kind in _COMPARISONS:
        threshold_key, own_keys = "margin", frozenset({"margin"})
    elif kind is Kind.NONE_ABOVE:
        threshold_key, own_keys = "limit", frozenset({"limit"})
    else:
        threshold_key, own_keys = "limit", frozenset({"limit", "statistic"})
    _check_keys(where, entry, _SHARED_KEYS | own_keys)
    threshold = _number(where, entry, threshold_key)
    if threshold_key == "margin" and threshold < 0:
        raise ConfigInvalid(f"{where}.margin", f"expected 0 or more, found {threshold}")
    confidence, power = _number(where, entry, "confidence"), _number(where, entry, "power")
    for key, value in (("confidence", confidence), ("power", power)):
        if not 0.5 < value < 1:
            raise ConfigInvalid(f"{where}.{key}", f"expected more than 0.5 and less than 1, found {value}")
    min_items = entry["min_items"]
    if type(min_items) is not int or min_items < 1:
        raise ConfigInvalid(f"{where}.min_items", f"expected a whole number from 1, found {min_items!r}")
    return Rule(
        name=_text(where, entry, "name"),
        kind=kind,
        measurement=_text(where, entry, "measurement"),
        threshold=threshold,
        confidence=confidence,
        power=power,
        min_items=min_items,
        reason=_text(where, entry, "reason"),
        statistic=_choice(where, entry, "statistic", Statistic) if "statistic" in own_keys else Statistic.MEAN,
    )


def _check_keys(where: str, tree: Mapping[str, Any], wanted: frozenset[str]) -> None:
    if unknown := sorted(map(str, tree.keys() - wanted)):
        raise ConfigInvalid(where, f"unknown key {unknown[0]}; known are {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - tree.keys()):
        raise ConfigInvalid(where, f"missing: {', '.join(missing)}")


def _choice(where: str, tree: Mapping[str, Any], key: str, kind: type[E]) -> E:
    value = tree.get(key)
    if value not in [member.value for member in kind]:
        names = ", ".join(member.value for member in kind)
        raise ConfigInvalid(f"{where}.{key}", f"expected one of {names}, found {value!r}")
    return kind(value)


def _number(where: str, tree: Mapping[str, Any], key: str) -> float:
    value = tree[key]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ConfigInvalid(f"{where}.{key}", f"expected a finite number, found {value!r}")
    return float(value)


def _text(where: str, tree: Mapping[str, Any], key: str) -> str:
    value = tree[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigInvalid(f"{where}.{key}", f"expected a text, found {value!r}")
    return value.strip()
