"""The embedded shard host: one process, one node, all partitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from functools import partial

from siltstone.crew import Crew
from siltstone.errors import Overloaded, PositionConflict, StaleLease, WrongState
from siltstone.memory.shard import lag_of
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    GenerateRequest,
    Interaction,
    PartitionView,
    Receipt,
    ShardView,
    UserKey,
)
from siltstone_services.answers import exchange_of
from siltstone_services.lanes import Lane
from siltstone_services.node import ShardNode


class EmbeddedHost(ShardNode):
    """`ports.ShardHost` in this process: a node that owns all partitions, and writes its journal itself."""

    def _open(self, leading: Lane, crew: Crew) -> None:
        super()._open(leading, crew)
        self._ends: dict[int, int] = {}
        self._num_appending = 0

    async def _begin(self) -> None:
        leases, damages = await asyncio.to_thread(self._acquire, range(self._num_partitions))
        if damages:
            raise damages[0]
        await self._ask(partial(self._take, leases))
        self._ends = await asyncio.to_thread(self._journal.end_positions)

    def _on_lost(self, lost: dict[int, StaleLease | PositionConflict]) -> None:
        # There is nobody to give it to. A store that has gone back is followed; another owner ends this one.
        for error in lost.values():
            if isinstance(error, StaleLease):
                raise error
        self._shard.take([self._store.acquire(partition, self.incarnation) for partition in lost])

    def _num_waiting(self) -> int:
        return lag_of(self._ends, self._shard.positions)

    def _check_lag(self, num_more: int) -> None:
        """Raises Overloaded when the worker lags too far behind the journal. A damaged partition's lag is no lag."""
        config = self._config.shard
        positions = {partition: at for partition, at in self._positions.items() if partition not in self._damaged}
        lag = lag_of(self._ends, positions) + self._num_appending
        # What is more than the limit by itself is taken when nothing else waits.
        if lag > 0 and lag + num_more > config.max_lag_interactions:
            raise Overloaded("the absorb lag", config.max_lag_interactions, config.retry_after_s)

    def _check_partition(self, owner: UserKey) -> None:
        damage = self._damaged.get(self._home_of(owner))
        if damage is not None:
            raise copy(damage.error)

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """Writes the interactions to the journal, unless the worker lags too far behind it."""
        self._check_alive()
        for interaction in interactions:
            self._check_partition(interaction.owner)
        self._check_lag(len(interactions))
        return await self._append(interactions)

    async def _append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        def append() -> list[Receipt]:
            receipts = self._journal.append(interactions)
            # Here, so that a caller who goes away meanwhile leaves nothing unnoticed.
            self._worker.notice_records()
            return receipts

        self._num_appending += len(interactions)
        try:
            receipts = await asyncio.to_thread(append)
        finally:
            self._num_appending -= len(interactions)
        for receipt in receipts:
            self._ends[receipt.partition] = max(self._ends.get(receipt.partition, 0), receipt.position + 1)
        return receipts

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """Answers under the user's committed memory of this moment, and records the exchange where that is wished."""
        if request.interaction_id and request.consent.learn:
            # Refused before there is an answer, rather than after.
            self._check_partition(request.owner)
            self._check_lag(1)
        text: list[str] = []
        async with aclosing(self.answer(request)) as items:
            async for item in items:
                if isinstance(item, AnswerPart):
                    text.append(item.text)
                    yield item
                elif isinstance(item, AnswerEnd):
                    yield replace(item, recorded=await self._record_exchange(request, "".join(text)))

    async def shards(self) -> tuple[ShardView, ...]:
        """Returns the one shard that there is."""
        beat = await self.beat()
        ends = await asyncio.to_thread(self._journal.end_positions)
        partitions = tuple(
            PartitionView(one, beat.claim.epochs[one], at, ends[one] - at, one in beat.damaged)
            for one, at in sorted(beat.positions.items())
        )
        held = (beat.num_resident, beat.resident_bytes)
        return (ShardView("embedded", "ready", partitions, *held, num_parked=beat.num_parked),)

    async def resize(self, num_shards: int) -> None:
        """See `ports.ShardHost.resize`: there is nothing to be resized."""
        raise WrongState("the server", "one process, not a cluster (cluster.is_on)", "be resized")

    async def _record_exchange(self, request: GenerateRequest, text: str) -> Receipt | None:
        """Records an answered question; also over the lag's limit, by no more than the answers that run at once."""
        exchange = exchange_of(request, text, self._clock.now_ms())
        if exchange is None:
            return None
        self._check_alive()
        return (await self._append([exchange]))[0]
