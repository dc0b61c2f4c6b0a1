"""The shard host of a cluster: finds the owner of every user, and follows it when it moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from typing import Final, TypeVar

from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, InvalidInput, NotOwner, Overloaded, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.memory.shard import partitions_past
from siltstone.placement.coordinator import Seat
from siltstone.ports import Clock
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    GenerateRequest,
    Interaction,
    MemoryCard,
    Message,
    Parked,
    PartitionView,
    Receipt,
    ShardStatus,
    ShardView,
    UserExport,
    UserKey,
)
from siltstone_services.answers import Pinned, exchange_of
from siltstone_services.beat import leading_core
from siltstone_services.cluster.backends import Backends
from siltstone_services.cluster.batches import Batches
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.links import ScoreQuestion, Scores, ShardGone, ShardLink
from siltstone_services.cluster.resizing import Resizing
from siltstone_services.parking import parked_among
from siltstone_services.training import forget_job

T = TypeVar("T")

_LOOKS_FOR_S: Final = 0.05


class ClusterHost:
    """`ports.ShardHost` over shards elsewhere. Writes the journal itself; a commit tells all who wait for it at once.

    A request meets a partition on its way, or a shard that dies: it is asked again of the next owner, until its caller
    gives up or `cluster.follow_budget_s` is over. All that is asked so changes nothing, or the same if it is repeated.
    """

    def __init__(
        self, conductor: Conductor, resizing: Resizing, backends: Backends, clock: Clock, config: SiltstoneConfig
    ) -> None:
        self._conductor, self._resizing, self._clock, self._config = conductor, resizing, clock, config
        self._journal, self._store, self._sealer = backends.journal, backends.store, backends.sealer
        self._num_partitions = config.kafka.num_partitions
        self._budget_s = config.cluster.follow_budget_s
        self._num_appending = 0
        self._appends = Batches(self._append_all, config.cluster.max_batch_calls)
        self._scores: dict[str, Batches[ScoreQuestion, Scores]] = {}
        self._cards: dict[str, Batches[UserKey, MemoryCard]] = {}

    def _home_of(self, owner: UserKey) -> int:
        return partition_of(owner, self._num_partitions)

    # Recording.

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """See `ports.ShardHost.record`: one append for all who call meanwhile. It needs no owner."""
        homes = {self._home_of(interaction.owner) for interaction in interactions}
        for home in homes:
            if (damage := self._conductor.damaged.get(home)) is not None:
                raise copy(damage.error)
        self._check_lag(homes, len(interactions))
        return await self._append(interactions)

    def _check_lag(self, homes: set[int], num_more: int) -> None:
        """Raises Overloaded when an owner of these partitions lags too far behind the journal."""
        coordinator, limits = self._conductor.coordinator, self._config.shard
        owners = {home: coordinator.owner_of(home) for home in homes}
        shares: set[tuple[int, ...]] = {(home,) for home, owner in owners.items() if owner is None}
        shares |= {coordinator.partitions_of(owner.shard) for owner in owners.values() if owner is not None}
        for share in shares:
            lag = self._conductor.lag_of(share) + self._num_appending
            # What is more than the limit by itself is taken when nothing else waits.
            if lag > 0 and lag + num_more > limits.max_lag_interactions:
                raise Overloaded("the absorb lag", limits.max_lag_interactions, limits.retry_after_s)

    async def _append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        self._num_appending += len(interactions)
        try:
            receipts = await self._appends.ask(tuple(interactions))
        finally:
            self._num_appending -= len(interactions)
        ends = self._conductor.ends
        for receipt in receipts:
            ends[receipt.partition] = max(ends.get(receipt.partition, 0), receipt.position + 1)
        return receipts

    async def _append_all(self, calls: Sequence[tuple[Interaction, ...]]) -> list[list[Receipt] | BaseException]:
        try:
            told = await asyncio.to_thread(self._journal.append, [one for call in calls for one in call])
        except (InvalidInput, Corrupt) as error:
            # One call's fault, or one user's key, is not the others': nothing was written, and now each goes by itself.
            if len(calls) == 1:
                return [error]
            outcomes = [await self._append_all([call]) for call in calls]
            return [outcome[0] for outcome in outcomes]
        receipts = iter(told)
        return [[next(receipts) for _ in call] for call in calls]

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        """See `ports.ShardHost.wait_absorbed`: by what the shards tell of their commits, without asking them."""
        wanted = [(receipt.partition, receipt.position) for receipt in receipts]
        positions, before = self._conductor.positions, dict(self._conductor.troubles)
        while not partitions_past(positions, wanted):
            waiting = [place for place in wanted if positions.get(place[0], 0) <= place[1]]
            for partition, position in waiting:
                damage = self._conductor.damaged.get(partition)
                if damage is not None and position >= damage.position:
                    raise copy(damage.error)
                owner = await self._conductor.owner_of(partition, self._budget_s)
                trouble = self._conductor.troubles.get(owner.shard)
                if trouble is not None and trouble is not before.get(owner.shard):
                    raise copy(trouble)
            await self._conductor.news()
        return await asyncio.to_thread(parked_among, self._store, wanted)

    # Asking the owner.

    async def _follow(self, partition: int, ask: Callable[[Seat, ShardLink], Awaitable[T]]) -> T:
        """Asks the owner of a partition, and the next one when it has moved, within the budget."""
        give_up_at_s, not_this, error = time.monotonic() + self._budget_s, None, None
        while True:
            left_s = give_up_at_s - time.monotonic()
            if left_s <= 0:
                raise Unavailable(f"the shard of partition {partition}", str(error or "none owns it now"))
            seat = await self._conductor.owner_of(partition, left_s, not_this)
            try:
                return await ask(seat, self._conductor.link(seat.shard))
            except (NotOwner, ShardGone) as moved:
                not_this, error = seat, moved
                await asyncio.sleep(_LOOKS_FOR_S)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """See `ports.ShardHost.generate`.

        An answer that its shard did not live to end is given anew by the next owner. What was told already is not
        told again; where the next owner would tell something else, or from another state, the answer fails.
        """
        partition, asks_to_record = self._home_of(request.owner), bool(request.interaction_id and request.consent.learn)
        if asks_to_record:
            # Refused before there is an answer, rather than after.
            if (damage := self._conductor.damaged.get(partition)) is not None:
                raise copy(damage.error)
            self._check_lag({partition}, 1)
        asked = replace(request, interaction_id="", consent=replace(request.consent, learn=False))
        told, pinned, not_this = "", None, None
        give_up_at_s = time.monotonic() + self._budget_s
        while True:
            seat = await self._conductor.owner_of(partition, max(0.0, give_up_at_s - time.monotonic()), not_this)
            text = ""
            try:
                async with aclosing(self._conductor.link(seat.shard).answer(asked)) as items:
                    async for item in items:
                        if isinstance(item, Pinned):
                            if told and item != pinned:
                                raise _torn()
                            pinned = item
                        elif isinstance(item, AnswerPart):
                            text += item.text
                            if not (text.startswith(told) or told.startswith(text)):
                                raise _torn()
                            if len(text) > len(told):
                                more, told = text[len(told) :], text
                                yield AnswerPart(more)
                        else:
                            recorded = await self._record_exchange(request, told) if asks_to_record else None
                            yield replace(item, recorded=recorded)
                            return
                raise ShardGone(f"the shard {seat.shard}", "its answer has no end")
            except (NotOwner, ShardGone) as error:
                if time.monotonic() >= give_up_at_s:
                    raise Unavailable(f"the shard of partition {partition}", str(error)) from error
                not_this = seat
                await asyncio.sleep(_LOOKS_FOR_S)

    async def _record_exchange(self, request: GenerateRequest, text: str) -> Receipt | None:
        exchange = exchange_of(request, text, self._clock.now_ms())
        return None if exchange is None else (await self._append([exchange]))[0]

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """See `ports.ShardHost.score`: one hop for all who ask the same shard meanwhile."""
        question = ScoreQuestion(owner, tuple(prompt), tuple(answers))

        def ask(seat: Seat, link: ShardLink) -> Awaitable[Scores]:
            if seat.shard not in self._scores:
                # The link anew for every hop: behind the name there may be another process.
                send = lambda questions: self._conductor.link(seat.shard).scores(questions)  # noqa: E731
                self._scores[seat.shard] = Batches(send, self._config.cluster.max_batch_calls)
            return self._scores[seat.shard].ask(question)

        return await self._follow(self._home_of(owner), ask)

    async def memory(self, owner: UserKey) -> MemoryCard:
        """See `ports.ShardHost.memory`: one hop for all who ask the same shard meanwhile."""

        def ask(seat: Seat, link: ShardLink) -> Awaitable[MemoryCard]:
            if seat.shard not in self._cards:
                send = lambda owners: self._conductor.link(seat.shard).cards(owners)  # noqa: E731
                self._cards[seat.shard] = Batches(send, self._config.cluster.max_batch_calls)
            return self._cards[seat.shard].ask(owner)

        return await self._follow(self._home_of(owner), ask)

    async def export(self, owner: UserKey) -> UserExport:
        """See `ports.ShardHost.export`."""
        return await self._follow(self._home_of(owner), lambda _, link: link.export(owner))

    async def forget(self, owner: UserKey) -> Erasure:
        """See `ports.ShardHost.forget`. What this process would still seal with the destroyed key is not sealed so."""
        await asyncio.to_thread(forget_job, self._config)
        erasure = await self._follow(self._home_of(owner), lambda _, link: link.forget(owner))
        await asyncio.to_thread(self._sealer.forget, owner)
        return erasure

    # Looking.

    async def status(self) -> ShardStatus:
        """See `ports.ShardHost.status`: of all shards together."""
        num_users = await asyncio.to_thread(self._store.count_users)
        beats = await self._conductor.fresh_beats()
        lag = self._conductor.lag_of(tuple(range(self._num_partitions)))
        return ShardStatus(
            core=leading_core(beats),
            num_users_stored=num_users,
            num_users_resident=sum(beat.num_resident for beat in beats),
            resident_bytes=sum(beat.resident_bytes for beat in beats),
            lag_interactions=lag,
            num_answers_running=sum(beat.num_answers_running for beat in beats),
            num_absorbed=sum(beat.num_absorbed for beat in beats),
            num_parked=sum(beat.num_parked for beat in beats),
            absorbed_tokens=sum(beat.absorbed_tokens for beat in beats),
            answered_tokens=sum(beat.answered_tokens for beat in beats),
            busy_s=sum(beat.busy_s for beat in beats),
            num_versions=max((beat.num_versions for beat in beats), default=0),
            num_rebased=sum(beat.num_rebased for beat in beats),
            num_pinned=sum(beat.num_pinned for beat in beats),
        )

    async def shards(self) -> tuple[ShardView, ...]:
        """See `ports.ShardHost.shards`."""
        conductor = self._conductor
        return tuple(self._view(name, str(state)) for name, state in sorted(conductor.coordinator.shards.items()))

    async def resize(self, num_shards: int) -> None:
        """See `ports.ShardHost.resize`."""
        await self._resizing.to(num_shards)

    def _view(self, name: str, state: str) -> ShardView:
        conductor, beat = self._conductor, self._conductor.beats.get(name)
        rates = conductor.rates.get(name)
        partitions = tuple(
            PartitionView(
                one,
                conductor.coordinator.epoch_of(one),
                conductor.positions.get(one, 0),
                conductor.lag_of((one,)),
                one in conductor.damaged,
            )
            for one in conductor.coordinator.partitions_of(name)
        )
        return ShardView(
            name,
            state,
            partitions,
            beat.num_resident if beat else 0,
            beat.resident_bytes if beat else 0,
            rates[0] if rates else None,
            rates[1] if rates else None,
            beat.num_parked if beat else 0,
        )


def _torn() -> Unavailable:
    return Unavailable("the rest of the answer", "its shard ended, and the memory has moved on since; ask again")
