"""A round on its way into the store: it may travel on a thread of its own, while the shard's absorbs the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from siltstone.errors import Corrupt, PositionConflict, StaleLease, Unavailable
from siltstone.memory.round import Round
from siltstone.memory.user_memory import UserMemory, to_blob
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Commit, Lease, Parked, ParkReason, Snapshot, UserKey


class Committer(Protocol):
    """Runs a commit: at once, or on another thread. An `Executor` of one thread is one."""

    def submit(self, run: Callable[[], None], /) -> Future[None]:
        """Begins to run it."""
        ...


class AtOnce:
    """Runs a commit on the thread that asks for it."""

    def submit(self, run: Callable[[], None], /) -> Future[None]:
        """Runs it, and returns when it has run."""
        ended: Future[None] = Future()
        try:
            run()
        except Exception as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)
        return ended


@dataclass(frozen=True, slots=True)
class Place:
    """A partition that is to be committed: under which lease, and from which position to which."""

    lease: Lease
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What of a partition is durable now."""

    start: int
    end: int
    memories: tuple[UserMemory, ...]
    parked: tuple[Parked, ...]


Outcome = Committed | StaleLease | PositionConflict | Corrupt
"""What became of a partition: durable, lost to another owner, lost to a store that has gone back, or damaged."""


class RoundCommit:
    """Makes an absorbed round durable, partition by partition, each whole or not at all.

    1. Seal the snapshots of the partition's users.
    2. Tell others what was parked; then write the snapshots, what was parked and the next position in one
       transaction of the store, under the lease.

    After a crash between any two steps, what was not written is absorbed again from the journal. While it runs, nobody
    else changes the round.
    """

    def __init__(self, taken: Round, places: Mapping[int, Place], journal: Journal, store: SnapshotStore) -> None:
        self.taken = taken
        self._places, self._journal, self._store = places, journal, store
        self.outcomes: dict[int, Outcome] = {}
        self.damaged_owners: list[UserKey] = []
        self.trouble: Unavailable | None = None

    def run(self) -> None:
        """Commits until all are, or the journal or the store cannot: what was committed stays so."""
        for partition, place in self._places.items():
            try:
                self.outcomes[partition] = self._commit(partition, place)
            except (StaleLease, PositionConflict) as error:
                self.outcomes[partition] = error
            except Unavailable as error:
                self.trouble = error
                return

    def _commit(self, partition: int, place: Place) -> Committed | Corrupt:
        while True:
            # 1.
            memories = self.taken.memories_of(partition)
            snapshots = tuple(map(sealed, memories))
            parked = tuple(self.taken.parked.get(partition, ()))
            named = self.taken.taken_in.get(partition, ())
            taken_in = tuple(one for one in named if place.start <= one.position < place.end)
            # 2.
            if parked:
                self._journal.park(parked)
            try:
                self._store.commit(Commit(place.lease, place.start, place.end, snapshots, parked, taken_in))
                return Committed(place.start, place.end, tuple(memories), parked)
            except Corrupt as error:
                if not self._park_damaged(memories):
                    return error

    def _park_damaged(self, memories: Sequence[UserMemory]) -> bool:
        """Parks what came from users whose stored memory is damaged, and says whether there was one."""
        damaged = []
        for memory in memories:
            try:
                self._store.load(memory.owner)
            except Corrupt as error:
                damaged.append(memory.owner)
                self.taken.park_user(memory.owner, ParkReason.CORRUPT_MEMORY, str(error))
        self.damaged_owners += damaged
        return bool(damaged)


def sealed(memory: UserMemory) -> Snapshot:
    """Returns a memory as the store takes it."""
    return Snapshot.seal(memory.owner, memory.core, memory.sequence, to_blob(memory))


def places_of(taken: Round, leases: Mapping[int, Lease], positions: Mapping[int, int]) -> dict[int, Place]:
    """Returns where a round can be committed: where it was taken under this lease, and from this position.

    Lost and taken anew meanwhile, a partition may be further on than the round knows; and where the round before it
    could not be committed, what this one builds on is not there.
    """
    return {
        partition: Place(leases[partition], positions[partition], end)
        for partition, end in taken.ends.items()
        if partition in leases
        and leases[partition].epoch == taken.epochs[partition]
        and positions[partition] == taken.starts[partition]
    }
