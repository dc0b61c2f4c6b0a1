"""What is kept about one user: told, handed out, and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from siltstone.errors import Corrupt, SnapshotMismatch
from siltstone.memory.shard import Shard
from siltstone.memory.user_memory import MemoryConfig
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Erasure, JournalRecord, MemoryCard, Snapshot, SnapshotDamage, UserExport, UserKey
from siltstone_services.succession import Ask

_EXPORT_RECORDS: Final = 1024


class UserDesk:
    """One node's users, one by one."""

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        store: SnapshotStore,
        config: MemoryConfig,
        home_of: Callable[[UserKey], int],
        before_forgetting: Callable[[UserKey], None],
        ask: Ask,
    ) -> None:
        """`before_forgetting` ends what is under way for a user: on the worker's thread."""
        self._shard, self._journal, self._store, self._config = shard, journal, store, config
        self._home_of, self._before_forgetting, self._ask = home_of, before_forgetting, ask

    async def card(self, owner: UserKey) -> MemoryCard:
        """Returns the card of the committed memory."""
        return await self._ask(lambda: self._card_of(owner))

    def _card_of(self, owner: UserKey) -> MemoryCard:
        card = self._shard.memory_of(owner).card(self._config)
        # What was never committed takes no room.
        return card if card.sequence else replace(card, size_bytes=0)

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user."""
        # Between two steps, with nothing on its way to the store, card and snapshot are of one state.
        card, snapshot, damage = await self._ask(lambda: self._memory_kept(owner))
        records = await asyncio.to_thread(self._records_of, owner)
        parked = await asyncio.to_thread(lambda: tuple(self._store.parked(owner)))
        return UserExport(card, snapshot, records, parked, damage)

    def _memory_kept(self, owner: UserKey) -> tuple[MemoryCard, Snapshot | None, SnapshotDamage | None]:
        card, snapshot, found = None, None, None
        self._shard.settle()
        try:
            card = self._card_of(owner)
        except SnapshotMismatch:
            # Whole, but only under its own core can be told what it holds.
            pass
        except Corrupt as error:
            found = error
        try:
            snapshot = self._store.load(owner)
        except Corrupt as error:
            found = error
        if card is None:
            card = MemoryCard(owner, self._shard.core, 0, 0, 0, 0, (), 0)
            if snapshot is not None:
                size = len(snapshot.blob)
                card = replace(card, core=snapshot.core, sequence=snapshot.sequence, size_bytes=size)
        return card, snapshot, SnapshotDamage(found.what, found.expected, found.found) if found else None

    def _records_of(self, owner: UserKey) -> tuple[JournalRecord, ...]:
        partition = self._home_of(owner)
        start = self._journal.start_positions()[partition]
        found: list[JournalRecord] = []
        while records := self._journal.read(partition, start, _EXPORT_RECORDS):
            found += [record for record in records if record.owner == owner and record.payload]
            start = records[-1].position + 1
        return tuple(found)

    async def forget(self, owner: UserKey) -> Erasure:
        """Erases between two steps; the user's part of a round under way is left out, and running answers end first."""

        def run() -> Erasure:
            self._before_forgetting(owner)
            had_memory, num = self._shard.forget(owner)
            return Erasure(owner, had_memory, num)

        return await self._ask(run)
