"""What was parked, told: to the caller who waited for it, and in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from siltstone.errors import SiltstoneError
from siltstone.ports import SnapshotStore
from siltstone.values import Parked

_LOG = logging.getLogger(__name__)


def parked_among(store: SnapshotStore, places: Iterable[tuple[int, int]]) -> list[Parked]:
    """Returns what was parked of the records at (partition, position)s."""
    by_partition: dict[int, list[int]] = {}
    for partition, position in places:
        by_partition.setdefault(partition, []).append(position)
    return [parked for partition, at in by_partition.items() for parked in store.parked_at(partition, at)]


class ParkingLog:
    """Writes one warning for every interaction that a shard parks: whose, which and why, never what it says."""

    def __init__(self, store: SnapshotStore, positions: Mapping[int, int]) -> None:
        self._store, self._positions = store, dict(positions)
        self._num_parked = 0

    def look(self, positions: Mapping[int, int], num_parked: int) -> None:
        """Tells what was parked since the last look, by the shard's committed positions and count. Never raises."""
        before, self._positions = self._positions, dict(positions)
        num_new, self._num_parked = num_parked - self._num_parked, num_parked
        if not num_new:
            return
        places = [
            (partition, at) for partition, end in positions.items() for at in range(before.get(partition, end), end)
        ]
        try:
            parked = parked_among(self._store, places)
        except SiltstoneError as error:
            # They are parked all the same; what keeps us from naming them must not end the thread that parked them.
            _LOG.warning("interactions parked", extra={"num_parked": num_new, "error": type(error).__name__})
            return
        for one in parked:
            told = {"owner": str(one.owner), "interaction_id": one.interaction_id, "reason": one.reason.value}
            _LOG.warning("interaction parked", extra={**told, "partition": one.partition, "position": one.position})
