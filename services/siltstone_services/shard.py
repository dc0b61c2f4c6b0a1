"""The embedded shard host: one process, one shard, all partitions."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.errors import Corrupt, InvalidInput, Overloaded, SiltstoneError, SnapshotMismatch, Unavailable
from siltstone.inference.rows import Answer
from siltstone.journal.admit import Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.shard import Damage, Shard, lag_of, partitions_past
from siltstone.ports import Clock, Journal, SnapshotStore, TextRecall
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    FinishReason,
    GenerateRequest,
    Interaction,
    InteractionKind,
    JournalRecord,
    MemoryCard,
    Message,
    Parked,
    Receipt,
    Role,
    ShardStatus,
    Snapshot,
    SnapshotDamage,
    UserExport,
    UserKey,
)
from siltstone_services.lanes import Lanes, open_lane
from siltstone_services.parking import ParkingLog, parked_among
from siltstone_services.prompts import recall_lines, render_prompt, render_scored
from siltstone_services.served import ServedCores
from siltstone_services.streams import Piece, Stream, Streams
from siltstone_services.succession import Succession
from siltstone_services.training import forget_job
from siltstone_services.upkeep import Upkeep
from siltstone_services.worker import Worker

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_EXPORT_RECORDS = 1024


@dataclass(slots=True)
class _Waiter:
    wanted: list[tuple[int, int]]
    done: asyncio.Future[None]


class EmbeddedHost:
    """Answers and absorbs in this process: an asyncio face, one worker thread behind it."""

    def __init__(
        self,
        core: LoadedCore,
        journal: Journal,
        store: SnapshotStore,
        recall: TextRecall,
        clock: Clock,
        config: SiltstoneConfig,
        served: ServedCores | None = None,
    ) -> None:
        """`core` serves first; `served` says which other cores may, and when another one is to lead."""
        self._loaded, self._journal, self._store, self._served = core, journal, store, served
        self._recall, self._clock, self._config = recall, clock, config
        self._tokenizer = core.tokenizer
        self._waiters: list[_Waiter] = []
        self._replies: set[Future[Any]] = set()
        self._damaged: dict[int, Damage] = {}
        self._num_appending = 0
        self._num_partitions = 0
        self._failure: SiltstoneError | None = None

    async def __aenter__(self) -> EmbeddedHost:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._worker.start()
        self._watching = asyncio.create_task(self._succession.watch(self._ask))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self._worker.stop)
        num_waiting = lag_of(self._ends, self._shard.positions)
        _LOG.info("shard stopped", extra={"num_waiting": num_waiting})
        self._fail(Unavailable("the shard", "it was stopped"))

    def _open(self) -> None:
        engine = self._config.engine
        num_threads = engine.num_threads or os.cpu_count() or 1
        torch.set_num_threads(num_threads)
        # A GPU computes for all users at once; a processor has threads that can each take a part of them.
        crew = Crew(num_threads if torch.device(engine.device).type == "cpu" else 1)
        leading = open_lane(self._loaded, self._config, crew)
        self._lanes = Lanes(leading)
        holder = uuid.uuid4().hex
        self._num_partitions = len(self._journal.end_positions())
        leases = {partition: self._store.acquire(partition, holder) for partition in range(self._num_partitions)}
        self._shard = Shard(
            self._journal,
            self._store,
            self._admit,
            self._lanes.absorbers,
            leading.version,
            leading.shape,
            leases,
            self._config.shard,
        )
        self._positions = self._shard.positions
        self._parking = ParkingLog(self._store, self._positions)
        self._ends = dict(self._journal.end_positions())
        self._streams = Streams(self._lanes, self._tokenizer, self._loop)
        self._upkeep = Upkeep(self._lanes, self._shard, self._store, self._num_partitions, self._config)
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
        )

    @property
    def version(self) -> str:
        """The version that newcomers get."""
        return self._shard.core

    async def follow(self) -> None:
        """Lets the version that is to serve lead now, if it does not yet: see `Succession.follow`."""
        await self._succession.follow(self._ask)

    def _admit(self, record: JournalRecord) -> Interaction | Parked:
        decided = admit(record.payload, self._config.admission)
        if isinstance(decided, Refusal):
            return Parked(
                record.partition,
                record.position,
                record.owner,
                record.interaction_id,
                decided.reason,
                decided.detail,
                record.payload,
            )
        return decided

    # What the worker's thread tells.

    def _on_commit(self) -> None:
        self._parking.look(self._shard.positions, self._shard.num_parked)
        self._loop.call_soon_threadsafe(self._committed, self._shard.positions, self._shard.damaged)

    def _on_trouble(self, error: Unavailable) -> None:
        # What waits is safe in the journal, but nobody knows for how long: better told than left to wait.
        self._loop.call_soon_threadsafe(self._end_waiting, error)

    def _on_failure(self, error: BaseException) -> None:
        told = error if isinstance(error, SiltstoneError) else Unavailable("the shard", type(error).__name__)
        self._loop.call_soon_threadsafe(self._fail, told)

    # What is done with it, on the event loop.

    def _committed(self, positions: dict[int, int], damaged: dict[int, Damage]) -> None:
        self._positions, self._damaged = positions, damaged
        for waiter in list(self._waiters):
            damage = self._damage_at(waiter.wanted)
            if waiter.done.done():
                continue
            if partitions_past(positions, waiter.wanted):
                waiter.done.set_result(None)
            elif damage is not None:
                waiter.done.set_exception(damage)

    def _damage_at(self, places: Iterable[tuple[int, int]]) -> Corrupt | None:
        """Returns what keeps one of the (partition, position)s from ever being absorbed."""
        for partition, position in places:
            damage = self._damaged.get(partition)
            if damage is not None and position >= damage.position:
                # A copy: an error that is raised again and again would gather the frames of all who met it.
                return copy(damage.error)
        return None

    def _end_waiting(self, error: SiltstoneError) -> None:
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_exception(error)

    def _fail(self, error: SiltstoneError) -> None:
        """Tells everybody who waits that the worker's thread has ended."""
        self._failure = self._failure or error
        told = self._told_failure()
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
        self._check_alive()
        reply: Future[T] = Future()
        self._replies.add(reply)

        def run() -> None:
            if reply.set_running_or_notify_cancel():
                try:
                    reply.set_result(question())
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

    def _check_lag(self, num_more: int) -> None:
        """Raises Overloaded when the worker lags too far behind the journal. A damaged partition's lag is no lag."""
        config = self._config.shard
        positions = {partition: at for partition, at in self._positions.items() if partition not in self._damaged}
        lag = lag_of(self._ends, positions) + self._num_appending
        # What is more than the limit by itself is taken when nothing else waits.
        if lag > 0 and lag + num_more > config.max_lag_interactions:
            raise Overloaded("the absorb lag", config.max_lag_interactions, config.retry_after_s)

    def _check_partition(self, owner: UserKey) -> None:
        damage = self._damaged.get(partition_of(owner, self._num_partitions))
        if damage is not None:
            raise copy(damage.error)

    # The port.

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

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        """Returns when every receipt lies before its partition's committed position."""
        self._check_alive()
        wanted = [(receipt.partition, receipt.position) for receipt in receipts]
        await self._wait_past(wanted)
        return await asyncio.to_thread(parked_among, self._store, wanted)

    async def _wait_past(self, wanted: list[tuple[int, int]]) -> None:
        if partitions_past(self._positions, wanted):
            return
        if (damage := self._damage_at(wanted)) is not None:
            raise damage
        waiter = _Waiter(wanted, self._loop.create_future())
        self._waiters.append(waiter)
        try:
            await waiter.done
        finally:
            self._waiters.remove(waiter)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """Answers under the user's committed memory of this moment."""
        is_recorded = bool(request.interaction_id) and request.consent.learn
        if is_recorded:
            # Refused before there is an answer, rather than after.
            self._check_partition(request.owner)
            self._check_lag(1)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        stream = Stream(request.owner, pieces)
        try:
            answer = await self._ask(lambda: self._begin(request, stream))
            while not isinstance(piece := await pieces.get(), FinishReason):
                if isinstance(piece, SiltstoneError):
                    raise piece
                yield piece
        finally:
            self._worker.call(lambda: self._streams.give_up(stream))
        yield AnswerEnd(
            piece,
            stream.core,
            stream.sequence,
            len(answer.prompt),
            len(answer.tokens),
            stream.recalled,
            await self._record_exchange(request, stream.text) if is_recorded and stream.text.strip() else None,
        )

    def _begin(self, request: GenerateRequest, stream: Stream) -> Answer:
        """Pins the user's state and hands the prompt to the engine. A bare core's answer needs no memory at all."""
        coefficients, recalled = None, []
        lane = self._lanes.leading
        if not request.core_only:
            memory = self._shard.memory_of(request.owner)
            self._upkeep.notice(memory)
            lane = self._lanes.of(memory.core)
            stream.sequence = memory.sequence
            recalled = recall_lines(self._recall, request.recall, memory.reservoir.lines(), request.messages)
            if request.recall != "text" and memory.sequence > 0:
                coefficients = memory.coefficients()
        prompt = render_prompt(self._tokenizer, request, recalled)
        while recalled and len(prompt) >= lane.engine.max_context:
            # The least fitting line goes first: what was asked matters more than what might help to answer it.
            recalled = recalled[:-1]
            prompt = render_prompt(self._tokenizer, request, recalled)
        stream.core, stream.recalled = lane.version, tuple(recalled)
        answer = lane.engine.submit(prompt, coefficients, request.sampling)
        self._streams.begin(stream, answer)
        return answer

    async def _record_exchange(self, request: GenerateRequest, text: str) -> Receipt:
        """Records an answered question; also over the lag's limit, by no more than the answers that run at once."""
        exchange = Interaction(
            request.interaction_id,
            request.owner,
            InteractionKind.CONVERSATION,
            self._clock.now_ms(),
            (*request.messages, Message(Role.ASSISTANT, text)),
            consent=request.consent,
        )
        self._check_alive()
        return (await self._append([exchange]))[0]

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Scores on the worker's thread, between two steps."""
        before = render_scored(self._tokenizer, prompt)
        continuations = [self._tokenizer.encode(answer) for answer in answers]
        if not answers or not all(continuations):
            raise InvalidInput("answers", "at least one, none of them empty", f"{len(answers)}")

        def run() -> list[tuple[float, float]]:
            memory = self._shard.memory_of(owner)
            self._upkeep.notice(memory)
            coefficients = memory.coefficients() if memory.sequence else None
            return self._lanes.of(memory.core).engine.score(before, continuations, coefficients)

        return await self._ask(run)

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Returns the card of the committed memory."""
        return await self._ask(lambda: self._card_of(owner))

    def _card_of(self, owner: UserKey) -> MemoryCard:
        card = self._shard.memory_of(owner).card(self._config.memory)
        # What was never committed takes no room.
        return card if card.sequence else replace(card, size_bytes=0)

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user."""
        # Between two steps nothing is committed: card and snapshot are of one state.
        card, snapshot, damage = await self._ask(lambda: self._memory_kept(owner))
        records = await asyncio.to_thread(self._records_of, owner)
        parked = await asyncio.to_thread(lambda: tuple(self._store.parked(owner)))
        return UserExport(card, snapshot, records, parked, damage)

    def _memory_kept(self, owner: UserKey) -> tuple[MemoryCard, Snapshot | None, SnapshotDamage | None]:
        card, snapshot, found = None, None, None
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
            card = MemoryCard(owner, self.version, 0, 0, 0, 0, (), 0)
            if snapshot is not None:
                size = len(snapshot.blob)
                card = replace(card, core=snapshot.core, sequence=snapshot.sequence, size_bytes=size)
        return card, snapshot, SnapshotDamage(found.what, found.expected, found.found) if found else None

    def _records_of(self, owner: UserKey) -> tuple[JournalRecord, ...]:
        partition = partition_of(owner, self._num_partitions)
        start = self._journal.start_positions()[partition]
        found: list[JournalRecord] = []
        while records := self._journal.read(partition, start, _EXPORT_RECORDS):
            found += [record for record in records if record.owner == owner and record.payload]
            start = records[-1].position + 1
        return tuple(found)

    async def forget(self, owner: UserKey) -> Erasure:
        """Erases between two steps; the user's part of a round under way is left out, and running answers end first."""

        def run() -> Erasure:
            # A round under way may hold the user's words: nothing of what it makes of them is kept.
            self._worker.leave_out(owner)
            self._streams.forget(owner)
            self._recall.clear()
            # What the core is being trained on holds people's words: a night under way ends, and can be run again.
            forget_job(self._config)
            had_memory, num = self._shard.forget(owner, partition_of(owner, self._num_partitions))
            return Erasure(owner, had_memory, num)

        return await self._ask(run)

    async def status(self) -> ShardStatus:
        """Returns counts and sizes, no content."""

        def run() -> ShardStatus:
            shard = self._shard
            return ShardStatus(
                core=self.version,
                num_users_stored=self._store.count_users(),
                num_users_resident=shard.num_resident,
                resident_bytes=shard.resident_bytes,
                lag_interactions=lag_of(self._journal.end_positions(), shard.positions),
                num_answers_running=self._lanes.num_running,
                num_absorbed=shard.num_absorbed,
                num_parked=shard.num_parked,
                absorbed_tokens=shard.absorbed_tokens,
                answered_tokens=self._streams.answered_tokens,
                busy_s=self._worker.busy_s,
                num_versions=sum(1 for _ in self._lanes),
                num_rebased=self._upkeep.num_rebased,
                num_pinned=self._upkeep.num_pinned,
            )

        return await self._ask(run)
