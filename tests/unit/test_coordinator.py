"""The coordinator: every partition gets one owner, moves as little as it must, and is found again after any trouble."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from siltstone.placement.coordinator import (
    MOVES,
    Assign,
    Claim,
    Coordinator,
    Order,
    PartitionState,
    Release,
    Seat,
    ShardState,
    Trigger,
)
from siltstone.placement.settings import ClusterConfig

CONFIG = ClusterConfig(stalled_after_s=3.0, assign_budget_s=2.0, release_budget_s=2.0, max_moves=8)


class Told:
    """A coordinator whose orders are carried out at once, by shards that are never in trouble unless a test says so."""

    def __init__(self, num_partitions: int = 24, config: ClusterConfig = CONFIG) -> None:
        self.coordinator = Coordinator(num_partitions, config)
        self.epochs = dict.fromkeys(range(num_partitions), 0)
        self.owned: dict[Seat, dict[int, int]] = {}
        self.changes: dict[Seat, int] = {}
        self.now_s = 0.0
        self.orders: list[Order] = []

    def beat(self, *shards: str, incarnation: str = "1") -> None:
        for name in shards:
            seat = Seat(name, incarnation)
            owned = self.owned.setdefault(seat, {})
            self.coordinator.heard(seat, Claim(self.changes.setdefault(seat, 0), dict(owned)), self.now_s)

    def carry_out(self, order: Order) -> None:
        owned = self.owned[order.seat]
        self.changes[order.seat] += 1
        for number in order.partitions:
            if isinstance(order, Release):
                owned.pop(number, None)
            else:
                self.epochs[number] += 1
                owned[number] = self.epochs[number]
        if isinstance(order, Assign):
            self.coordinator.assigned(order.number, Claim(self.changes[order.seat], dict(owned)), self.now_s)
        else:
            self.coordinator.released(order.number, self.changes[order.seat])

    def tick(self) -> list[Order]:
        orders = self.coordinator.tick(self.now_s)
        self.orders += orders
        return orders

    def settle(self) -> None:
        for _ in range(100):
            orders = self.tick()
            if not orders:
                return
            for order in orders:
                self.carry_out(order)
        raise AssertionError("it does not come to rest")

    def shares(self) -> dict[str, int]:
        return {name: len(self.coordinator.partitions_of(name)) for name in self.coordinator.shards}


def test_every_partition_gets_an_owner_and_the_shares_differ_by_one_at_most() -> None:
    told = Told(num_partitions=25)
    told.beat("a", "b", "c")
    told.settle()
    assert told.coordinator.is_settled
    assert sorted(told.shares().values()) == [8, 8, 9]
    assert set(told.epochs.values()) == {1}


def test_who_joins_gets_a_share_and_nothing_else_moves() -> None:
    told = Told()
    told.beat("a", "b", "c")
    told.settle()
    before = {number: told.coordinator.owner_of(number) for number in range(24)}
    told.beat("d")
    told.settle()
    moved = [number for number in range(24) if told.coordinator.owner_of(number) != before[number]]
    assert told.shares() == {"a": 6, "b": 6, "c": 6, "d": 6}
    assert len(moved) == 6 == told.coordinator.num_moves
    assert all(told.coordinator.owner_of(number) == Seat("d", "1") for number in moved)


def test_a_partition_is_let_go_before_another_takes_it_and_only_some_move_at_a_time() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    told.beat("b")
    (release,) = told.tick()
    assert isinstance(release, Release)
    assert len(release.partitions) == CONFIG.max_moves
    assert told.tick() == []
    # Until it has let go, it is the one to be asked.
    assert {told.coordinator.owner_of(number) for number in release.partitions} == {Seat("a", "1")}
    told.carry_out(release)
    assert {told.coordinator.owner_of(number) for number in release.partitions} == {None}
    assign = next(order for order in told.tick() if isinstance(order, Assign))
    assert (assign.seat, assign.partitions) == (Seat("b", "1"), release.partitions)


def test_who_does_not_let_go_in_time_loses_it() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    told.beat("b")
    (release,) = told.tick()
    told.now_s = CONFIG.release_budget_s
    told.beat("a", "b")
    assigns = [order for order in told.tick() if isinstance(order, Assign)]
    assert {number for order in assigns for number in order.partitions} == set(release.partitions)
    # Its answer, when it comes at last, changes nothing.
    told.coordinator.released(release.number, 99)
    assert told.coordinator.state_of(release.partitions[0]) is PartitionState.ASSIGNING


def test_what_a_dead_shard_had_goes_to_the_others_at_once_and_it_gets_a_share_when_it_is_back() -> None:
    told = Told()
    told.beat("a", "b")
    told.settle()
    told.coordinator.gone("a")
    told.settle()
    assert told.shares() == {"b": 24}
    told.beat("a", incarnation="2")
    told.settle()
    assert told.shares() == {"a": 12, "b": 12}


def test_a_shard_that_is_back_in_a_new_life_owns_nothing_of_its_last_one() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    told.beat("a", incarnation="2")
    assert told.coordinator.is_empty
    told.settle()
    assert set(told.epochs.values()) == {2}


def test_a_stalled_shard_loses_all_and_what_it_still_claims_later_is_taken_from_it() -> None:
    told = Told()
    told.beat("a", "b")
    told.settle()
    told.now_s = CONFIG.stalled_after_s + 0.1
    told.beat("b")
    told.settle()
    assert told.coordinator.shards["a"] is ShardState.STALLED
    assert told.shares() == {"a": 0, "b": 24}
    told.beat("a")
    stray = next(order for order in told.tick() if isinstance(order, Release) and order.is_stray)
    assert (stray.seat, len(stray.partitions)) == (Seat("a", "1"), 12)
    told.carry_out(stray)
    told.now_s += 1
    told.beat("a", "b")
    for order in [order for order in told.orders[-1:] if not isinstance(order, Release) or not order.is_stray]:
        told.carry_out(order)
    told.settle()
    assert told.shares() == {"a": 12, "b": 12}


def test_a_shard_that_was_only_late_keeps_what_nobody_else_has_taken() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    told.now_s = CONFIG.stalled_after_s + 0.1
    assert told.tick() == []
    assert told.coordinator.is_empty
    told.beat("a")
    assert told.coordinator.is_settled
    assert set(told.epochs.values()) == {1}


def test_a_partition_that_its_owner_has_lost_is_assigned_anew() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    seat = Seat("a", "1")
    del told.owned[seat][3]
    told.changes[seat] += 1
    told.beat("a")
    assert told.coordinator.owner_of(3) is None
    told.settle()
    assert told.epochs[3] == 2


def test_what_was_heard_too_late_says_nothing() -> None:
    told = Told()
    told.beat("a")
    (assign,) = told.tick()
    old = Claim(0, {})
    told.carry_out(assign)
    told.coordinator.heard(Seat("a", "1"), old, told.now_s)
    assert told.coordinator.is_settled


def test_an_order_whose_answer_was_lost_is_seen_in_what_the_shard_says() -> None:
    told = Told()
    told.beat("a")
    (assign,) = told.tick()
    told.owned[assign.seat] = dict.fromkeys(assign.partitions, 1)
    told.changes[assign.seat] += 1
    told.beat("a")
    assert told.coordinator.is_settled


def test_a_higher_epoch_says_who_the_owner_is() -> None:
    told = Told(num_partitions=2)
    told.beat("a", "b")
    told.settle()
    ((mine, _),) = told.owned[Seat("a", "1")].items()
    # An order from before a stall, carried out after it.
    told.owned[Seat("b", "1")][mine] = 7
    told.changes[Seat("b", "1")] += 1
    told.beat("b")
    assert told.coordinator.owner_of(mine) == Seat("b", "1")
    assert told.coordinator.epoch_of(mine) == 7
    stray = next(order for order in told.tick() if isinstance(order, Release) and order.is_stray)
    assert (stray.seat, stray.partitions) == (Seat("a", "1"), (mine,))


def test_a_drained_shard_ends_with_nothing_and_gets_nothing_also_after_a_restart() -> None:
    told = Told()
    told.beat("a", "b")
    told.settle()
    told.coordinator.drain("a")
    told.settle()
    assert told.shares() == {"a": 0, "b": 24}
    told.beat("a", incarnation="2")
    told.settle()
    assert told.shares() == {"b": 24, "a": 0}
    told.coordinator.undrain("a")
    told.settle()
    assert told.shares() == {"b": 12, "a": 12}


def test_the_last_shard_is_not_drained_while_there_is_no_other() -> None:
    told = Told()
    told.beat("a")
    told.settle()
    told.coordinator.drain("a")
    told.settle()
    assert told.shares() == {"a": 24}


def test_what_is_left_to_be_moved_is_told() -> None:
    told = Told()
    told.beat("a")
    (assign,) = told.tick()
    assert told.coordinator.holds_any("a")
    assert not told.coordinator.is_even
    told.carry_out(assign)
    assert told.coordinator.is_even
    told.beat("b")
    assert told.coordinator.is_settled
    assert not told.coordinator.is_even
    told.settle()
    assert told.coordinator.is_even
    told.coordinator.drain("a")
    assert not told.coordinator.is_even
    told.settle()
    assert told.coordinator.is_even
    assert not told.coordinator.holds_any("a")


def test_closing_takes_everything_from_everybody() -> None:
    told = Told()
    told.beat("a", "b")
    told.settle()
    told.coordinator.close()
    told.settle()
    assert told.coordinator.is_empty
    told.beat("a", "b")
    assert told.coordinator.is_empty


def test_an_order_that_failed_is_given_again_a_little_later() -> None:
    told = Told()
    told.beat("a")
    (assign,) = told.tick()
    told.coordinator.failed(assign.number, told.now_s)
    assert told.tick() == []
    told.now_s += CONFIG.heartbeat_every_s
    (again,) = told.tick()
    assert isinstance(again, Assign)
    assert again.partitions == assign.partitions


def test_every_move_is_in_the_table_and_from_everywhere_there_is_a_way_back() -> None:
    for state in PartitionState:
        if state is not PartitionState.FREE:
            assert MOVES[state, Trigger.LOSE] is PartitionState.FREE
    assert (PartitionState.FREE, Trigger.RELEASE) not in MOVES


# Many shards in trouble, under a clock of their own.


@dataclass
class SimShard:
    name: str
    incarnation: int = 0
    owned: dict[int, int] = field(default_factory=dict)
    change: int = 0
    is_alive: bool = True
    frozen_until_s: float = 0.0

    @property
    def seat(self) -> Seat:
        return Seat(self.name, str(self.incarnation))


class Simulation:
    """Shards that die, freeze, answer late or never, and lose partitions, over a store whose epochs fence."""

    def __init__(self, seed: int, num_partitions: int = 16, num_shards: int = 4, is_fenced: bool = True) -> None:
        self.rng = random.Random(seed)
        self.coordinator = Coordinator(num_partitions, CONFIG)
        self.shards = [SimShard(f"s{number}") for number in range(num_shards)]
        self.epochs = [0] * num_partitions
        self.writers: list[set[Seat]] = [set() for _ in range(num_partitions)]
        self.is_fenced = is_fenced
        self.num_stale_writes = 0
        self.mail: list[tuple[float, int, Callable[[], None]]] = []
        self.now_s = 0.0
        self.next_beat_s: dict[str, float] = {}
        self.highest = [0] * num_partitions

    def later(self, most_s: float, do: Callable[[], None]) -> None:
        self.mail.append((self.now_s + self.rng.uniform(0.0, most_s), len(self.mail), do))

    def step(self, has_faults: bool) -> list[Order]:
        self.now_s += 0.1
        if has_faults:
            self.trouble()
        due = sorted(one for one in self.mail if one[0] <= self.now_s)
        self.mail = [one for one in self.mail if one[0] > self.now_s]
        for _, _, do in due:
            do()
        for shard in self.shards:
            self.work(shard)
            self.beat(shard, has_faults)
        orders = self.coordinator.tick(self.now_s)
        for order in orders:
            self.send(order, has_faults)
        for number in range(len(self.epochs)):
            epoch = self.coordinator.epoch_of(number)
            assert epoch >= self.highest[number], "an epoch went back"
            self.highest[number] = epoch
        return orders

    def trouble(self) -> None:
        shard = self.rng.choice(self.shards)
        dice = self.rng.random()
        if dice < 0.01 and shard.is_alive:
            shard.is_alive = False
            self.later(4.0, lambda: self.coordinator.gone(shard.name))
            self.later(8.0, lambda: self.restart(shard))
        elif dice < 0.03:
            shard.frozen_until_s = self.now_s + self.rng.uniform(0.5, 8.0)
        elif dice < 0.035:
            self.coordinator.drain(shard.name)
            self.later(6.0, lambda: self.coordinator.undrain(shard.name))

    def restart(self, shard: SimShard) -> None:
        shard.incarnation += 1
        shard.owned, shard.change, shard.is_alive = {}, 0, True

    def is_up(self, shard: SimShard) -> bool:
        return shard.is_alive and self.now_s >= shard.frozen_until_s

    def work(self, shard: SimShard) -> None:
        """Writes to one partition it believes to own; the store refuses an epoch that is not the newest."""
        if not self.is_up(shard) or not shard.owned:
            return
        number = self.rng.choice(sorted(shard.owned))
        if shard.owned[number] == self.epochs[number]:
            return
        if self.is_fenced:
            del shard.owned[number]
            shard.change += 1
        else:
            self.num_stale_writes += 1

    def beat(self, shard: SimShard, has_faults: bool) -> None:
        if not self.is_up(shard) or self.now_s < self.next_beat_s.get(shard.name, 0.0):
            return
        self.next_beat_s[shard.name] = self.now_s + CONFIG.heartbeat_every_s
        if has_faults and self.rng.random() < 0.1:
            return
        seat, claim = shard.seat, Claim(shard.change, dict(shard.owned))
        self.later(0.3, lambda: self.hear(shard, seat, claim))

    def hear(self, shard: SimShard, seat: Seat, claim: Claim) -> None:
        # What a process said before it ended is not delivered after the next one has spoken.
        if seat == shard.seat and shard.is_alive:
            self.coordinator.heard(seat, claim, self.now_s)

    def send(self, order: Order, has_faults: bool) -> None:
        shard = next(one for one in self.shards if one.name == order.seat.shard)
        is_lost = has_faults and self.rng.random() < 0.1

        def arrive() -> None:
            if shard.seat != order.seat or not shard.is_alive:
                self.later(0.5, lambda: self.coordinator.failed(order.number, self.now_s))
            elif self.now_s < shard.frozen_until_s:
                self.later(shard.frozen_until_s - self.now_s + 0.2, arrive)
            else:
                self.carry_out(shard, order, is_lost)

        self.later(0.5, arrive)

    def carry_out(self, shard: SimShard, order: Order, is_lost: bool) -> None:
        shard.change += 1
        for number in order.partitions:
            if isinstance(order, Release):
                shard.owned.pop(number, None)
            elif number not in shard.owned:
                self.epochs[number] += 1
                shard.owned[number] = self.epochs[number]
        claim = Claim(shard.change, dict(shard.owned))
        if is_lost:
            return
        if isinstance(order, Assign):
            self.later(0.5, lambda: self.coordinator.assigned(order.number, claim, self.now_s))
        else:
            self.later(0.5, lambda: self.coordinator.released(order.number, claim.change))

    def owners(self) -> Mapping[int, Seat | None]:
        return {number: self.coordinator.owner_of(number) for number in range(len(self.epochs))}


def calm_down(simulation: Simulation) -> None:
    """Lets all trouble end: everybody lives, thaws and is wanted."""
    for shard in simulation.shards:
        if not shard.is_alive:
            simulation.restart(shard)
        shard.frozen_until_s = 0.0
        simulation.coordinator.undrain(shard.name)
    for _ in range(400):
        simulation.step(has_faults=False)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_whatever_happens_to_shards_every_partition_ends_with_one_owner_of_the_newest_epoch(first: int) -> None:
    for seed in range(first, first + 50):
        simulation = Simulation(seed)
        for _ in range(300):
            simulation.step(has_faults=True)
        calm_down(simulation)
        by_seat = {shard.seat: shard for shard in simulation.shards}
        where = f"seed {seed}"
        assert simulation.coordinator.is_settled, where
        shares = sorted(len(simulation.coordinator.partitions_of(shard.name)) for shard in simulation.shards)
        assert shares == [4, 4, 4, 4], where
        for number, seat in simulation.owners().items():
            assert seat is not None, where
            assert by_seat[seat].owned[number] == simulation.epochs[number], where
        assert not [order for _ in range(100) for order in simulation.step(has_faults=False)], where


def test_without_the_fence_a_stale_owner_writes() -> None:
    num_stale = 0
    for seed in range(20):
        simulation = Simulation(seed, is_fenced=False)
        for _ in range(300):
            simulation.step(has_faults=True)
        num_stale += simulation.num_stale_writes
    assert num_stale > 0
