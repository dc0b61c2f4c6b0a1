"""A shard: the memories of the users in its partitions, and the commit that makes what was absorbed durable."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from siltstone.errors import ConfigInvalid, Corrupt, NotOwner, PositionConflict, SnapshotMismatch, StaleLease
from siltstone.memory.absorber import Absorbers, Step
from siltstone.memory.round import Round, absorb_round, parked
from siltstone.memory.user_memory import UserMemory, from_blob, to_blob
from siltstone.model.deltas import DeltaShape
from siltstone.ports import Journal, SnapshotStore
from siltstone.traceparent import trace_fields
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, ParkReason, Snapshot, UserKey

_log = logging.getLogger(__name__)

Admit = Callable[[JournalRecord], Interaction | Parked]
"""Decides whether a journal record may be absorbed; the record comes back parked when not."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """How much a shard holds and takes in at once."""

    max_resident_bytes: int = 2 * 1024**3
    """Bytes of users' levels held in memory; the least recently used leave first."""
    max_round_interactions: int = 128
    """Interactions absorbed between two commits."""
    max_round_user_bytes: int = 8_192
    """Bytes of one user's interactions absorbed between two commits, and the one that passes them: all of a round wait
    for the user who brought most."""
    gather_wait_s: float = 0.03
    """Seconds a shard waits, at least, for more users to share a round: once a record has come, and between rounds."""
    max_lag_interactions: int = 4096
    """Interactions that may wait to be absorbed; more are refused."""
    retry_after_s: float = 2.0
    """Seconds after which a refused writer may try again, and the shard what its journal or store could not do."""
    answers_before_absorb: int = 8
    """Decode steps in a row after which one absorb step has its turn, so that answering never stops learning."""

    def __post_init__(self) -> None:
        for name in (
            "max_resident_bytes",
            "max_round_interactions",
            "max_round_user_bytes",
            "max_lag_interactions",
            "answers_before_absorb",
        ):
            if getattr(self, name) < 1:
                raise ConfigInvalid("shard", f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a partition stands still, and why: what is stored of the partition itself cannot be trusted."""

    position: int
    error: Corrupt


class Shard:
    """The single owner of some partitions, which may change. Its memory is a cache; the store is the truth.

    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        journal: Journal,
        store: SnapshotStore,
        admit: Admit,
        absorbers: Absorbers,
        core: str,
        shape: DeltaShape,
        home_of: Callable[[UserKey], int],
        config: ShardConfig,
    ) -> None:
        """`home_of` says which partition a user belongs to."""
        self._journal, self._store, self._admit, self._absorbers = journal, store, admit, absorbers
        self.core, self._shape, self._config = core, shape, config
        """`core` is the one that users get who have no memory yet."""
        self._home_of = home_of
        self._leases: dict[int, Lease] = {}
        self._positions: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._lost: dict[int, StaleLease | PositionConflict] = {}
        self._damaged: dict[int, Damage] = {}
        self._resident: OrderedDict[UserKey, UserMemory] = OrderedDict()
        self.resident_bytes = 0
        self.num_absorbed = 0
        self.num_parked = 0
        self.num_repeats = 0
        self.absorbed_tokens = 0

    @property
    def num_resident(self) -> int:
        """Users whose levels are in memory."""
        return len(self._resident)

    @property
    def positions(self) -> dict[int, int]:
        """The committed position of every partition owned."""
        return dict(self._positions)

    @property
    def damaged(self) -> dict[int, Damage]:
        """The partitions that stand still."""
        return dict(self._damaged)

    @property
    def epochs(self) -> dict[int, int]:
        """The epoch of every partition owned."""
        return {partition: lease.epoch for partition, lease in self._leases.items()}

    def take(self, leases: Sequence[Lease]) -> None:
        """Begins to own partitions, each from the position on that the store holds.

        Raises: Corrupt; Unavailable. None of them is owned then.
        """
        positions = {lease.partition: self._store.position(lease.partition) for lease in leases}
        self._journal.follow(positions)
        for lease in leases:
            self._leave(lease.partition)
            self._leases[lease.partition] = lease
        self._positions.update(positions)

    def prepare_to_leave(self, partitions: Collection[int]) -> None:
        """Takes nothing more in from partitions that are to be left."""
        self._leaving.update(partitions)

    def leave(self, partitions: Collection[int]) -> None:
        """Owns partitions no more. What of them is in a round that is not committed is for their next owner."""
        for partition in partitions:
            self._leave(partition)
        for owner in [owner for owner in self._resident if self._home_of(owner) in partitions]:
            self._drop(owner)
        self._journal.leave(tuple(partitions))

    def _leave(self, partition: int) -> None:
        self._leases.pop(partition, None)
        self._positions.pop(partition, None)
        self._damaged.pop(partition, None)
        self._leaving.discard(partition)

    def take_lost(self) -> dict[int, StaleLease | PositionConflict]:
        """Returns the partitions that were lost since the last call, and what the store said."""
        lost, self._lost = self._lost, {}
        return lost

    def _lose(self, partition: int, error: StaleLease | PositionConflict) -> None:
        _log.warning("partition lost", extra={"partition": partition, "error": str(error)})
        self._lost[partition] = error
        self.leave([partition])

    def owns(self, owner: UserKey) -> bool:
        """Says whether a user's partition is here."""
        return self._home_of(owner) in self._leases

    def _check_owned(self, owner: UserKey) -> int:
        if (partition := self._home_of(owner)) not in self._leases:
            raise NotOwner(partition)
        return partition

    def memory_of(self, owner: UserKey) -> UserMemory:
        """Returns a user's committed memory, loading it, its digest and shape verified, when it is not resident.

        Raises: NotOwner; Corrupt; SnapshotMismatch when it was learned under a core that does not serve.
        """
        self._check_owned(owner)
        if owner in self._resident:
            self._resident.move_to_end(owner)
            return self._resident[owner]
        snapshot = self._store.load(owner)
        if snapshot is None:
            return UserMemory.empty(owner, self.core, self._shape)
        if not self._absorbers.serves(snapshot.core):
            raise SnapshotMismatch(str(owner), f"core {self.core}", f"core {snapshot.core}")
        memory = from_blob(owner, snapshot.blob, snapshot.core, self._shape)
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
        """Takes in the next records of every partition, within the round's bound; None when there are none.

        A partition whose journal is damaged stands still from the damaged record on; the others go on.
        Raises: Unavailable; then nothing was taken in.
        """
        taken = Round()
        limit = self._config.max_round_interactions
        ready = self._ready()
        # In turns, a share at a time: many distinct users to a batch, and no partition waits for a busier one.
        share = max(1, limit // max(1, len(ready)))
        turns = deque(ready)
        while turns and taken.num_interactions < limit:
            partition = turns.popleft()
            start = taken.ends.get(partition, self._positions[partition])
            records = self._read(partition, start, min(share, limit - taken.num_interactions, ready[partition]))
            ready[partition] -= len(records)
            try:
                known = self._known(partition, records)
            except Corrupt as error:
                self._stand_still(partition, start, error)
                continue
            for record, is_known in zip(records, known, strict=True):
                if taken.num_bytes.get(record.owner, 0) >= self._config.max_round_user_bytes:
                    # What comes behind it in the partition waits with it: positions are committed in order.
                    break
                # An erased user's record keeps its place in the journal, but has no content any more.
                is_repeat = is_known or (record.owner, record.interaction_id) in taken.names
                if is_repeat and record.defect is None:
                    self.num_repeats += 1
                elif record.payload or record.defect:
                    taken.take(record, self._decide(record))
                taken.ends[partition] = record.position + 1
                taken.epochs[partition] = self._leases[partition].epoch
                taken.num_interactions += 1
            else:
                if records and ready[partition]:
                    turns.append(partition)
        # The first in this round is the last in the next: a round smaller than the partitions leaves none out for ever.
        if (first := next(iter(self._positions), None)) is not None:
            self._positions[first] = self._positions.pop(first)
        return taken if taken.ends else None

    def has_records(self) -> bool:
        """Says whether there may be something to take in.

        Raises: Unavailable.
        """
        return bool(self._ready())

    def _ready(self) -> dict[int, int]:
        """Returns how many records there are to be taken in, at least as far as is known now, by partition."""
        open_ones = {
            partition: position
            for partition, position in self._positions.items()
            if partition not in self._damaged and partition not in self._leaving
        }
        return self._journal.ready(open_ones) if open_ones else {}

    def _read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        """Reads records; where one of them is damaged, those before it, and then none of that partition any more."""
        for limit in (max_records, 1):
            try:
                return self._journal.read(partition, start, limit)
            except Corrupt as error:
                damage = error
        self._stand_still(partition, start, damage)
        return []

    def _known(self, partition: int, records: Sequence[JournalRecord]) -> list[bool]:
        """Says of each record whether the partition has taken in the same interaction at an earlier position."""
        if not records:
            return []
        names = [(record.owner, record.interaction_id) for record in records]
        return [position is not None for position in self._store.taken_in(partition, names)]

    def _stand_still(self, partition: int, position: int, error: Corrupt) -> None:
        _log.error("partition damaged", extra={"partition": partition, "position": position, "error": str(error)})
        self._damaged[partition] = Damage(position, error)

    def _decide(self, record: JournalRecord) -> Interaction | Parked:
        if record.defect is not None:
            return parked(record, record.defect.reason, record.defect.detail)
        decided = self._admit(record)
        if isinstance(decided, Parked):
            return decided
        if (decided.owner, decided.id) != (record.owner, record.interaction_id):
            # The owner of the record says whose memory it may touch; no payload does.
            detail = "payload: expected the owner and the id of its record, found others"
            return parked(record, ParkReason.UNDECODABLE, detail)
        return decided

    def absorb(self, taken: Round) -> Iterator[Step]:
        """Absorbs a round step by step; afterwards the round holds the new memories. Nothing else changes.

        What came from a user whose memory cannot be used is parked.
        Raises: Unavailable when a memory cannot be loaded; the round is to be gathered anew then.
        """
        memories = []
        for owner in list(taken.work):
            try:
                memories.append(self.memory_of(owner))
            except NotOwner as error:
                taken.drop_partition(error.partition)
                del taken.work[owner]
            except SnapshotMismatch as error:
                taken.park_user(owner, ParkReason.SNAPSHOT_MISMATCH, str(error))
            except Corrupt as error:
                taken.park_user(owner, ParkReason.CORRUPT_MEMORY, str(error))
        for step in absorb_round(self._absorbers, taken, memories):
            self.absorbed_tokens += step.num_tokens
            yield step

    def commit(self, taken: Round) -> None:
        """Makes an absorbed round durable, partition by partition, each whole or not at all.

        1. Seal the snapshots of the partition's users.
        2. Tell others what was parked; then write the snapshots, what was parked and the next position in one
           transaction of the store, under the lease.
        3. Let the new memories answer, and log what was parked: whose, which and why, never what it says.
        After a crash between any two steps, what was not written is absorbed again from the journal. A partition that
        another owner has taken over, or whose store has gone back, is lost: nothing of it is written, and the others
        go on.
        Raises: Unavailable: call again, with the same round, what was committed of it stays so.
        """
        for partition in list(taken.ends):
            try:
                # Lost and taken anew meanwhile, it may be further on than this round knows.
                if self.epochs.get(partition) == taken.epochs[partition]:
                    self._commit_partition(taken, partition)
            except (StaleLease, PositionConflict) as error:
                self._lose(partition, error)
            del taken.ends[partition]

    def _commit_partition(self, taken: Round, partition: int) -> None:
        lease, start, end = self._leases[partition], self._positions[partition], taken.ends[partition]
        while True:
            # 1.
            memories = taken.memories_of(partition)
            snapshots = tuple(self._seal(memory) for memory in memories)
            parked_now = tuple(taken.parked.get(partition, ()))
            taken_in = tuple(one for one in taken.taken_in.get(partition, ()) if start <= one.position < end)
            # 2.
            if parked_now:
                self._journal.park(parked_now)
            try:
                self._store.commit(Commit(lease, start, end, snapshots, parked_now, taken_in))
                break
            except Corrupt as error:
                if not self._park_damaged(taken, memories):
                    self._stand_still(partition, start, error)
                    return
        # 3.
        self._positions[partition] = end
        for memory in memories:
            self._hold(memory)
            self.num_absorbed += len(taken.work[memory.owner])
        self.num_parked += len(parked_now)
        for one in parked_now:
            told = {"owner": str(one.owner), "interaction_id": one.interaction_id, "reason": one.reason.value}
            place = {"partition": one.partition, "position": one.position}
            _log.warning("interaction parked", extra={**told, **place, **trace_fields(one.trace)})

    def _park_damaged(self, taken: Round, memories: Sequence[UserMemory]) -> bool:
        """Parks what came from users whose stored memory is damaged, and says whether there was one."""
        has_found = False
        for memory in memories:
            try:
                self._store.load(memory.owner)
            except Corrupt as error:
                self._drop(memory.owner)
                taken.park_user(memory.owner, ParkReason.CORRUPT_MEMORY, str(error))
                has_found = True
        return has_found

    def _seal(self, memory: UserMemory) -> Snapshot:
        return Snapshot.seal(memory.owner, memory.core, memory.sequence, to_blob(memory))

    def replace(self, memory: UserMemory) -> None:
        """Makes a memory durable that something else than the journal has changed, and lets it answer.

        The partition's position stays. The caller has made sure that nothing was absorbed into it meanwhile.
        Raises: NotOwner, also when that shows only now; Unavailable. Nothing has changed then.
        """
        partition = self._check_owned(memory.owner)
        at = self._positions[partition]
        try:
            self._store.commit(Commit(self._leases[partition], at, at, (self._seal(memory),)))
        except (StaleLease, PositionConflict) as error:
            self._lose(partition, error)
            raise NotOwner(partition) from error
        self._hold(memory)

    def forget(self, owner: UserKey) -> tuple[bool, int]:
        """Erases a user: (whether there was a memory, number of journal entries). Safe to repeat after a crash.

        1. Drop the resident memory. 2. Erase snapshot and parked interactions. 3. Erase the journal's payloads.

        Raises: NotOwner, also when that shows only now; Unavailable.
        """
        partition = self._check_owned(owner)
        # 1.
        self._drop(owner)
        # 2.
        try:
            had_memory = self._store.erase(owner, self._leases[partition])
        except StaleLease as error:
            self._lose(partition, error)
            raise NotOwner(partition) from error
        # 3.
        return had_memory, self._journal.erase(owner)


def lag_of(ends: Mapping[int, int], positions: Mapping[int, int]) -> int:
    """Returns how many records wait between the committed positions and the ends of their partitions."""
    return sum(ends.get(partition, 0) - position for partition, position in positions.items())


def partitions_past(positions: Mapping[int, int], wanted: Sequence[tuple[int, int]]) -> bool:
    """Says whether every wanted (partition, record position) lies before its committed position."""
    return all(positions.get(partition, 0) > position for partition, position in wanted)
