"""What one pass over the partitions takes in, and how it becomes new memories."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from siltstone.memory.absorber import Absorbers, Step
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, JournalRecord, Parked, ParkReason, TakenIn, UserKey

Work = tuple[JournalRecord, Interaction]
"""An interaction that is to be absorbed, and the record it came from."""


@dataclass(slots=True)
class Round:
    """What one pass over the partitions took in, and, once absorbed, what it is to commit.

    `ends` holds, for every partition still to be committed, the position behind the last record taken; `starts` that of
    the first, `epochs` the lease's under which they were taken.
    """

    starts: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    work: dict[UserKey, list[Work]] = field(default_factory=dict)
    parked: dict[int, list[Parked]] = field(default_factory=dict)
    memories: dict[UserKey, UserMemory] = field(default_factory=dict)
    num_interactions: int = 0
    num_bytes: dict[UserKey, int] = field(default_factory=dict)
    left_out: set[UserKey] = field(default_factory=set)
    taken_in: dict[int, list[TakenIn]] = field(default_factory=dict)
    names: set[tuple[UserKey, str]] = field(default_factory=set)

    def take(self, record: JournalRecord, decided: Interaction | Parked) -> None:
        """Puts a record to those to be absorbed, or to those parked."""
        self.num_bytes[record.owner] = self.num_bytes.get(record.owner, 0) + len(record.payload)
        if record.defect is None:
            # What only claims to be somebody's must not make a repeat of what is.
            self.names.add((record.owner, record.interaction_id))
            taken_in = TakenIn(record.position, record.owner, record.interaction_id)
            self.taken_in.setdefault(record.partition, []).append(taken_in)
        if isinstance(decided, Parked):
            self.parked.setdefault(record.partition, []).append(decided)
        else:
            self.work.setdefault(record.owner, []).append((record, decided))

    def park(self, record: JournalRecord, reason: ParkReason, detail: str) -> None:
        """Parks a record that was to be absorbed."""
        left = [work for work in self.work.pop(record.owner, ()) if work[0] is not record]
        if left:
            self.work[record.owner] = left
        self.parked.setdefault(record.partition, []).append(parked(record, reason, detail))

    def leave_out(self, owner: UserKey) -> None:
        """Keeps nothing of what a user brought, absorbed or not; the round goes on for the others."""
        self.left_out.add(owner)
        self.memories.pop(owner, None)
        for partition, parked_there in self.parked.items():
            self.parked[partition] = [one for one in parked_there if one.owner != owner]

    def drop_partition(self, partition: int) -> None:
        """Commits nothing of a partition: whoever owns it then takes its records in anew."""
        self.ends.pop(partition, None)

    def park_user(self, owner: UserKey, reason: ParkReason, detail: str) -> None:
        """Parks all that a user brought; the user's memory stays as it is."""
        self.memories.pop(owner, None)
        for record, _ in self.work.get(owner, ()):
            self.park(record, reason, detail)

    def memories_of(self, partition: int) -> list[UserMemory]:
        """Returns the new memories of the users of a partition."""
        return [new for owner, new in self.memories.items() if self.work[owner][0][0].partition == partition]


def parked(record: JournalRecord, reason: ParkReason, detail: str) -> Parked:
    """Returns a record as a parked interaction."""
    place, name = (record.partition, record.position), (record.owner, record.interaction_id)
    return Parked(*place, *name, reason, detail, record.payload, record.trace)


def absorb_round(absorbers: Absorbers, taken: Round, memories: Sequence[UserMemory]) -> Iterator[Step]:
    """Absorbs a round, step by step, into the memories of its users; afterwards the round holds the new ones.

    Everybody is absorbed in one batch. Where that gives a user numbers that are none, what the user brought is taken
    one interaction at a time: those that are to blame are parked, the others absorbed.
    """
    work = [(memory, [interaction for _, interaction in taken.work[memory.owner]]) for memory in memories]
    grown = yield from _fold(absorbers, work)
    suspects = [old for old, new in zip(memories, grown, strict=True) if not new.is_finite]
    taken.memories = {memory.owner: memory for memory in grown}
    for memory in suspects:
        taken.memories[memory.owner] = yield from _fold_one_by_one(absorbers, taken, memory)
    for memory in memories:
        new = taken.memories[memory.owner]
        if new.num_interactions == memory.num_interactions:
            # Nothing new was in it, so there is nothing to write.
            del taken.memories[memory.owner]
        else:
            taken.memories[memory.owner] = replace(new, sequence=memory.sequence + 1)
    for owner in taken.left_out:
        taken.leave_out(owner)


def _fold(
    absorbers: Absorbers, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]
) -> Generator[Step, None, list[UserMemory]]:
    grown: list[UserMemory] = []
    for done in absorbers.absorb(work) if work else ():
        if isinstance(done, Step):
            yield done
        else:
            grown = done
    return grown


def _fold_one_by_one(absorbers: Absorbers, taken: Round, memory: UserMemory) -> Generator[Step, None, UserMemory]:
    for record, interaction in tuple(taken.work[memory.owner]):
        (grown,) = yield from _fold(absorbers, [(memory, [interaction])])
        if grown.is_finite:
            memory = grown
        else:
            taken.park(record, ParkReason.NOT_FINITE, "memory: expected finite numbers, found NaN or infinity")
    return memory
