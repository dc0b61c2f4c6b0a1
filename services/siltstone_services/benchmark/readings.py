"""What a benchmark case gives: readings, or the reason why nothing was timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from siltstone.evaluation.figures import Origin, format_value, spread_text
from siltstone.values import Figure

Say = Callable[[str], None]
"""Tells the person at the screen what is being done."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a reading has to reach."""

    is_ceiling: bool
    value: float
    unit: str

    def is_reached(self, value: float) -> bool:
        """Says whether a value is on the right side."""
        return value <= self.value if self.is_ceiling else value >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.is_ceiling else '>='} {format_value(self.value)} {self.unit}".rstrip()


def at_most(value: float, unit: str) -> Target:
    """Returns the target of a reading that has to be low."""
    return Target(True, value, unit)


def at_least(value: float, unit: str) -> Target:
    """Returns the target of a reading that has to be high."""
    return Target(False, value, unit)


@dataclass(frozen=True, slots=True)
class Reading:
    """Repeated measurements of one thing. Its value is their median, or their least."""

    name: str
    values: tuple[float, ...]
    unit: str
    target: Target | None = None
    taken: Literal["median", "least"] = "median"
    note: str = ""
    """What is told of a count, or of something done once, in place of a spread."""

    @property
    def value(self) -> float:
        """The one number."""
        return min(self.values) if self.taken == "least" else statistics.median(self.values)

    def figure(self, origin: Origin) -> Figure:
        """Returns the reading as a figure of a run."""
        value, target = self.value, self.target
        return origin.figure(
            self.name,
            value,
            self.unit,
            target=str(target) if target else "",
            reached=target.is_reached(value) if target else None,
            spread=self.note or f"{self.taken} of {spread_text(self.values)}",
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: its readings; or why it refused to time, or could not run here."""

    case: str
    readings: tuple[Reading, ...] = ()
    refusal: str = ""
    absence: str = ""

    def without_targets(self) -> Outcome:
        """Returns the same of something of which nothing is asked: that it ran is all there is to see."""
        return replace(self, readings=tuple(replace(one, target=None) for one in self.readings))


def ratio_readings(
    name: str, above_s: Sequence[float], below_s: Sequence[float], target: Target | None = None
) -> list[Reading]:
    """Returns the ratio of two interleaved series as three readings: median of the pairs, least, and of the minima.

    The target belongs to the median.
    """
    ratios = tuple(above / below for above, below in zip(above_s, below_s, strict=True))
    return [
        Reading(name, ratios, "x", target),
        Reading(f"{name}, least", ratios, "x", taken="least"),
        Reading(f"{name}, fastest / fastest", (min(above_s) / min(below_s),), "x"),
    ]
