"""A shard: the memories of the users in its partitions, and the commit that makes what was absorbed durable."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from siltstone.errors import ConfigInvalid, SnapshotMismatch
from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.user_memory import UserMemory, from_blob, to_blob
from siltstone.model.deltas import DeltaShape
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, ParkReason, Snapshot, UserKey

Admit = Callable[[JournalRecord], Interaction | Parked]
"""Decides whether a journal record may be absorbed; the record comes back parked when not."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """How much a shard holds and takes in at once."""

    max_resident_bytes: int = 2 * 1024**3
    """Bytes of users' levels held in memory; the least recently used leave first."""
    max_round_interactions: int = 64
    """Interactions absorbed between two commits."""
    max_lag_interactions: int = 4096
    """Interactions that may wait to be absorbed; more are refused."""
    retry_after_s: float = 2.0
    """Seconds after which a refused writer may try again."""
    answers_before_absorb: int = 8
    """Decode steps in a row after which one absorb step has its turn, so that answering never stops learning."""

    def __post_init__(self) -> None:
        for name in ("max_resident_bytes", "max_round_interactions", "max_lag_interactions", "answers_before_absorb"):
            if getattr(self, name) < 1:
                raise ConfigInvalid("shard", f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(slots=True)
class Round:
    """What one pass over the partitions took in, and, once absorbed, what it is to commit."""

    ends: dict[int, int]
    work: dict[UserKey, list[Interaction]]
    records: dict[UserKey, list[JournalRecord]]
    partition_of: dict[UserKey, int]
    parked: dict[int, list[Parked]]
    num_interactions: int
    memories: list[UserMemory] = field(default_factory=list)


class Shard:
    """The single owner of some partitions. Its memory is a cache; the store is the truth.

    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        journal: Journal,
        store: SnapshotStore,
        admit: Admit,
        absorber: Absorber,
        core: str,
        shape: DeltaShape,
        leases: Mapping[int, Lease],
        config: ShardConfig,
    ) -> None:
        self._journal, self._store, self._admit, self._absorber = journal, store, admit, absorber
        self._core, self._shape, self._config = core, shape, config
        self._leases = dict(leases)
        self._positions = {partition: store.position(partition) for partition in leases}
        self._resident: OrderedDict[UserKey, UserMemory] = OrderedDict()
        self.resident_bytes = 0
        self.num_absorbed = 0
        self.num_parked = 0
        self.absorbed_tokens = 0

    @property
    def num_resident(self) -> int:
        """Users whose levels are in memory."""
        return len(self._resident)

    @property
    def positions(self) -> dict[int, int]:
        """The committed position of every partition owned."""
        return dict(self._positions)

    def memory_of(self, owner: UserKey) -> UserMemory:
        """Returns a user's committed memory, loading it, its digest and shape verified, when it is not resident.

        Raises: Corrupt; SnapshotMismatch when it was learned under another core.
        """
        if owner in self._resident:
            self._resident.move_to_end(owner)
            return self._resident[owner]
        snapshot = self._store.load(owner)
        if snapshot is None:
            return UserMemory.empty(owner, self._core, self._shape)
        if snapshot.core != self._core:
            raise SnapshotMismatch(str(owner), f"core {self._core}", f"core {snapshot.core}")
        memory = from_blob(owner, snapshot.blob, self._core, self._shape)
        self._hold(memory)
        return memory

    def _hold(self, memory: UserMemory) -> None:
        self._drop(memory.owner)
        self._resident[memory.owner] = memory
        self.resident_bytes += memory.num_bytes
        # Everything held is committed, so leaving costs nothing; the one just used always stays.
        while self.resident_bytes > self._config.max_resident_bytes and len(self._resident) > 1:
            self._drop(next(iter(self._resident)))

    def _drop(self, owner: UserKey) -> None:
        leaving = self._resident.pop(owner, None)
        if leaving is not None:
            self.resident_bytes -= leaving.num_bytes

    def gather(self) -> Round | None:
        """Takes in the next records of every partition, within the round's bound; None when there are none."""
        taken = Round({}, {}, {}, {}, {}, 0)
        limit = self._config.max_round_interactions
        # In turns, a share at a time: many distinct users to a batch, and no partition waits for a busier one.
        share = max(1, limit // len(self._positions))
        turns = deque(self._positions)
        while turns and taken.num_interactions < limit:
            partition = turns.popleft()
            start = taken.ends.get(partition, self._positions[partition])
            records = self._journal.read(partition, start, min(share, limit - taken.num_interactions))
            for record in records:
                # An erased user's record keeps its place in the journal, but has no content any more.
                if record.payload:
                    self._take(taken, partition, record)
            if records:
                taken.ends[partition] = records[-1].position + 1
                taken.num_interactions += len(records)
                turns.append(partition)
        # The first in this round is the last in the next: a round smaller than the partitions leaves none out for ever.
        first = next(iter(self._positions))
        self._positions[first] = self._positions.pop(first)
        return taken if taken.ends else None

    def _take(self, taken: Round, partition: int, record: JournalRecord) -> None:
        decided = self._admit(record)
        if isinstance(decided, Interaction):
            try:
                self.memory_of(decided.owner)
            except SnapshotMismatch as error:
                decided = _park(record, ParkReason.SNAPSHOT_MISMATCH, str(error))
        if isinstance(decided, Parked):
            taken.parked.setdefault(partition, []).append(decided)
        else:
            taken.work.setdefault(decided.owner, []).append(decided)
            taken.records.setdefault(decided.owner, []).append(record)
            taken.partition_of[decided.owner] = partition

    def absorb(self, taken: Round) -> Iterator[Step]:
        """Absorbs a round step by step; afterwards the round holds the new memories. Nothing else changes."""
        work = [(self.memory_of(owner), interactions) for owner, interactions in taken.work.items()]
        for done in self._absorber.absorb(work) if work else ():
            if isinstance(done, Step):
                self.absorbed_tokens += done.num_tokens
                yield done
            else:
                taken.memories = [
                    memory.next(sequence=memory.sequence + 1) for memory in done if self._is_sound(memory, taken)
                ]

    def _is_sound(self, memory: UserMemory, taken: Round) -> bool:
        """Says whether a new memory is all finite numbers; if not, what led to it is parked and the old one stays."""
        if bool(torch.isfinite(memory.numbers).all()):
            return True
        parked = taken.parked.setdefault(taken.partition_of[memory.owner], [])
        for record in taken.records[memory.owner]:
            parked.append(_park(record, ParkReason.NOT_FINITE, "expected finite numbers, found NaN or infinity"))
        return False

    def commit(self, taken: Round) -> None:
        """Makes an absorbed round durable, partition by partition, each whole or not at all.

        1. Seal the snapshots of the partition's users.
        2. Write them, what was parked and the next position in one transaction of the store, under the lease.
        3. Let the new memories answer.
        After a crash between any two steps, what was not written is absorbed again from the journal.
        Raises: StaleLease and PositionConflict when another owner has taken over; Unavailable.
        """
        for partition, end in taken.ends.items():
            # 1.
            memories = [m for m in taken.memories if taken.partition_of[m.owner] == partition]
            snapshots = tuple(self._seal(memory) for memory in memories)
            parked = tuple(taken.parked.get(partition, ()))
            # 2.
            lease, start = self._leases[partition], self._positions[partition]
            self._store.commit(Commit(lease, start, end, snapshots, parked))
            # 3.
            self._positions[partition] = end
            for memory in memories:
                self._hold(memory)
                self.num_absorbed += len(taken.work[memory.owner])
            self.num_parked += len(parked)

    def _seal(self, memory: UserMemory) -> Snapshot:
        return Snapshot.seal(memory.owner, memory.core, memory.sequence, to_blob(memory))

    def forget(self, owner: UserKey, partition: int) -> tuple[bool, int]:
        """Erases a user: (whether there was a memory, number of journal entries). Safe to repeat after a crash.

        1. Drop the resident memory. 2. Erase snapshot and parked interactions. 3. Erase the journal's payloads.
        """
        # 1.
        self._drop(owner)
        # 2.
        had_memory = self._store.erase(owner, self._leases[partition])
        # 3.
        return had_memory, self._journal.erase(owner)


def _park(record: JournalRecord, reason: ParkReason, detail: str) -> Parked:
    return Parked(
        record.partition, record.position, record.owner, record.interaction_id, reason, detail, record.payload
    )


def lag_of(ends: Mapping[int, int], positions: Mapping[int, int]) -> int:
    """Returns how many records wait between the committed positions and the ends of their partitions."""
    return sum(ends.get(partition, 0) - position for partition, position in positions.items())


def partitions_past(positions: Mapping[int, int], wanted: Sequence[tuple[int, int]]) -> bool:
    """Says whether every wanted (partition, record position) lies before its committed position."""
    return all(positions.get(partition, 0) > position for partition, position in wanted)
