"""The embedded shard host: one process, one shard, all partitions."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.errors import InvalidInput, Overloaded, Unavailable
from siltstone.evaluation.office_material import load_office
from siltstone.inference.engine import AnswerEngine, Progress
from siltstone.inference.rows import Answer
from siltstone.journal.admit import Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.absorber import Absorber
from siltstone.memory.lessons import LessonPlan
from siltstone.memory.shard import Shard, lag_of, partitions_past
from siltstone.memory.user_memory import UserMemory
from siltstone.model.core import Core
from siltstone.model.deltas import Basis, DeltaShape, Site, build_basis
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
    UserExport,
    UserKey,
)
from siltstone_services.prompts import recall_lines, render_prompt, render_scored
from siltstone_services.worker import Worker

_log = logging.getLogger(__name__)
T = TypeVar("T")

_ANCHOR_TOKENS = 128
_EXPORT_RECORDS = 1024


@dataclass(slots=True, eq=False)
class _Stream:
    """An answer on its way to its reader."""

    memory: UserMemory
    recalled: tuple[str, ...]
    pieces: asyncio.Queue[AnswerPart | FinishReason | Exception]
    answer: Answer | None = None
    told: int = 0
    text: str = ""


@dataclass(slots=True)
class _Waiter:
    wanted: list[tuple[int, int]]
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Counters:
    answered_tokens: int = 0
    streams: dict[int, _Stream] = field(default_factory=dict)


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
    ) -> None:
        self._loaded, self._journal, self._store = core, journal, store
        self._recall, self._clock, self._config = recall, clock, config
        self._tokenizer = core.tokenizer
        self._waiters: list[_Waiter] = []
        self._counts = _Counters()
        self._num_partitions = 0
        self._failure: BaseException | None = None

    async def __aenter__(self) -> EmbeddedHost:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._worker.stop)
        self._fail(Unavailable("the shard", "it was stopped"))

    def _open(self) -> None:
        engine = self._config.engine
        torch.set_num_threads(engine.num_threads or os.cpu_count() or 1)
        core = Core(self._loaded.config, self._loaded.tensors, engine.device)
        memory = self._config.memory
        shape = memory.shape_for(core.config)
        basis, self.version = self._basis(core, shape)
        plan = LessonPlan(self._tokenizer, self._config.lessons)
        absorber = Absorber(core, shape, basis, plan, memory, self._config.reservoir)
        holder = uuid.uuid4().hex
        self._num_partitions = len(self._journal.end_positions())
        leases = {partition: self._store.acquire(partition, holder) for partition in range(self._num_partitions)}
        self._shard = Shard(
            self._journal, self._store, self._admit, absorber, self.version, shape, leases, self._config.shard
        )
        self._engine = AnswerEngine(
            core, shape, basis, plan.prefix_ids, absorber.prefix, self._tokenizer.stop_ids, engine
        )
        self._positions = self._shard.positions
        self._ends = dict(self._journal.end_positions())
        self._worker = Worker(
            self._engine, self._shard, self._config.shard, self._on_progress, self._on_commit, self._on_failure
        )

    def _basis(self, core: Core, shape: DeltaShape) -> tuple[Basis, str]:
        """Returns the read basis and the name of the version: what a memory must have been learned under."""
        memory = self._config.memory
        passages = [passage.text for passage in load_office().anchors]
        recipe: dict[str, object] = {
            "core": self._loaded.digest,
            "layers": shape.num_layers,
            "sites": list(shape.sites),
            "rank": shape.rank,
            "damping": memory.basis_damping,
            "seed": memory.basis_seed,
            "anchors": hashlib.sha256("\n".join(passages).encode()).hexdigest(),
        }

        def build() -> dict[Site, torch.Tensor]:
            _log.info("building the read basis", extra={"layers": shape.num_layers, "rank": shape.rank})
            rows = [self._tokenizer.encode(passage)[:_ANCHOR_TOKENS] for passage in passages]
            shortest = min(map(len, rows))
            anchors = torch.tensor([row[:shortest] for row in rows], device=core.device)
            return build_basis(core, shape, anchors, memory.basis_damping, memory.basis_seed)

        basis, digest = BasisStore(self._config.home_path).get(recipe, build)
        placed = {site: layers.to(device=core.device, dtype=core.dtype) for site, layers in basis.items()}
        return placed, f"{self._loaded.digest}-{digest[:12]}"

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

    def _on_progress(self, progress: list[Progress]) -> None:
        for item in progress:
            stream = self._counts.streams.get(id(item.answer))
            if stream is None:
                continue
            if item.token is not None:
                self._counts.answered_tokens += 1
            text = self._tokenizer.decode(item.answer.tokens)
            # A character may still miss its last bytes: it is told with the token that completes it.
            if item.finished is None and text.endswith("�"):
                continue
            if len(text) > stream.told:
                self._tell(stream, AnswerPart(text[stream.told :]))
                stream.told = len(text)
            if item.finished is not None:
                stream.text = text
                del self._counts.streams[id(item.answer)]
                self._tell(stream, item.finished)

    def _tell(self, stream: _Stream, piece: AnswerPart | FinishReason | Exception) -> None:
        self._loop.call_soon_threadsafe(stream.pieces.put_nowait, piece)

    def _on_commit(self) -> None:
        self._loop.call_soon_threadsafe(self._committed, self._shard.positions)

    def _committed(self, positions: dict[int, int]) -> None:
        self._positions = positions
        for waiter in list(self._waiters):
            if partitions_past(positions, waiter.wanted):
                self._waiters.remove(waiter)
                if not waiter.done.done():
                    waiter.done.set_result(None)

    def _on_failure(self, error: BaseException) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        told = Unavailable("the shard", str(error))
        for stream in self._counts.streams.values():
            stream.pieces.put_nowait(told)
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_exception(told)
        self._waiters.clear()

    async def _ask(self, question: Callable[[], T]) -> T:
        """Runs a question on the worker's thread and returns its answer."""
        self._check_alive()
        reply: Future[T] = Future()

        def run() -> None:
            if reply.set_running_or_notify_cancel():
                try:
                    reply.set_result(question())
                except Exception as error:
                    reply.set_exception(error)

        self._worker.call(run)
        return await asyncio.wrap_future(reply)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise Unavailable("the shard", str(self._failure))

    # The port.

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """Writes the interactions to the journal, unless the worker lags too far behind it."""
        self._check_alive()
        config = self._config.shard
        if lag_of(self._ends, self._positions) + len(interactions) > config.max_lag_interactions:
            raise Overloaded("the absorb lag", config.max_lag_interactions, config.retry_after_s)
        receipts = await asyncio.to_thread(self._journal.append, interactions)
        for receipt in receipts:
            self._ends[receipt.partition] = max(self._ends.get(receipt.partition, 0), receipt.position + 1)
        self._worker.notice_records()
        return receipts

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> None:
        """Returns when every receipt lies before its partition's committed position."""
        self._check_alive()
        wanted = [(receipt.partition, receipt.position) for receipt in receipts]
        if partitions_past(self._positions, wanted):
            return
        waiter = _Waiter(wanted, self._loop.create_future())
        self._waiters.append(waiter)
        try:
            await waiter.done
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """Answers under the user's committed memory of this moment."""
        pieces: asyncio.Queue[AnswerPart | FinishReason | Exception] = asyncio.Queue()
        stream = await self._ask(lambda: self._begin(request, pieces))
        try:
            while not isinstance(piece := await pieces.get(), FinishReason):
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            answer = stream.answer
            if answer is not None:
                self._worker.call(lambda: self._give_up(answer))
        assert stream.answer is not None
        yield AnswerEnd(
            piece,
            self.version,
            stream.memory.sequence,
            len(stream.answer.prompt),
            len(stream.answer.tokens),
            stream.recalled,
            await self._record_exchange(request, stream.text),
        )

    def _begin(self, request: GenerateRequest, pieces: asyncio.Queue[AnswerPart | FinishReason | Exception]) -> _Stream:
        memory = self._shard.memory_of(request.owner)
        is_core = request.core_only
        lines = [] if is_core else memory.reservoir.lines()
        recalled = recall_lines(self._recall, request.recall, lines, request.messages)
        prompt = render_prompt(self._tokenizer, request, recalled)
        bends = not is_core and request.recall != "text" and memory.sequence > 0
        stream = _Stream(memory, tuple(recalled), pieces)
        stream.answer = self._engine.submit(prompt, memory.coefficients() if bends else None, request.sampling)
        self._counts.streams[id(stream.answer)] = stream
        return stream

    def _give_up(self, answer: Answer) -> None:
        if self._counts.streams.pop(id(answer), None) is not None:
            self._engine.give_up(answer)

    async def _record_exchange(self, request: GenerateRequest, text: str) -> Receipt | None:
        if not request.interaction_id or not request.consent.learn or not text.strip():
            return None
        exchange = Interaction(
            request.interaction_id,
            request.owner,
            InteractionKind.CONVERSATION,
            self._clock.now_ms(),
            (*request.messages, Message(Role.ASSISTANT, text)),
            consent=request.consent,
        )
        return (await self.record([exchange]))[0]

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
            coefficients = memory.coefficients() if memory.sequence else None
            return self._engine.score(before, continuations, coefficients)

        return await self._ask(run)

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Returns the card of the committed memory."""
        return await self._ask(lambda: self._shard.memory_of(owner).card(self._config.memory))

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user."""
        card = await self.memory(owner)
        snapshot = await asyncio.to_thread(self._store.load, owner)
        records = await asyncio.to_thread(self._records_of, owner)
        parked = await asyncio.to_thread(lambda: tuple(self._store.parked(owner)))
        return UserExport(card, snapshot, records, parked)

    def _records_of(self, owner: UserKey) -> tuple[JournalRecord, ...]:
        partition, start = partition_of(owner, self._num_partitions), 0
        found: list[JournalRecord] = []
        while records := self._journal.read(partition, start, _EXPORT_RECORDS):
            found += [record for record in records if record.owner == owner and record.payload]
            start = records[-1].position + 1
        return tuple(found)

    async def forget(self, owner: UserKey) -> Erasure:
        """Erases between two steps; a round under way is dropped first."""

        def run() -> Erasure:
            # A round may hold the user's words; taken in anew, it finds them erased.
            self._worker.drop_round()
            self._recall.clear()
            had_memory, num = self._shard.forget(owner, partition_of(owner, self._num_partitions))
            return Erasure(owner, had_memory, num)

        return await self._ask(run)

    async def status(self) -> ShardStatus:
        """Returns counts and sizes, no content."""

        def run() -> ShardStatus:
            shard, engine = self._shard, self._engine
            return ShardStatus(
                core=self.version,
                num_users_stored=self._store.count_users(),
                num_users_resident=shard.num_resident,
                resident_bytes=shard.resident_bytes,
                lag_interactions=lag_of(self._journal.end_positions(), shard.positions),
                num_answers_running=engine.num_running,
                num_absorbed=shard.num_absorbed,
                num_parked=shard.num_parked,
                absorbed_tokens=shard.absorbed_tokens,
                answered_tokens=self._counts.answered_tokens,
                busy_s=self._worker.busy_s,
            )

        return await self._ask(run)
