"""What is gone from a journal before it was absorbed, and what soon may be, is told before anybody serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from simulated_stores import MemoryJournal, MemoryStore

from siltstone.errors import Corrupt, Unavailable, records_not_kept
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Interaction, InteractionKind, JournalRecord, Message, Role, UserKey
from siltstone_services.cluster.journal_age import look_at_ages

NUM_PARTITIONS = 4
USERS = {partition_of(one, NUM_PARTITIONS): one for one in (UserKey("office", f"user-{n}") for n in range(40))}
HOUR_MS = 3_600_000
RETENTION_MS = 8 * HOUR_MS


class ShortMemory(MemoryJournal):
    """Keeps records for some hours only; each partition gets one an hour."""

    def __init__(self, num_hours: int, now_hour: int) -> None:
        super().__init__(NUM_PARTITIONS)
        self.now_ms = now_hour * HOUR_MS
        for owner in USERS.values():
            for hour in range(num_hours):
                text = Message(Role.USER, "Hello.")
                one = Interaction(f"i{hour}", owner, InteractionKind.DOCUMENT, hour * HOUR_MS, (text,))
                self.write(owner, one.id, encode(one))

    def start_positions(self) -> dict[int, int]:
        first = max(0, (self.now_ms - RETENTION_MS) // HOUR_MS)
        return {partition: min(first, len(records)) for partition, records in enumerate(self.records)}

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        if start < self.start_positions()[partition] or start > len(self.records[partition]):
            raise records_not_kept(partition, start)
        return super().read(partition, start, max_records)

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        return [partition for partition, at in positions.items() if at * HOUR_MS < now_ms - RETENTION_MS // 4]


class At:
    def __init__(self, journal: ShortMemory) -> None:
        self._journal = journal

    def now_ms(self) -> int:
        return self._journal.now_ms


def store_at(positions: Mapping[int, int]) -> MemoryStore:
    store = MemoryStore(NUM_PARTITIONS)
    for partition, position in positions.items():
        store.commit(Commit(store.acquire(partition, "shard"), 0, position, ()))
    return store


def look(journal: ShortMemory, store: Any, caplog: pytest.LogCaptureFixture) -> tuple[dict[int, Corrupt], list[Any]]:
    damaged = look_at_ages(journal, store, At(journal))
    return damaged, [vars(one) for one in caplog.records if one.levelname == "ERROR"]


def test_records_that_are_gone_are_told_as_what_the_first_read_would_say(caplog: pytest.LogCaptureFixture) -> None:
    journal, store = ShortMemory(12, now_hour=13), store_at({0: 12, 1: 5, 2: 4, 3: 12})
    damaged, lines = look(journal, store, caplog)
    assert list(damaged) == [2]
    with pytest.raises(Corrupt) as met:
        journal.read(2, 4, 1)
    assert str(damaged[2]) == str(met.value)
    told, waits = lines
    assert (told["message"], told["partition"], told["position"], told["first_kept"]) == ("partition damaged", 2, 4, 5)
    assert told["error"] == str(met.value)
    # It is beyond that: it is told as damage, and not as what waits.
    assert (waits["message"], waits["partitions"]) == ("records wait for long", [1])


def test_what_is_absorbed_or_young_is_told_of_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    # The oldest that is kept is at 5: who stands just there has lost nothing.
    journal, store = ShortMemory(12, now_hour=13), store_at({0: 12, 1: 12, 2: 11, 3: 12})
    assert look(journal, store, caplog) == ({}, [])
    empty, untouched = ShortMemory(0, now_hour=100), store_at({})
    assert look(empty, untouched, caplog) == ({}, [])


def test_a_partition_of_which_nothing_is_left_has_lost_what_was_not_absorbed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal, store = ShortMemory(3, now_hour=100), store_at({0: 3, 1: 3, 2: 2, 3: 3})
    damaged, (told,) = look(journal, store, caplog)
    assert (list(damaged), told["first_kept"]) == ([2], 3)


def test_a_topic_that_was_made_anew_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    journal, store = ShortMemory(2, now_hour=2), store_at({0: 2, 1: 2, 2: 2, 3: 9})
    damaged, _ = look(journal, store, caplog)
    assert list(damaged) == [3]


class DamagedStore(MemoryStore):
    def position(self, partition: int) -> int:
        if partition == 1:
            raise Corrupt("partition 1", "its digest", "another")
        return super().position(partition)


def test_a_partition_whose_own_record_is_damaged_keeps_nobody_else_from_being_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged, lines = look(ShortMemory(12, now_hour=13), DamagedStore(NUM_PARTITIONS), caplog)
    assert [one["partition"] for one in lines] == list(damaged) == [0, 1, 2, 3]
    assert "position" not in lines[1]


def test_a_journal_that_does_not_answer_is_told_as_that() -> None:
    journal = ShortMemory(1, now_hour=1)
    journal.is_down = True
    with pytest.raises(Unavailable):
        look_at_ages(journal, store_at({}), At(journal))
