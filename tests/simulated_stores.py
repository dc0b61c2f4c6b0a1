"""A journal and a store in memory: they pass the contract of the real ones, and can lose what those protect."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from siltstone.errors import Corrupt, InvalidInput, PositionConflict, StaleLease, Unavailable
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, Receipt, Snapshot, UserKey


class MemoryJournal:
    """`ports.Journal` in memory. As in a broker, what a producer sends again after an error may be in it twice."""

    look_every_s = 0.3

    def __init__(self, num_partitions: int) -> None:
        self.records: list[list[JournalRecord]] = [[] for _ in range(num_partitions)]
        self._known: dict[tuple[UserKey, str], JournalRecord] = {}
        self._lock = threading.Lock()
        self.is_down = False

    def _check(self) -> None:
        if self.is_down:
            raise Unavailable("the journal", "the simulation says so")

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """See `ports.Journal.append`."""
        self._check()
        payloads = [encode(interaction) for interaction in interactions]
        receipts = []
        with self._lock:
            for interaction, payload in zip(interactions, payloads, strict=True):
                earlier = self._known.get((interaction.owner, interaction.id))
                record = earlier or self.write(interaction.owner, interaction.id, payload)
                receipts.append(Receipt(interaction.id, record.partition, record.position, earlier is not None))
        return receipts

    def write(self, owner: UserKey, interaction_id: str, payload: bytes) -> JournalRecord:
        """Puts a record at the end of its partition, whatever is in it, and whether or not it was there before."""
        partition = partition_of(owner, len(self.records))
        record = JournalRecord(partition, len(self.records[partition]), owner, interaction_id, payload)
        self.records[partition].append(record)
        self._known.setdefault((owner, interaction_id), record)
        return record

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        """See `ports.Journal.read`."""
        self._check()
        _check_partition(partition, len(self.records))
        return self.records[partition][max(start, 0) : max(start, 0) + max(max_records, 0)]

    def follow(self, positions: Mapping[int, int]) -> None:
        """See `ports.Journal.follow`."""
        self._check()

    def leave(self, partitions: Sequence[int]) -> None:
        """See `ports.Journal.leave`."""

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """See `ports.Journal.ready`."""
        self._check()
        waiting = {partition: len(self.records[partition]) - at for partition, at in positions.items()}
        return {partition: count for partition, count in waiting.items() if count > 0}

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        """See `ports.Journal.overdue`."""
        return []

    def park(self, parked: Sequence[Parked]) -> None:
        """See `ports.Journal.park`."""
        self._check()

    def start_positions(self) -> dict[int, int]:
        """See `ports.Journal.start_positions`."""
        return dict.fromkeys(range(len(self.records)), 0)

    def end_positions(self) -> dict[int, int]:
        """See `ports.Journal.end_positions`."""
        self._check()
        return {partition: len(records) for partition, records in enumerate(self.records)}

    def erase(self, owner: UserKey) -> int:
        """See `ports.Journal.erase`."""
        self._check()
        num_erased = 0
        for records in self.records:
            for at, record in enumerate(records):
                if record.owner == owner and record.payload:
                    records[at] = replace(record, payload=b"")
                    num_erased += 1
        return num_erased


@dataclass(slots=True)
class _Kept:
    epoch: int = 0
    position: int = 0
    parked: list[Parked] = field(default_factory=list)
    taken_in: dict[tuple[UserKey, str], int] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryStore:
    """`ports.SnapshotStore` in memory.

    As a server that flushes now and then, it can go back to an earlier whole commit; a lease and an erasure, which wait
    for the disk, stay. Each protection can be taken away.
    """

    num_partitions: int
    id_window: int = 1_000_000
    checks_epoch: bool = True
    checks_position: bool = True
    knows_repeats: bool = True
    is_down: bool = False
    snapshots: dict[UserKey, Snapshot] = field(default_factory=dict)
    kept: list[_Kept] = field(default_factory=list)
    num_refused: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.kept = [_Kept() for _ in range(self.num_partitions)]

    def _check(self) -> None:
        if self.is_down:
            raise Unavailable("the store", "the simulation says so")

    def _fenced(self, lease: Lease) -> _Kept:
        kept = self.kept[lease.partition]
        if kept.epoch != lease.epoch and self.checks_epoch:
            self.num_refused += 1
            raise StaleLease(lease.partition, lease.epoch, kept.epoch)
        return kept

    def load(self, owner: UserKey) -> Snapshot | None:
        """See `ports.SnapshotStore.load`."""
        self._check()
        return self.snapshots.get(owner)

    def commit(self, commit: Commit) -> None:
        """See `ports.SnapshotStore.commit`."""
        self._check()
        self._check_sound(commit)
        with self._lock:
            self._write(commit)

    def _write(self, commit: Commit) -> None:
        kept = self._fenced(commit.lease)
        if kept.position != commit.expected_position and self.checks_position:
            self.num_refused += 1
            raise PositionConflict(commit.lease.partition, commit.expected_position, kept.position)
        before = {one.owner: self.snapshots.get(one.owner) for one in commit.snapshots}
        position, num_parked = kept.position, len(kept.parked)
        told = {(one.owner, one.interaction_id): one.position for one in commit.taken_in}
        # Of a repeat that was taken in all the same, the first place stays.
        new = {name: at for name, at in told.items() if name not in kept.taken_in}

        def undo() -> None:
            for owner, snapshot in before.items():
                self._put(owner, snapshot)
            kept.position = position
            del kept.parked[num_parked:]
            for name in new:
                del kept.taken_in[name]

        self._undo.append(undo)
        for snapshot in commit.snapshots:
            self.snapshots[snapshot.owner] = snapshot
        kept.position = commit.next_position
        kept.parked += commit.parked
        kept.taken_in |= new

    def _put(self, owner: UserKey, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            self.snapshots.pop(owner, None)
        else:
            self.snapshots[owner] = snapshot

    def _check_sound(self, commit: Commit) -> None:
        _check_partition(commit.lease.partition, self.num_partitions)
        if commit.next_position < commit.expected_position:
            raise InvalidInput("next_position", f"{commit.expected_position} or later", str(commit.next_position))
        for snapshot in commit.snapshots:
            self._check_owner(snapshot.owner, commit.lease)
            if hashlib.sha256(snapshot.blob).hexdigest() != snapshot.digest:
                raise Corrupt(f"memory of {snapshot.owner}", snapshot.digest, "another digest")
        for parked in commit.parked:
            if parked.partition != commit.lease.partition:
                raise InvalidInput("parked.partition", str(commit.lease.partition), str(parked.partition))
        for taken in commit.taken_in:
            if not commit.expected_position <= taken.position < commit.next_position:
                raise InvalidInput("taken_in.position", "between the positions", str(taken.position))

    def _check_owner(self, owner: UserKey, lease: Lease) -> None:
        if (partition := partition_of(owner, self.num_partitions)) != lease.partition:
            raise InvalidInput("lease.partition", f"{partition}, where the user belongs", str(lease.partition))

    def position(self, partition: int) -> int:
        """See `ports.SnapshotStore.position`."""
        self._check()
        _check_partition(partition, self.num_partitions)
        return self.kept[partition].position

    def acquire(self, partition: int, holder: str) -> Lease:
        """See `ports.SnapshotStore.acquire`."""
        self._check()
        _check_partition(partition, self.num_partitions)
        with self._lock:
            self.flush()
            self.kept[partition].epoch += 1
            return Lease(partition, holder, self.kept[partition].epoch)

    def parked(self, owner: UserKey | None = None) -> Iterator[Parked]:
        """See `ports.SnapshotStore.parked`."""
        self._check()
        yield from [one for kept in self.kept for one in kept.parked if owner is None or one.owner == owner]

    def parked_at(self, partition: int, positions: Sequence[int]) -> list[Parked]:
        """See `ports.SnapshotStore.parked_at`."""
        self._check()
        _check_partition(partition, self.num_partitions)
        return [one for one in self.kept[partition].parked if one.position in positions]

    def taken_in(self, partition: int, ids: Sequence[tuple[UserKey, str]]) -> list[int | None]:
        """See `ports.SnapshotStore.taken_in`."""
        self._check()
        _check_partition(partition, self.num_partitions)
        kept = self.kept[partition]
        found = [kept.taken_in.get(name, -1) if self.knows_repeats else -1 for name in ids]
        return [at if at >= 0 and at >= kept.position - self.id_window else None for at in found]

    def erase(self, owner: UserKey, lease: Lease) -> bool:
        """See `ports.SnapshotStore.erase`."""
        self._check()
        self._check_owner(owner, lease)
        with self._lock:
            self._fenced(lease)
            self.flush()
            for kept in self.kept:
                kept.parked = [one for one in kept.parked if one.owner != owner]
            return self.snapshots.pop(owner, None) is not None

    def count_users(self) -> int:
        """See `ports.SnapshotStore.count_users`."""
        self._check()
        return len(self.snapshots)

    def users_by_core(self) -> dict[str, int]:
        """See `ports.SnapshotStore.users_by_core`."""
        self._check()
        cores = [snapshot.core for snapshot in self.snapshots.values()]
        return {core: cores.count(core) for core in cores}

    def flush(self) -> None:
        """Makes sure of all that was written so far."""
        self._undo.clear()

    def go_back(self, num_commits: int) -> None:
        """Loses up to so many of the newest commits, as a server that is killed between two flushes."""
        for _ in range(min(num_commits, len(self._undo))):
            self._undo.pop()()


def _check_partition(partition: int, num_partitions: int) -> None:
    if not 0 <= partition < num_partitions:
        raise InvalidInput("partition", f"0 to {num_partitions - 1}", str(partition))
