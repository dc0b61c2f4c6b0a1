"""What was parked, told: to the caller who waited for it, and in the log."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

from siltstone.errors import SiltstoneError
from siltstone.ports import SnapshotStore
from siltstone.values import Parked, ParkReason

_LOG = logging.getLogger(__name__)

_RECENT: Final = 100
"""Records of a partition over which the share of parked ones is taken."""
_MUCH: Final = _RECENT // 2
"""More of them than this are no accidents any more, but somebody's mistake or intent."""
_LITTLE: Final = _RECENT // 4
"""At so many it is over: well below, so that a share that stays about the half is told once."""


def parked_among(store: SnapshotStore, places: Iterable[tuple[int, int]]) -> list[Parked]:
    """Returns what was parked of the records at (partition, position)s."""
    by_partition: dict[int, list[int]] = {}
    for partition, position in places:
        by_partition.setdefault(partition, []).append(position)
    return [parked for partition, at in by_partition.items() for parked in store.parked_at(partition, at)]


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
            _LOG.error("much is parked", extra={**told, "reason": why.most_common(1)[0][0].value})
        elif why.total() <= _LITTLE and self._is_told:
            self._is_told = False
            _LOG.info("little is parked again", extra=told)


class ParkingLog:
    """Writes one warning for every interaction that a shard parks: whose, which and why, never what it says.

    And one error when it is more than half of what a partition brings: a journal whose producers write what nobody can
    read looks healthy otherwise, since its positions go on.
    """

    def __init__(self, store: SnapshotStore, positions: Mapping[int, int]) -> None:
        self._store, self._positions = store, dict(positions)
        self._num_parked = 0
        self._recent: dict[int, _Recent] = {}

    def look(self, positions: Mapping[int, int], num_parked: int) -> None:
        """Tells what was parked since the last look, by the shard's committed positions and count. Never raises."""
        before, self._positions = self._positions, dict(positions)
        num_new, self._num_parked = num_parked - self._num_parked, num_parked
        for partition in self._recent.keys() - positions.keys():
            del self._recent[partition]
        moved = {one: range(before.get(one, end), end) for one, end in positions.items() if before.get(one, end) < end}
        try:
            places = [(partition, at) for partition, those in moved.items() for at in those]
            parked = parked_among(self._store, places) if num_new else []
        except SiltstoneError as error:
            # They are parked all the same; what keeps us from naming them must not end the thread that parked them.
            _LOG.warning("interactions parked", extra={"num_parked": num_new, "error": type(error).__name__})
            return
        for one in parked:
            told = {"owner": str(one.owner), "interaction_id": one.interaction_id, "reason": one.reason.value}
            _LOG.warning("interaction parked", extra={**told, "partition": one.partition, "position": one.position})
        reasons = {(one.partition, one.position): one.reason for one in parked}
        for partition, those in moved.items():
            recent = self._recent.setdefault(partition, _Recent(partition))
            recent.add(reasons.get((partition, at)) for at in those[-_RECENT:])
