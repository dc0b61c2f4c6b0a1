"""A journal that others write to: what is sent twice is there twice, and what is no interaction is there too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import Interaction, JournalRecord, Parked, Receipt, UserKey


class LooseLog:
    """`ports.Journal` in memory, for one process, that looks for no repeats: as a topic with other producers."""

    look_every_s = 0.0

    def __init__(self, num_partitions: int) -> None:
        self._records: dict[int, list[JournalRecord]] = {partition: [] for partition in range(num_partitions)}
        self.num_parked = 0

    def put(self, owner: UserKey, name: str, payload: bytes) -> Receipt:
        """Writes any payload under any owner and name."""
        partition = partition_of(owner, len(self._records))
        records = self._records[partition]
        records.append(JournalRecord(partition, len(records), owner, name, payload))
        return Receipt(name, partition, len(records) - 1, duplicate=False)

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        return [self.put(one.owner, one.id, encode(one)) for one in interactions]

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        return self._records[partition][start : start + max_records]

    def follow(self, positions: Mapping[int, int]) -> None:
        pass

    def leave(self, partitions: Sequence[int]) -> None:
        pass

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        waiting = {partition: len(self._records[partition]) - at for partition, at in positions.items()}
        return {partition: count for partition, count in waiting.items() if count > 0}

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        return []

    def park(self, parked: Sequence[Parked]) -> None:
        self.num_parked += len(parked)

    def start_positions(self) -> dict[int, int]:
        return dict.fromkeys(self._records, 0)

    def end_positions(self) -> dict[int, int]:
        return {partition: len(records) for partition, records in self._records.items()}

    def erase(self, owner: UserKey) -> int:
        raise NotImplementedError
