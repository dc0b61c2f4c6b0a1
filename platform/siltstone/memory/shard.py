"""A shard: the memories of the users in its partitions, and the commit that makes what was absorbed durable."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from siltstone.errors import ConfigInvalid, Corrupt, NotOwner, PositionConflict, SnapshotMismatch, StaleLease
from siltstone.memory.absorber import Absorbers, Step
from siltstone.memory.committing import AtOnce, Committed, Committer, RoundCommit, places_of, sealed
from siltstone.memory.parking import ParkingLog
from siltstone.memory.round import Round, absorb_round, parked
from siltstone.memory.user_memory import UserMemory, from_blob
from siltstone.model.deltas import DeltaShape
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, ParkReason, UserKey

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
        self._parking = ParkingLog()
        self._resident: OrderedDict[UserKey, UserMemory] = OrderedDict()
        self._ahead: Round | None = None
        self._commit: RoundCommit | None = None
        self._sent: Future[None] | None = None
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
        self.settle()
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
        self.settle()
        self._give_up(partitions)

    def _give_up(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._leave(partition)
        for owner in [owner for owner in self._resident if self._home_of(owner) in partitions]:
            self._drop(owner)
        self._journal.leave(tuple(partitions))

    def _leave(self, partition: int) -> None:
        self._leases.pop(partition, None)
        self._positions.pop(partition, None)
        self._damaged.pop(partition, None)
        self._parking.leave(partition)
        self._leaving.discard(partition)

    def take_lost(self) -> dict[int, StaleLease | PositionConflict]:
        """Returns the partitions that were lost since the last call, and what the store said."""
        lost, self._lost = self._lost, {}
        return lost

    def _lose(self, partition: int, error: StaleLease | PositionConflict) -> None:
        _log.warning("partition lost", extra={"partition": partition, "error": str(error)})
        self._lost[partition] = error
        self._give_up([partition])

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

    def _newest_of(self, owner: UserKey) -> UserMemory:
        """Returns a user's memory as it will be once what is on its way has arrived."""
        ahead = self._ahead_in(self._check_owned(owner))
        memory = ahead.memories.get(owner) if ahead is not None else None
        return self.memory_of(owner) if memory is None else memory

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
        ready_from = self._open_positions()
        ready = self._ready(ready_from)
        # In turns, a share at a time: many distinct users to a batch, and no partition waits for a busier one.
        share = max(1, limit // max(1, len(ready)))
        turns = deque(ready)
        while turns and taken.num_interactions < limit:
            partition = turns.popleft()
            start = taken.ends.get(partition, ready_from[partition])
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
                taken.starts.setdefault(partition, ready_from[partition])
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
        return bool(self._ready(self._open_positions()))

    def _ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Returns how many records there are from these positions on, at least as far as is known now, by partition."""
        return self._journal.ready(positions) if positions else {}

    def _open_positions(self) -> dict[int, int]:
        """Returns from where on records are to be taken in, by partition: behind those that are on their way."""
        return {
            partition: position if (ahead := self._ahead_in(partition)) is None else ahead.ends[partition]
            for partition, position in self._positions.items()
            if partition not in self._damaged and partition not in self._leaving
        }

    def _ahead_in(self, partition: int) -> Round | None:
        """Returns the round that is on its way, where it holds something of this partition as it is owned now."""
        ahead = self._ahead
        if ahead is None or partition not in ahead.ends or partition not in self._leases:
            return None
        return ahead if ahead.epochs[partition] == self._leases[partition].epoch else None

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
        ahead = self._ahead_in(partition)
        on_their_way = ahead.names if ahead is not None else ()
        stored = self._store.taken_in(partition, names)
        return [position is not None or name in on_their_way for name, position in zip(names, stored, strict=True)]

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
                memories.append(self._newest_of(owner))
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

    # Into the store.

    def commit(self, taken: Round) -> None:
        """Makes an absorbed round durable (see `RoundCommit`), and lets the new memories answer.

        A partition that another owner has taken over, or whose store has gone back, is lost: nothing of it is written,
        and the others go on.
        Raises: Unavailable: call again, with the same round, what was committed of it stays so.
        """
        self.begin_commit(taken, AtOnce())
        self.end_commit()

    def begin_commit(self, taken: Round, committer: Committer) -> Future[None]:
        """Sends an absorbed round on its way; the next one may be gathered and absorbed on top of it.

        Nobody is answered from it before it has arrived. `end_commit` says what became of it; one that could not be
        sent is sent again before any other.
        """
        self.settle()
        commit = RoundCommit(taken, places_of(taken, self._leases, self._positions), self._journal, self._store)
        self._ahead, self._commit = taken, commit
        self._sent = committer.submit(commit.run)
        return self._sent

    def end_commit(self) -> None:
        """Ends what `begin_commit` began, as `commit` does.

        Raises: Unavailable: begin again, with the same round.
        """
        self.settle()
        commit, self._commit = self._commit, None
        if commit is not None and commit.trouble is not None:
            raise commit.trouble

    @property
    def is_committing(self) -> bool:
        """Whether a commit was begun and not ended."""
        return self._commit is not None

    @property
    def has_arrived(self) -> bool:
        """Whether a commit that was begun can be ended without waiting."""
        return self._commit is not None and (self._sent is None or self._sent.done())

    def settle(self) -> None:
        """Waits until what is on its way has arrived, and takes it over: what comes next must not meet it there."""
        if self._sent is None or self._commit is None:
            return
        self._sent.result()
        commit, self._sent = self._commit, None
        for owner in commit.damaged_owners:
            self._drop(owner)
        for partition, outcome in commit.outcomes.items():
            match outcome:
                case Committed(start, end, memories, parked_now):
                    self._positions[partition] = end
                    for memory in memories:
                        self._hold(memory)
                        self.num_absorbed += len(commit.taken.work[memory.owner])
                    self.num_parked += len(parked_now)
                    self._parking.note(partition, start, end, parked_now)
                case Corrupt():
                    self._stand_still(partition, self._positions[partition], outcome)
                case StaleLease() | PositionConflict():
                    self._lose(partition, outcome)
            commit.taken.ends.pop(partition, None)
        if commit.trouble is None:
            # What is not among the outcomes is not ours to commit any more.
            commit.taken.ends.clear()
            self._ahead = None

    def replace(self, memory: UserMemory) -> None:
        """Makes a memory durable that something else than the journal has changed, and lets it answer.

        The partition's position stays. The caller has made sure that nothing was absorbed into it meanwhile.
        Raises: NotOwner, also when that shows only now; Unavailable. Nothing has changed then.
        """
        self.settle()
        partition = self._check_owned(memory.owner)
        at = self._positions[partition]
        try:
            self._store.commit(Commit(self._leases[partition], at, at, (sealed(memory),)))
        except (StaleLease, PositionConflict) as error:
            self._lose(partition, error)
            raise NotOwner(partition) from error
        self._hold(memory)

    def forget(self, owner: UserKey) -> tuple[bool, int]:
        """Erases a user: (whether there was a memory, number of journal entries). Safe to repeat after a crash.

        1. Drop the resident memory. 2. Erase snapshot and parked interactions. 3. Erase the journal's payloads.

        Raises: NotOwner, also when that shows only now; Unavailable.
        """
        self.settle()
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
