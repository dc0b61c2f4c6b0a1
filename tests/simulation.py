"""A cluster in small: the real coordinator, shards and workers, under a clock, a network and crashes drawn from a seed.

No thread, no file and no waiting: everything that happens is drawn from one source of chance. What is learned is a
chain over a user's interactions, so that order, loss and repetition all show.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simulated_process import CORE, NUM_PARTITIONS, SHAPE, USERS, Process, chain, chain_of, home_of
from simulated_stores import MemoryJournal, MemoryStore

from siltstone.errors import Unavailable
from siltstone.memory.shard import ShardConfig
from siltstone.memory.user_memory import from_blob
from siltstone.placement.coordinator import Claim, Coordinator, Order, Seat
from siltstone.placement.settings import ClusterConfig
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, Snapshot, UserKey

CONFIG: Final = ClusterConfig(
    heartbeat_every_s=0.5, stalled_after_s=3.0, assign_budget_s=2.0, release_budget_s=2.0, max_moves=4
)
NUM_SHARDS: Final = 3
STEP_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: equal for equal seeds."""

    chains: dict[UserKey, int]
    epochs: tuple[int, ...]
    num_moves: int
    num_takeovers: int
    num_refused: int


class World:
    """Processes, their coordinator, and everything between them. `step` lets time pass, with or without trouble."""

    def __init__(
        self, seed: int, leaves_out: bool = True, resident_bytes: tuple[int, ...] = (1, 1 << 30), **protections: bool
    ) -> None:
        """`protections` are those of `MemoryStore`. Without `leaves_out` a round keeps what a forgotten
        user brought. `resident_bytes` are those that a shard may have room for: for one user only, or for all.
        """
        self.chance = random.Random(seed)
        self.leaves_out, self._resident_bytes = leaves_out, resident_bytes
        self.now_s = 0.0
        self.journal = MemoryJournal(NUM_PARTITIONS)
        self.store = MemoryStore(NUM_PARTITIONS, **protections)
        self.coordinator = Coordinator(NUM_PARTITIONS, CONFIG)
        self.to_forget: set[UserKey] = set()
        self.ghosts: list[Process] = []
        self.is_lossy = False
        self._said: dict[UserKey, list[Interaction]] = {owner: [] for owner in USERS}
        self._num_said = 0
        self._num_lives = 0
        self._highest = [0] * NUM_PARTITIONS
        self._mail: list[tuple[float, int, Callable[[], None]]] = []
        self._num_letters = 0
        self.processes: dict[str, Process] = {}
        for number in range(NUM_SHARDS):
            self.begin(f"shard-{number}")

    def later(self, most_s: float, do: Callable[[], None]) -> None:
        """Lets something happen within a time."""
        self._num_letters += 1
        heapq.heappush(self._mail, (self.now_s + self.chance.uniform(0.0, most_s), self._num_letters, do))

    # Lives.

    def begin(self, name: str) -> None:
        """Begins a new life of a shard, unless one is there."""
        if name in self.processes and self.processes[name].is_alive:
            return
        self._num_lives += 1
        config = ShardConfig(
            max_resident_bytes=self.chance.choice(self._resident_bytes),
            max_round_interactions=self.chance.choice((1, 3, 8)),
            gather_wait_s=0.05,
            retry_after_s=1.0,
        )
        commit_s = self.chance.choice((0.0, 0.3, 2.0))
        self.processes[name] = Process(self, Seat(name, str(self._num_lives)), config, commit_s)

    def crash(self, process: Process) -> None:
        """Ends a process: what it had in memory is gone. Somebody notices in time, and another life begins."""
        process.is_alive = False
        name = process.seat.shard
        if self.processes.get(name) is process:
            self.later(4.0, lambda: self._miss(process))
            self.later(8.0, lambda: self.begin(name))

    def _miss(self, process: Process) -> None:
        if self.processes.get(process.seat.shard) is process:
            self.coordinator.gone(process.seat.shard)

    def give_up(self, process: Process) -> None:
        """Takes a process for dead that is not: it goes on as a ghost beside its next life."""
        name = process.seat.shard
        if process.is_alive and self.processes.get(name) is process:
            self.ghosts.append(process)
            del self.processes[name]
            self.coordinator.gone(name)
            self.begin(name)

    # What users do.

    def produce(self, owner: UserKey) -> None:
        """Lets a user say something."""
        self._num_said += 1
        messages = (Message(Role.USER, "The depot opens at seven."),)
        name = f"i{self._num_said}"
        said = Interaction(name, owner, InteractionKind.DOCUMENT, 1, messages, consent=Consent(learn=True))
        try:
            self.journal.append([said])
        except Unavailable:
            return
        self._said[owner].append(said)

    def produce_again(self, owner: UserKey) -> None:
        """Puts something into the journal a second time that was said, as a producer does whose answer was lost."""
        if self._said[owner]:
            said = self.chance.choice(self._said[owner])
            record = next(one for one in self.journal.records[home_of(owner)] if one.interaction_id == said.id)
            self.journal.write(owner, said.id, record.payload)

    def produce_poison(self, owner: UserKey) -> None:
        """Puts something into the journal that is no interaction."""
        self._num_said += 1
        self.journal.write(owner, f"poison-{self._num_said}", b"{")

    def want_forgotten(self, owner: UserKey) -> None:
        """Wants a user forgotten, until somebody has done it."""
        self.to_forget.add(owner)
        # Whether a repeat of what is forgotten is one is not promised.
        self._said[owner].clear()

    # How time passes.

    def step(self, has_trouble: bool) -> None:
        """Lets a tenth of a second pass."""
        self.now_s += STEP_S
        self.is_lossy = has_trouble
        if has_trouble:
            self._trouble()
        self.deliver()
        for process in [*self.processes.values(), *self.ghosts]:
            if process.is_up and self.chance.random() < 0.8:
                process.turn()
            if process.is_up and self.now_s >= process.next_beat_s:
                process.next_beat_s = self.now_s + CONFIG.heartbeat_every_s
                self._beat(process)
        for owner in sorted(self.to_forget, key=str):
            if self.chance.random() < 0.2:
                self._ask_to_forget(owner)
        self.conduct()
        self.check_now()

    def deliver(self, is_all: bool = False) -> None:
        """Delivers what is due, or everything there is."""
        while self._mail and (is_all or self._mail[0][0] <= self.now_s):
            heapq.heappop(self._mail)[2]()

    def conduct(self) -> None:
        """Lets the coordinator decide, and sends its orders."""
        for order in self.coordinator.tick(self.now_s):
            self._send(order)

    def _is_lost(self) -> bool:
        return self.is_lossy and self.chance.random() < 0.1

    def _beat(self, process: Process) -> None:
        seat, claim = process.seat, process.claim()
        if not self._is_lost():
            self.later(0.3, lambda: self.hear(process, seat, claim))

    def hear(self, process: Process, seat: Seat, claim: Claim) -> None:
        """Tells the coordinator what a process says, unless that has ended, or another one has its name."""
        if process.is_alive and self.processes.get(seat.shard) is process:
            self.coordinator.heard(seat, claim, self.now_s)

    def _send(self, order: Order) -> None:
        process = self.processes.get(order.seat.shard)

        def arrive() -> None:
            if process is None or process.seat != order.seat or not process.is_alive:
                self.later(0.5, lambda: self.coordinator.failed(order.number, self.now_s))
            elif not process.is_up:
                self.later(process.frozen_until_s - self.now_s + 0.2, arrive)
            else:
                process.obey(order)

        self.later(0.5, arrive)

    def answer(self, process: Process, tell: Callable[[], None]) -> None:
        """Brings the answer to an order, if its process lives and the network does."""
        if process.is_alive and not self._is_lost():
            self.later(0.5, tell)

    def _ask_to_forget(self, owner: UserKey) -> None:
        # Sometimes of one that only believes to own the user.
        seat = self.coordinator.owner_of(home_of(owner))
        process = self.processes.get(seat.shard) if seat is not None else None
        if self.is_lossy and self.chance.random() < 0.5:
            process = self.chance.choice([*self.processes.values(), *self.ghosts])
        if process is not None and process.is_alive:
            process.forget(owner)

    def _trouble(self) -> None:
        chance, owner = self.chance, self.chance.choice(USERS)
        process = chance.choice(sorted(self.processes.values(), key=lambda one: one.seat.shard))
        if chance.random() < 0.5:
            self.produce(owner)
        dice = chance.random()
        for likelihood, happens in (
            (0.01, lambda: self.crash(process) if process.is_alive else None),
            (0.02, lambda: setattr(process.store, "crash", chance.choice(("before", "after")))),
            (0.02, lambda: setattr(process, "frozen_until_s", self.now_s + chance.uniform(0.5, 8.0))),
            (0.01, lambda: self.give_up(process)),
            (0.005, lambda: self._down(self.store)),
            (0.005, lambda: self._down(self.journal)),
            (0.015, lambda: self.store.go_back(chance.randrange(1, 4))),
            (0.02, self.store.flush),
            (0.01, lambda: self._drain(process.seat.shard)),
            (0.01, lambda: self.want_forgotten(owner)),
            (0.03, lambda: self.produce_again(owner)),
            (0.02, lambda: self.produce_poison(owner)),
        ):
            if dice < likelihood:
                happens()
                return
            dice -= likelihood

    def _down(self, part: MemoryStore | MemoryJournal) -> None:
        part.is_down = True
        self.later(3.0, lambda: setattr(part, "is_down", False))

    def _drain(self, shard: str) -> None:
        self.coordinator.drain(shard)
        self.later(6.0, lambda: self.coordinator.undrain(shard))

    # What must hold.

    def check_now(self) -> None:
        """Says what may never be, at any moment."""
        for partition, kept in enumerate(self.store.kept):
            assert kept.epoch >= self._highest[partition], "an epoch went back"
            self._highest[partition] = kept.epoch
            assert kept.position <= len(self.journal.records[partition]), "a position lies behind the journal's end"

    def calm_down(self) -> None:
        """Lets all trouble end, and time pass until nothing is left to do; ghosts live on.

        Everybody says one thing more: a store that has gone back is noticed by the next commit.
        """
        self.store.is_down = self.journal.is_down = False
        for name in [f"shard-{number}" for number in range(NUM_SHARDS)]:
            self.coordinator.undrain(name)
            self.begin(name)
        for process in [*self.processes.values(), *self.ghosts]:
            process.frozen_until_s, process.store.crash = 0.0, ""
        for owner in USERS:
            self.produce(owner)
        for _ in range(1_200):
            self.step(has_trouble=False)
            ends = [len(records) for records in self.journal.records]
            is_absorbed = [kept.position for kept in self.store.kept] == ends
            if self.coordinator.is_even and is_absorbed and not self.to_forget:
                if not (stale := self._stale_owners()):
                    return
                # A ghost has obeyed an old order since: the owner finds out when there is something to commit.
                for owner in USERS:
                    if home_of(owner) in stale:
                        self.produce(owner)
        raise AssertionError("it does not come to rest")

    def _owned(self) -> dict[int, Seat]:
        """Returns who owns what, as the coordinator has it."""
        seats = {partition: self.coordinator.owner_of(partition) for partition in range(NUM_PARTITIONS)}
        return {partition: seat for partition, seat in seats.items() if seat is not None}

    def _stale_owners(self) -> set[int]:
        """Returns the partitions whose owner does not have the newest epoch."""
        return {
            partition
            for partition, seat in self._owned().items()
            if self.processes[seat.shard].shard.epochs.get(partition) != self.store.kept[partition].epoch
        }

    def check_all(self) -> Outcome:
        """Says what must be in the end: everything said was learned once, in order, and nothing else."""
        truth, poison = self._truth()
        found = {owner: self._stored_chain(snapshot) for owner, snapshot in self.store.snapshots.items()}
        wrong = {str(owner) for owner in USERS if found.get(owner, 0) != truth[owner]}
        assert not wrong, f"the memories of {sorted(wrong)} are not what was said"
        parked = sorted((one.partition, one.position) for kept in self.store.kept for one in kept.parked)
        assert parked == poison, f"parked {parked}, and not {poison}"
        assert not self._stale_owners(), f"{sorted(self._stale_owners())} have an owner of an old epoch"
        epochs = tuple(kept.epoch for kept in self.store.kept)
        moves = (self.coordinator.num_moves, self.coordinator.num_takeovers)
        return Outcome(found, epochs, *moves, self.store.num_refused)

    def _truth(self) -> tuple[dict[UserKey, int], list[tuple[int, int]]]:
        truth, poison, seen = dict.fromkeys(USERS, 0), [], set()
        for records in self.journal.records:
            for record in records:
                if not record.payload or (record.owner, record.interaction_id) in seen:
                    continue
                seen.add((record.owner, record.interaction_id))
                if record.interaction_id.startswith("poison"):
                    poison.append((record.partition, record.position))
                else:
                    truth[record.owner] = chain(truth[record.owner], record.interaction_id)
        return truth, poison

    def _stored_chain(self, snapshot: Snapshot) -> int:
        return chain_of(from_blob(snapshot.owner, snapshot.blob, CORE, SHAPE))


def run(seed: int, num_steps: int = 250, **protections: bool) -> Outcome:
    """Runs a world in trouble for some time, lets it calm down, and says what it came to.

    Raises: AssertionError when anything is not as it must be.
    """
    world = World(seed, **protections)
    for _ in range(num_steps):
        world.step(has_trouble=True)
    world.calm_down()
    return world.check_all()
