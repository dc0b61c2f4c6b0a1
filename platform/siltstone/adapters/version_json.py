"""Lineages and verdicts as JSON and back: always the same bytes for the same value. Unknown keys are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from siltstone.errors import Corrupt
from siltstone.sleep_values import CheckResult, Contributor, Lineage, Verdict

_Value = TypeVar("_Value")


def canonical(value: object) -> bytes:
    """Returns a value as JSON, keys in order.

    Raises: ValueError for a number that JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def write_lineage(lineage: Lineage) -> bytes:
    """Returns a lineage as JSON."""
    return canonical(
        {
            "parent": lineage.parent,
            "sleep_id": lineage.sleep_id,
            "positions": {str(partition): position for partition, position in lineage.positions.items()},
            "contributors": {one.user_hash: one.num_interactions for one in lineage.contributors},
            "seeds": dict(lineage.seeds),
            "config": dict(lineage.config),
            "code_revision": lineage.code_revision,
            "num_people": lineage.num_people,
        }
    )


def read_lineage(raw: bytes) -> Lineage:
    """Returns the lineage that was written.

    Raises: Corrupt.
    """

    def build(content: dict[str, Any]) -> Lineage:
        positions = {int(partition): int(position) for partition, position in content.pop("positions").items()}
        users = tuple(Contributor(str(user), int(count)) for user, count in content.pop("contributors").items())
        return Lineage(positions=positions, contributors=users, **content)

    return _read(raw, "a lineage", build)


def write_verdict(verdict: Verdict) -> bytes:
    """Returns a verdict as JSON. A number that is none (what a check refused may be) is written as text."""
    return canonical(
        {
            "candidate": verdict.candidate,
            "policy": verdict.policy,
            "accepted": verdict.accepted,
            "results": [
                {
                    "check": one.check,
                    "passed": one.passed,
                    "reason": one.reason,
                    "value": _number(one.value),
                    "limit": _number(one.limit),
                    "smallest_effect": _number(one.smallest_effect),
                    "unit": one.unit,
                    "num_items": one.num_items,
                }
                for one in verdict.results
            ],
        }
    )


def read_verdict(raw: bytes) -> Verdict:
    """Returns the verdict that was written.

    Raises: Corrupt.
    """

    def build(content: dict[str, Any]) -> Verdict:
        results = content.pop("results")
        for result in results:
            for name in ("value", "limit", "smallest_effect"):
                result[name] = None if result[name] is None else float(result[name])
        return Verdict(results=tuple(CheckResult(**result) for result in results), **content)

    return _read(raw, "a verdict", build)


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _read(raw: bytes, what: str, build: Callable[[dict[str, Any]], _Value]) -> _Value:
    try:
        return build(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt("a version's record", what, f"{type(error).__name__}: {error}") from error
