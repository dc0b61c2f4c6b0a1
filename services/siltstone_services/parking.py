"""What was parked, told to the caller who waited for it."""

from __future__ import annotations

from collections.abc import Iterable

from siltstone.ports import SnapshotStore
from siltstone.values import Parked


def parked_among(store: SnapshotStore, places: Iterable[tuple[int, int]]) -> list[Parked]:
    """Returns what was parked of the records at (partition, position)s."""
    by_partition: dict[int, list[int]] = {}
    for partition, position in places:
        by_partition.setdefault(partition, []).append(position)
    return [parked for partition, at in by_partition.items() for parked in store.parked_at(partition, at)]
