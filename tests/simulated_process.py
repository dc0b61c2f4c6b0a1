"""One life of a shard's process, without a thread, a file or a model: whoever simulates a cluster steps it by hand."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, Protocol, cast

from simulated_stores import MemoryJournal, MemoryStore
from tiny import TINY_CORE, TINY_MEMORY

from siltstone.errors import NotOwner, Unavailable
from siltstone.journal.admit import AdmissionLimits, Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.absorber import Absorber, Absorbers, Step
from siltstone.memory.shard import Shard, ShardConfig
from siltstone.memory.user_memory import UserMemory
from siltstone.placement.coordinator import Assign, Claim, Coordinator, Order, Seat
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, UserKey
from siltstone_services.lanes import Lanes
from siltstone_services.upkeep import Upkeep
from siltstone_services.worker import Worker

CORE: Final = "core-1"
SHAPE: Final = replace(TINY_MEMORY, num_layers=1, rank=1, sites=("down",)).shape_for(TINY_CORE)
NUM_PARTITIONS: Final = 6
_BITS: Final = 20
"""Of a chain that are kept in one float32, exactly; it has two of them."""


class Crash(BaseException):
    """The process ends here."""


def chain(before: int, interaction_id: str) -> int:
    """Returns what a memory becomes by one more interaction."""
    digest = hashlib.sha256(f"{before} {interaction_id}".encode()).digest()
    return int.from_bytes(digest[:5], "big")


def chain_of(memory: UserMemory) -> int:
    """Returns what a memory is."""
    high, low = memory.numbers[0, 0, :2].tolist()
    return (int(high) << _BITS) | int(low)


class ChainAbsorber:
    """Does what `Absorber.absorb` does, with a chain instead of a model; it does not notice repeats."""

    def absorb(self, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]) -> Iterator[Step | list[UserMemory]]:
        """Folds, one step an interaction."""
        grown = []
        for memory, interactions in work:
            for one in interactions:
                value = chain(chain_of(memory), one.id)
                numbers = memory.numbers.clone()
                numbers[0, 0, 0], numbers[0, 0, 1] = value >> _BITS, value & ((1 << _BITS) - 1)
                memory = memory.next(numbers=numbers, num_interactions=memory.num_interactions + 1)
                yield Step(1, 1)
            grown.append(memory)
        yield grown


class Idle:
    """Nobody answers, and nothing is to be kept up: the lanes and the upkeep of a simulated process."""

    num_running = 0

    def wait_s(self) -> float | None:
        return None

    def _nothing(self, *_: object) -> None:
        pass

    put_off = let_go = notice = forget = _nothing


class CrashingStore:
    """The store as one process reaches it: the process may end before a commit, or after it and before its answer."""

    def __init__(self, store: MemoryStore) -> None:
        self._store, self.crash = store, ""

    def commit(self, commit: Commit) -> None:
        """See `ports.SnapshotStore.commit`."""
        crash, self.crash = self.crash, ""
        if crash == "before":
            raise Crash
        self._store.commit(commit)
        if crash == "after":
            raise Crash

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class OnItsWay(Future[None]):
    """A commit that travels. Whoever waits for it lets it arrive now."""

    def __init__(self, process: Process, run: Callable[[], None]) -> None:
        super().__init__()
        self._process, self._run = process, run

    def arrive(self) -> None:
        """Lets it arrive, if its process lives; one that stands still sends nothing before it goes on."""
        process = self._process
        if self.done() or not process.is_alive:
            return
        if not process.is_up:
            process.world.later(process.frozen_until_s - process.world.now_s + 0.2, self.arrive)
            return
        try:
            self._end()
        except Crash:
            process.world.crash(process)

    def _end(self) -> None:
        self._run()
        self.set_result(None)

    def result(self, timeout: float | None = None) -> None:
        """See `Future.result`; there is no other thread here that it could be waited for."""
        if not self.done():
            self._end()
        return super().result(timeout)


class LateCommitter:
    """Sends the commits of a process, which take some time; without any, they are there at once."""

    def __init__(self, process: Process, most_s: float) -> None:
        self._process, self._most_s = process, most_s

    def submit(self, run: Callable[[], None], /) -> Future[None]:
        """See `Committer.submit`."""
        sent = OnItsWay(self._process, run)
        if self._most_s:
            self._process.world.later(self._most_s, sent.arrive)
        else:
            sent.result()
        return sent


class Surroundings(Protocol):
    """What a process knows of the world around it."""

    now_s: float
    journal: MemoryJournal
    store: MemoryStore
    coordinator: Coordinator
    to_forget: set[UserKey]
    leaves_out: bool

    def later(self, most_s: float, do: Callable[[], None]) -> None:
        """Lets something happen within a time."""
        ...

    def answer(self, process: Process, tell: Callable[[], None]) -> None:
        """Brings the answer to an order, if the network does."""
        ...

    def crash(self, process: Process) -> None:
        """Ends a process."""
        ...


class Process:
    """One life of a shard's process: a real shard and a real worker without its thread, which `turn` steps."""

    def __init__(self, world: Surroundings, seat: Seat, config: ShardConfig, commit_s: float) -> None:
        self.world, self.seat = world, seat
        self.store = CrashingStore(world.store)
        self.is_alive, self.frozen_until_s, self.next_beat_s = True, 0.0, 0.0
        self._num_changes = 0
        self._orders: deque[Order] = deque()
        self._is_busy = False
        self.shard = Shard(
            world.journal,
            cast(Any, self.store),
            _admit,
            Absorbers({CORE: cast(Absorber, ChainAbsorber())}),
            CORE,
            SHAPE,
            home_of,
            config,
        )
        idle = Idle()
        self.worker = Worker(
            cast(Lanes, idle),
            self.shard,
            cast(Upkeep, idle),
            config,
            lambda _: None,
            self._on_commit,
            lambda _: None,
            lambda _: None,
            world.journal.look_every_s,
            lambda: world.now_s,
            LateCommitter(self, commit_s),
        )

    @property
    def is_up(self) -> bool:
        """Whether it does anything now."""
        return self.is_alive and self.world.now_s >= self.frozen_until_s

    def turn(self) -> None:
        """Runs what it was told, and one step of its work."""
        try:
            self.worker.turn(0.0)
        except Crash:
            self.world.crash(self)

    def claim(self) -> Claim:
        """Says what it owns, as `ShardNode` does."""
        return Claim(self._num_changes, self.shard.epochs)

    def _on_commit(self) -> None:
        if self.shard.take_lost():
            self._num_changes += 1

    # Orders: one after the other, as a node's lock has it.

    def obey(self, order: Order) -> None:
        """Carries an order out, when those before it are."""
        self._orders.append(order)
        if not self._is_busy:
            self._obey_next()

    def _obey_next(self) -> None:
        self._is_busy = bool(self._orders)
        if not self._orders:
            return
        order = self._orders.popleft()
        if not isinstance(order, Assign):
            self.worker.call(lambda: self.worker.let_go(frozenset(order.partitions), lambda: self._let_go(order)))
            return
        owned = self.shard.epochs
        try:
            wanted = [partition for partition in order.partitions if partition not in owned]
            leases = [self.store.acquire(partition, self.seat.incarnation) for partition in wanted]
        except Unavailable:
            self._done(lambda: self.world.coordinator.failed(order.number, self.world.now_s))
            return
        # Much may happen between taking a lease and beginning with its partition.
        self.world.later(0.4, lambda: self.worker.call(lambda: self._take(order, leases)))

    def _take(self, order: Order, leases: Sequence[Lease]) -> None:
        try:
            self.shard.take(leases)
        except Unavailable:
            self._done(lambda: self.world.coordinator.failed(order.number, self.world.now_s))
            return
        self._num_changes += 1
        self.worker.look()
        self._on_commit()
        claim = self.claim()
        self._done(lambda: self.world.coordinator.assigned(order.number, claim, self.world.now_s))

    def _let_go(self, order: Order) -> None:
        self._num_changes += 1
        self._on_commit()
        change = self._num_changes
        self._done(lambda: self.world.coordinator.released(order.number, change))

    def _done(self, tell: Callable[[], None]) -> None:
        self.world.answer(self, tell)
        self._obey_next()

    # What is asked of it.

    def forget(self, owner: UserKey) -> None:
        """Erases a user, if it may, as a node does between two steps."""

        def run() -> None:
            try:
                if self.world.leaves_out:
                    self.worker.leave_out(owner)
                self.shard.forget(owner)
            except (NotOwner, Unavailable):
                # Whoever wants it asks again.
                return
            self.world.to_forget.discard(owner)

        self.worker.call(run)

    def evict(self) -> None:
        """Holds on to one user at most, if its shard is one that has little room."""
        for owner in USERS:
            if self.shard.owns(owner):
                self.shard.memory_of(owner)


def home_of(owner: UserKey) -> int:
    """Returns a user's partition."""
    return partition_of(owner, NUM_PARTITIONS)


def _users() -> Iterator[UserKey]:
    """Yields two users of every partition."""
    places = [0] * NUM_PARTITIONS
    for number in itertools.count():
        owner = UserKey("office", f"user-{number}")
        if places[home_of(owner)] < 2:
            places[home_of(owner)] += 1
            yield owner
        if min(places) == 2:
            return


USERS: Final = tuple(_users())


def _admit(record: JournalRecord) -> Interaction | Parked:
    decided = admit(record.payload, AdmissionLimits())
    if isinstance(decided, Refusal):
        place = (record.partition, record.position, record.owner, record.interaction_id)
        return Parked(*place, decided.reason, decided.detail, record.payload)
    return decided
