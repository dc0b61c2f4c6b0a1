"""What a shard parks, told in its log: each interaction, and that it is much of what a partition brings."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Final

from siltstone.traceparent import trace_fields
from siltstone.values import Parked, ParkReason

_log = logging.getLogger(__name__)

_RECENT: Final = 100
"""Records of a partition over which the share of parked ones is taken."""
_MUCH: Final = _RECENT // 2
"""More of them than this are no accidents any more, but somebody's mistake or intent."""
_LITTLE: Final = _RECENT // 4
"""At so many it is over: well below, so that a share that stays about the half is told once."""


class ParkingLog:
    """Writes one warning for every interaction that a shard has parked: whose, which and why, never what it says.

    And one error when it is more than half of what a partition brings: a journal whose producers write what nobody can
    read looks healthy otherwise, since its positions go on.
    """

    def __init__(self) -> None:
        self._recent: dict[int, _Recent] = {}

    def note(self, partition: int, start: int, end: int, parked: Sequence[Parked]) -> None:
        """Tells what was parked of a partition's records from a position to another, which are committed now."""
        for one in parked:
            told = {"owner": str(one.owner), "interaction_id": one.interaction_id, "reason": one.reason.value}
            place = {"partition": one.partition, "position": one.position}
            _log.warning("interaction parked", extra={**told, **place, **trace_fields(one.trace)})
        reasons = {one.position: one.reason for one in parked}
        newest = range(max(start, end - _RECENT), end)
        self._recent.setdefault(partition, _Recent(partition)).add(map(reasons.get, newest))

    def leave(self, partition: int) -> None:
        """Keeps nothing of a partition that is not here any more."""
        self._recent.pop(partition, None)


class _Recent:
    """The newest records of a partition: why each was parked, or None for one that was taken in."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._reasons: deque[ParkReason | None] = deque(maxlen=_RECENT)
        self._is_told = False

    def add(self, reasons: Iterable[ParkReason | None]) -> None:
        """Adds newer records, and tells when more than half of the recent ones were parked, once until it is over."""
        self._reasons.extend(reasons)
        why = Counter(reason for reason in self._reasons if reason is not None)
        told = {"partition": self._partition, "share": why.total() / max(1, len(self._reasons))}
        if why.total() > _MUCH and not self._is_told:
            self._is_told = True
            _log.error("much is parked", extra={**told, "reason": why.most_common(1)[0][0].value})
        elif why.total() <= _LITTLE and self._is_told:
            self._is_told = False
            _log.info("little is parked again", extra=told)
