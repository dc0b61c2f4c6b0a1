"""A node: one process's shard, with what answers and learns in it. It owns the partitions it is given, while it is."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import torch

from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.errors import Corrupt, NotOwner, PositionConflict, SiltstoneError, StaleLease, Unavailable
from siltstone.journal.admit import Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.round import parked
from siltstone.memory.shard import Damage, Shard, lag_of, partitions_past
from siltstone.placement.coordinator import Claim
from siltstone.ports import Clock, Journal, SnapshotStore, TextRecall
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    GenerateRequest,
    Interaction,
    JournalRecord,
    Lease,
    MemoryCard,
    Message,
    Parked,
    Receipt,
    ShardStatus,
    UserExport,
    UserKey,
)
from siltstone_services.answers import Answers, Pinned
from siltstone_services.beat import Beat, Progress
from siltstone_services.lanes import Lane, Lanes, open_lane
from siltstone_services.parking import parked_among
from siltstone_services.served import ServedCores
from siltstone_services.streams import Streams
from siltstone_services.succession import Succession
from siltstone_services.training import forget_job
from siltstone_services.upkeep import Upkeep
from siltstone_services.user_desk import UserDesk
from siltstone_services.worker import Worker

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiter:
    wanted: list[tuple[int, int]]
    done: asyncio.Future[None]


class ShardNode:
    """Answers and absorbs for the users of its partitions: an asyncio face, one worker thread behind it.

    What is asked about a user of a partition that is not here raises NotOwner, at any time: the partition may move.
    """

    def __init__(
        self,
        core: LoadedCore,
        journal: Journal,
        store: SnapshotStore,
        recall: TextRecall,
        clock: Clock,
        config: SiltstoneConfig,
        served: ServedCores | None = None,
        run_opening: Callable[[Callable[[], tuple[Lane, Crew]]], Awaitable[tuple[Lane, Crew]]] = asyncio.to_thread,
    ) -> None:
        """`core` serves first; `served` says which other cores may, and when another one is to lead.

        `run_opening` runs what makes the core ready, which may take a while, beside the event loop. Nothing that stays
        is started by it.
        """
        self._run_opening = run_opening
        self._loaded, self._journal, self._store, self._served = core, journal, store, served
        self._recall, self._clock, self._config = recall, clock, config
        self._tokenizer = core.tokenizer
        self.incarnation = uuid.uuid4().hex
        """The name of this life of the node: the holder of its leases."""
        self._waiters: list[_Waiter] = []
        self._replies: set[Future[Any]] = set()
        self._positions: dict[int, int] = {}
        self._damaged: dict[int, Damage] = {}
        self._trouble: Unavailable | None = None
        self._watchers: set[asyncio.Event] = set()
        self._moving = asyncio.Lock()
        self._num_changes = 0
        self._num_partitions = 0
        self._num_listeners = 0
        self._failure: SiltstoneError | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        leading, crew = await self._run_opening(self._open_lane)
        await asyncio.to_thread(self._open, leading, crew)
        self._worker.start()
        try:
            await self._begin()
        except BaseException:
            await asyncio.to_thread(self._stop)
            raise
        self._watching = asyncio.create_task(self._succession.watch(self._ask))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self._stop)
        _LOG.info("shard stopped", extra={"num_waiting": self._num_waiting()})
        self._fail(Unavailable("the shard", "it was stopped"))

    async def _begin(self) -> None:
        """Does what is to be done before anybody asks; a node by itself waits for partitions."""

    def _stop(self) -> None:
        """Ends both threads. What is on its way to the store arrives."""
        self._worker.stop()
        self._committer.shutdown()

    def _num_waiting(self) -> int:
        return 0

    def _open_lane(self) -> tuple[Lane, Crew]:
        engine = self._config.engine
        num_threads = engine.num_threads or os.cpu_count() or 1
        torch.set_num_threads(num_threads)
        # A GPU computes for all users at once; a processor has threads that can each take a part of them.
        crew = Crew(num_threads if torch.device(engine.device).type == "cpu" else 1)
        return open_lane(self._loaded, self._config, crew), crew

    def _open(self, leading: Lane, crew: Crew) -> None:
        self._committer = ThreadPoolExecutor(1, "siltstone-commit")
        self._lanes = Lanes(leading)
        self._num_partitions = len(self._journal.end_positions())
        self._shard = Shard(
            self._journal,
            self._store,
            self._admit,
            self._lanes.absorbers,
            leading.version,
            leading.shape,
            self._home_of,
            self._config.shard,
        )
        self._streams = Streams(self._lanes, self._tokenizer, self._loop)
        self._upkeep = Upkeep(self._lanes, self._shard, self._store, self._config)
        self._succession = Succession(
            self._served, self._loaded, self._lanes, self._shard, self._upkeep, self._store, self._config, crew
        )
        self._succession.open_needed()
        self._worker = Worker(
            self._lanes,
            self._shard,
            self._upkeep,
            self._config.shard,
            self._streams.on_progress,
            self._on_commit,
            self._on_trouble,
            self._on_failure,
            self._journal.look_every_s,
            committer=self._committer,
        )
        self._answers = Answers(
            self._lanes,
            self._shard,
            self._upkeep,
            self._streams,
            self._worker,
            self._recall,
            self._tokenizer,
            self._ask,
        )
        self._users = UserDesk(
            self._shard,
            self._journal,
            self._store,
            self._config.memory,
            self._home_of,
            self._before_forgetting,
            self._ask,
        )

    @property
    def has_ended(self) -> bool:
        """Whether its thread has ended: nothing will come of it any more."""
        return self._failure is not None

    @property
    def version(self) -> str:
        """The version that newcomers get."""
        return self._shard.core

    async def follow(self) -> None:
        """Lets the version that is to serve lead now, if it does not yet: see `Succession.follow`."""
        await self._succession.follow(self._ask)

    def _home_of(self, owner: UserKey) -> int:
        return partition_of(owner, self._num_partitions)

    def _admit(self, record: JournalRecord) -> Interaction | Parked:
        decided = admit(record.payload, self._config.admission)
        if isinstance(decided, Refusal):
            return parked(record, decided.reason, decided.detail)
        return decided

    def _before_forgetting(self, owner: UserKey) -> None:
        # A round under way may hold the user's words: nothing of what it makes of them is kept.
        self._worker.leave_out(owner)
        self._streams.forget(owner)
        self._recall.clear()
        # What the core is being trained on holds people's words: a night under way ends, and can be run again.
        forget_job(self._config)

    # Partitions come and go.

    async def assign(self, partitions: Sequence[int]) -> Claim:
        """Takes partitions over, whoever had them, and returns all that is owned now. Those owned already stay.

        1. Take the leases: from now on nobody else can write. 2. Open the versions that their users need. 3. Begin
        from the positions that the store holds.

        A partition whose record is damaged is left out, and logged.
        Raises: Unavailable; none of them is owned then, though their leases may have been taken.
        """
        async with self._moving:
            owned = await self._ask(lambda: self._shard.epochs)
            # 1.
            wanted = [partition for partition in partitions if partition not in owned]
            leases, _ = await asyncio.to_thread(self._acquire, wanted)
            # 2.
            await self._succession.open_missing(self._ask)
            # 3.
            await self._ask(partial(self._take, leases))
            return await self._ask(self._claim)

    async def release(self, partitions: Sequence[int]) -> int:
        """Lets partitions go once the round under way is committed, and returns the number of the change.

        Running answers end on the state they began with.
        """
        async with self._moving:
            return await self._call(partial(self._let_go, frozenset(partitions)))

    def _acquire(self, partitions: Iterable[int]) -> tuple[list[Lease], list[Corrupt]]:
        leases, damages = [], []
        for partition in partitions:
            try:
                leases.append(self._store.acquire(partition, self.incarnation))
            except Corrupt as error:
                _LOG.error("partition damaged", extra={"partition": partition, "error": str(error)})
                damages.append(error)
        return leases, damages

    # On the worker's thread.

    def _take(self, leases: Sequence[Lease]) -> None:
        self._shard.take(leases)
        self._num_changes += 1
        self._worker.look()
        self._on_commit()

    def _let_go(self, partitions: frozenset[int], reply: Future[int]) -> None:
        def then() -> None:
            self._num_changes += 1
            self._on_commit()
            reply.set_result(self._num_changes)

        self._worker.let_go(partitions, then)

    def _claim(self) -> Claim:
        return Claim(self._num_changes, self._shard.epochs)

    def _on_commit(self) -> None:
        if lost := self._shard.take_lost():
            self._num_changes += 1
            self._upkeep.let_go()
            self._on_lost(lost)
        self._loop.call_soon_threadsafe(self._committed, self._shard.positions, self._shard.damaged)

    def _on_lost(self, lost: dict[int, StaleLease | PositionConflict]) -> None:
        """Does what is to be done about partitions that the store no longer takes from here: a node just goes on."""

    def _on_trouble(self, error: Unavailable) -> None:
        # What waits is safe in the journal, but nobody knows for how long: better told than left to wait.
        self._loop.call_soon_threadsafe(self._troubled, error)

    def _on_failure(self, error: BaseException) -> None:
        told = error if isinstance(error, SiltstoneError) else Unavailable("the shard", type(error).__name__)
        self._loop.call_soon_threadsafe(self._fail, told)

    # What is done with it, on the event loop.

    def _committed(self, positions: dict[int, int], damaged: dict[int, Damage]) -> None:
        self._positions, self._damaged = positions, damaged
        self._tell_watchers()
        for waiter in list(self._waiters):
            if waiter.done.done():
                continue
            if partitions_past(positions, waiter.wanted):
                waiter.done.set_result(None)
            elif (error := self._never_absorbed(waiter.wanted)) is not None:
                waiter.done.set_exception(error)

    def _troubled(self, error: Unavailable) -> None:
        self._trouble = error
        self._tell_watchers()
        self._end_waiting(error)

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def _never_absorbed(self, places: Iterable[tuple[int, int]]) -> SiltstoneError | None:
        """Returns what keeps one of the (partition, position)s from ever being absorbed here."""
        for partition, position in places:
            damage = self._damaged.get(partition)
            if damage is not None and position >= damage.position:
                # A copy: an error that is raised again and again would gather the frames of all who met it.
                return copy(damage.error)
            if partition not in self._positions:
                return NotOwner(partition)
        return None

    def _end_waiting(self, error: SiltstoneError) -> None:
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_exception(error)

    def _fail(self, error: SiltstoneError) -> None:
        """Tells everybody who waits that the worker's thread has ended."""
        self._failure = self._failure or error
        told = self._told_failure()
        self._tell_watchers()
        self._streams.fail(told)
        self._end_waiting(told)
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(told)

    def _told_failure(self) -> Unavailable:
        failure = self._failure
        return copy(failure) if isinstance(failure, Unavailable) else Unavailable("the shard", str(failure))

    async def _ask(self, question: Callable[[], T]) -> T:
        """Runs a question on the worker's thread and returns its answer."""
        return await self._call(lambda reply: reply.set_result(question()))

    async def _call(self, start: Callable[[Future[T]], None]) -> T:
        """Starts something on the worker's thread and returns what it replies, at once or later."""
        self._check_alive()
        reply: Future[T] = Future()
        self._replies.add(reply)

        def run() -> None:
            if reply.set_running_or_notify_cancel():
                try:
                    start(reply)
                except Exception as error:
                    reply.set_exception(error)

        self._worker.call(run)
        try:
            return await asyncio.wrap_future(reply)
        finally:
            self._replies.discard(reply)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._told_failure()

    # What is asked.

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        """Returns when every receipt lies before its partition's committed position."""
        self._check_alive()
        wanted = [(receipt.partition, receipt.position) for receipt in receipts]
        await self._wait_past(wanted)
        return await asyncio.to_thread(parked_among, self._store, wanted)

    async def _wait_past(self, wanted: list[tuple[int, int]]) -> None:
        if partitions_past(self._positions, wanted):
            return
        if (error := self._never_absorbed(wanted)) is not None:
            raise error
        waiter = _Waiter(wanted, self._loop.create_future())
        self._waiters.append(waiter)
        try:
            await waiter.done
        finally:
            self._waiters.remove(waiter)

    async def watch(self) -> AsyncGenerator[Progress, None]:
        """Yields what has changed of the partitions, as soon as it has; at first all there is."""
        self._check_alive()
        changed, told, trouble = asyncio.Event(), dict[int, int](), self._trouble
        changed.set()
        self._watchers.add(changed)
        try:
            while True:
                await changed.wait()
                changed.clear()
                self._check_alive()
                news = {partition: at for partition, at in self._positions.items() if told.get(partition) != at}
                told, before, trouble = self._positions, trouble, self._trouble
                # Whoever waits now is told of it once; whoever comes later may be luckier.
                yield Progress(news, self._damaged, trouble if trouble is not before else None)
        finally:
            self._watchers.discard(changed)

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        """Answers, and says first from what. It is not recorded here."""
        self._num_listeners += 1
        try:
            async with aclosing(self._answers.generate(request)) as items:
                async for item in items:
                    yield item
        finally:
            self._num_listeners -= 1

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Scores on the worker's thread, between two steps."""
        return await self._answers.score(owner, prompt, answers)

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Returns the card of the committed memory."""
        return await self._users.card(owner)

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user."""
        return await self._users.export(owner)

    async def forget(self, owner: UserKey) -> Erasure:
        """Erases between two steps."""
        return await self._users.forget(owner)

    async def beat(self) -> Beat:
        """Says how the node is, between two steps of its work: one that is stuck does not answer.

        Raises: Unavailable when its thread has ended.
        """
        return await self._ask(self._describe)

    def _describe(self) -> Beat:
        shard = self._shard
        return Beat(
            incarnation=self.incarnation,
            claim=self._claim(),
            positions=shard.positions,
            damaged=tuple(shard.damaged),
            core=self.version,
            num_resident=shard.num_resident,
            resident_bytes=shard.resident_bytes,
            num_answers_running=self._lanes.num_running,
            num_absorbed=shard.num_absorbed,
            num_parked=shard.num_parked,
            absorbed_tokens=shard.absorbed_tokens,
            answered_tokens=self._streams.answered_tokens,
            busy_s=self._worker.busy_s,
            num_versions=sum(1 for _ in self._lanes),
            num_rebased=self._upkeep.num_rebased,
            num_pinned=self._upkeep.num_pinned,
            num_listeners=self._num_listeners,
        )

    async def status(self) -> ShardStatus:
        """Returns counts and sizes, no content."""

        def run() -> ShardStatus:
            beat = self._describe()
            lag = lag_of(self._journal.end_positions(), beat.positions)
            return beat.status(self._store.count_users(), lag)

        return await self._ask(run)
