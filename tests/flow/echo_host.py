"""A shard host in memory that keeps every promise of the port and answers with the user's own words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from siltstone.errors import InvalidInput, Overloaded, Unavailable
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    FinishReason,
    GenerateRequest,
    Interaction,
    InteractionKind,
    JournalRecord,
    LevelCard,
    MemoryCard,
    Message,
    Parked,
    ParkReason,
    PartitionView,
    Receipt,
    Role,
    ShardStatus,
    ShardView,
    Snapshot,
    UserExport,
    UserKey,
)

CORE = "echo-core"
NUM_PARTITIONS = 4
UNLEARNABLE = "unlearnable"
"""What a user says with this word in it is parked."""


@dataclass
class EchoMemory:
    """What the host knows of one user: the words it absorbed."""

    words: list[str] = field(default_factory=list)
    sequence: int = 0
    num_interactions: int = 0


class EchoHost:
    """Absorbs at once unless paused. `pause_s` is the time a word of an answer takes."""

    def __init__(self, *, pause_s: float = 0.0, max_lag: int = 1000, max_words: int = 500) -> None:
        self.pause_s, self.max_lag, self.max_words = pause_s, max_lag, max_words
        self.is_paused = False
        self.num_running = 0
        self.num_waiters = 0
        self.given_up = asyncio.Event()
        self.finished = asyncio.Event()
        self._journal: list[list[JournalRecord]] = [[] for _ in range(NUM_PARTITIONS)]
        self._interactions: dict[tuple[UserKey, str], Interaction] = {}
        self._receipts: dict[tuple[UserKey, str], Receipt] = {}
        self._waiting: list[tuple[UserKey, str]] = []
        self._memories: dict[UserKey, EchoMemory] = {}
        self._parked: list[Parked] = []
        self._absorbed = asyncio.Condition()
        self.num_absorbed = 0

    @property
    def recorded(self) -> list[Interaction]:
        """Everything that was recorded."""
        return list(self._interactions.values())

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        if len(self._waiting) + len(interactions) > self.max_lag:
            raise Overloaded("the echo journal", self.max_lag, 0.02)
        receipts = [self._append(interaction) for interaction in interactions]
        if not self.is_paused:
            await self.absorb()
        return receipts

    def _append(self, interaction: Interaction) -> Receipt:
        key = (interaction.owner, interaction.id)
        if key in self._receipts:
            first = self._receipts[key]
            return Receipt(first.interaction_id, first.partition, first.position, duplicate=True)
        partition = partition_of(interaction.owner, NUM_PARTITIONS)
        records = self._journal[partition]
        records.append(JournalRecord(partition, len(records), interaction.owner, interaction.id, encode(interaction)))
        self._receipts[key] = Receipt(interaction.id, partition, len(records) - 1, duplicate=False)
        self._interactions[key] = interaction
        self._waiting.append(key)
        return self._receipts[key]

    async def absorb(self) -> None:
        """Makes everything waiting part of its user's memory."""
        for owner in dict.fromkeys(owner for owner, _ in self._waiting):
            memory = self._memories.setdefault(owner, EchoMemory())
            memory.sequence += 1
            for _, name in [key for key in self._waiting if key[0] == owner]:
                if UNLEARNABLE in _words(self._interactions[owner, name]):
                    self._park(owner, name)
                    continue
                memory.words += _words(self._interactions[owner, name])
                memory.num_interactions += 1
                self.num_absorbed += 1
        self._waiting.clear()
        async with self._absorbed:
            self._absorbed.notify_all()

    def _park(self, owner: UserKey, name: str) -> None:
        receipt, payload = self._receipts[owner, name], encode(self._interactions[owner, name])
        why = (ParkReason.NOT_FINITE, "memory: expected finite numbers, found NaN or infinity")
        self._parked.append(Parked(receipt.partition, receipt.position, owner, name, *why, payload))

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        names = {receipt.interaction_id for receipt in receipts}
        self.num_waiters += 1
        async with self._absorbed:
            await self._absorbed.wait_for(lambda: not names & {name for _, name in self._waiting})
        self.num_waiters -= 1
        places = {(receipt.partition, receipt.position) for receipt in receipts}
        return [parked for parked in self._parked if (parked.partition, parked.position) in places]

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        words = request.messages[-1].text.split()
        if len(words) > self.max_words:
            raise InvalidInput("messages", f"at most {self.max_words} words", str(len(words)))
        memory = self._memories.get(request.owner, EchoMemory())
        sequence, known = memory.sequence, list(memory.words)
        if not request.core_only and request.recall != "text":
            words = [*words, *known]
        recalled = tuple(known[:1]) if request.recall != "weights" else ()
        self.num_running += 1
        is_done = False
        try:
            kept = words[: request.sampling.max_tokens]
            for word in kept:
                await asyncio.sleep(self.pause_s)
                yield AnswerPart(f"{word} ")
            reason = FinishReason.STOP if len(kept) == len(words) else FinishReason.MAX_TOKENS
            recorded = await self._record_exchange(request, " ".join(kept)) if request.consent.learn else None
            num_prompt = sum(len(message.text.split()) for message in request.messages)
            yield AnswerEnd(reason, CORE, sequence, num_prompt, len(kept), recalled, recorded)
            is_done = True
            self.finished.set()
        finally:
            self.num_running -= 1
            if not is_done:
                self.given_up.set()

    async def _record_exchange(self, request: GenerateRequest, answer: str) -> Receipt:
        messages = (*request.messages, Message(Role.ASSISTANT, answer or "(nothing)"))
        talk = Interaction(
            request.interaction_id, request.owner, InteractionKind.CONVERSATION, 1, messages, consent=request.consent
        )
        (receipt,) = await self.record([talk])
        return receipt

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        known = self._memories.get(owner, EchoMemory()).words
        return [(-1.0 if answer in known else -5.0, -float(len(answer))) for answer in answers]

    async def memory(self, owner: UserKey) -> MemoryCard:
        memory = self._memories.get(owner, EchoMemory())
        size = len(self._snapshot(owner).blob) if memory.sequence else 0
        level = LevelCard("words", 1, len(memory.words), 0, float(len(memory.words)))
        return MemoryCard(
            owner,
            CORE,
            memory.sequence,
            len(memory.words),
            memory.num_interactions,
            size,
            (level,),
            memory.num_interactions,
        )

    async def export(self, owner: UserKey) -> UserExport:
        records = [record for records in self._journal for record in records if record.owner == owner]
        has_memory = owner in self._memories
        parked = tuple(one for one in self._parked if one.owner == owner)
        snapshot = self._snapshot(owner) if has_memory else None
        return UserExport(await self.memory(owner), snapshot, tuple(records), parked)

    def _snapshot(self, owner: UserKey) -> Snapshot:
        memory = self._memories[owner]
        return Snapshot.seal(owner, CORE, memory.sequence, " ".join(memory.words).encode())

    async def forget(self, owner: UserKey) -> Erasure:
        had_memory = self._memories.pop(owner, None) is not None
        num_interactions = 0
        for records in self._journal:
            for index, record in enumerate(records):
                if record.owner == owner and record.payload:
                    records[index] = JournalRecord(record.partition, record.position, owner, record.interaction_id, b"")
                    num_interactions += 1
        self._interactions = {key: kept for key, kept in self._interactions.items() if key[0] != owner}
        self._waiting = [key for key in self._waiting if key[0] != owner]
        self._parked = [one for one in self._parked if one.owner != owner]
        return Erasure(owner, had_memory, num_interactions)

    async def status(self) -> ShardStatus:
        num_users, num_bytes = len(self._memories), sum(len(self._snapshot(owner).blob) for owner in self._memories)
        absorbed = sum(len(memory.words) for memory in self._memories.values())
        return ShardStatus(
            CORE,
            num_users,
            num_users,
            num_bytes,
            len(self._waiting),
            self.num_running,
            self.num_absorbed,
            0,
            absorbed,
            0,
            0.5,
            num_versions=2,
            num_rebased=3,
            num_pinned=1,
        )

    async def shards(self) -> tuple[ShardView, ...]:
        places = tuple(PartitionView(one, 7, len(records), 0) for one, records in enumerate(self._journal))
        return (
            ShardView("echo", "ready", places, len(self._memories), 12, 0.5, num_parked=3),
            ShardView("late", "stalled", (), 0, 0),
        )

    async def resize(self, num_shards: int) -> None:
        if num_shards > 2:
            raise Unavailable("Ray", "it has no room for another shard")


def _words(interaction: Interaction) -> list[str]:
    if interaction.kind is InteractionKind.CORRECTION:
        return interaction.correction.split()
    return [word for message in interaction.messages if message.role is Role.USER for word in message.text.split()]
