"""The coordinator: gives every partition to one shard, as a state machine that asks nobody and knows no clock.

What it knows it was told: which shards are there, what each says it owns, and what became of the orders it gave. What
keeps memories right is not this but the epochs in the store: whatever it gets wrong costs time, and no interaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from siltstone.placement.balance import share_out, to_release
from siltstone.placement.settings import ClusterConfig


class PartitionState(StrEnum):
    """Where a partition stands."""

    FREE = "free"
    ASSIGNING = "assigning"
    OWNED = "owned"
    RELEASING = "releasing"


class Trigger(StrEnum):
    """What befalls a partition."""

    ASSIGN = "assign"
    CONFIRM = "confirm"
    RELEASE = "release"
    LET_GO = "let go"
    LOSE = "lose"


MOVES: Final[dict[tuple[PartitionState, Trigger], PartitionState]] = {
    (PartitionState.FREE, Trigger.ASSIGN): PartitionState.ASSIGNING,
    # A shard that says it owns what nobody else does has it.
    (PartitionState.FREE, Trigger.CONFIRM): PartitionState.OWNED,
    (PartitionState.ASSIGNING, Trigger.CONFIRM): PartitionState.OWNED,
    (PartitionState.OWNED, Trigger.CONFIRM): PartitionState.OWNED,
    (PartitionState.RELEASING, Trigger.CONFIRM): PartitionState.OWNED,
    (PartitionState.OWNED, Trigger.RELEASE): PartitionState.RELEASING,
    (PartitionState.RELEASING, Trigger.LET_GO): PartitionState.FREE,
    (PartitionState.ASSIGNING, Trigger.LOSE): PartitionState.FREE,
    (PartitionState.OWNED, Trigger.LOSE): PartitionState.FREE,
    (PartitionState.RELEASING, Trigger.LOSE): PartitionState.FREE,
}


class ShardState(StrEnum):
    """Where a shard stands. One that is gone is not known any more."""

    READY = "ready"
    STALLED = "stalled"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Seat:
    """One life of a shard: after a restart it is another incarnation, which owns nothing."""

    shard: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a shard says it owns: the epoch of each partition. `change` counts the changes of it in this life."""

    change: int
    epochs: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Assign:
    """The order to take partitions over."""

    number: int
    seat: Seat
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """The order to let partitions go: what is under way of them is committed first, unless they are others' by now."""

    number: int
    seat: Seat
    partitions: tuple[int, ...]
    is_stray: bool = False


Order = Assign | Release


@dataclass(slots=True, eq=False)
class _Partition:
    state: PartitionState = PartitionState.FREE
    seat: Seat | None = None
    epoch: int = 0
    order: int = 0
    give_up_at_s: float = 0.0
    not_before_s: float = 0.0


@dataclass(slots=True)
class _Shard:
    seat: Seat
    heard_at_s: float
    state: ShardState = ShardState.READY
    change: int = -1
    strays: set[int] = field(default_factory=set)


class Coordinator:
    """Assigns partitions to shards, balanced, with as few moves as that takes. One thread, or one event loop, uses it.

    A partition moves in two steps: its owner lets it go, or is known to be gone, stalled or out of time; then another
    takes it over, under a higher epoch.
    """

    def __init__(self, num_partitions: int, config: ClusterConfig) -> None:
        self._config = config
        self._partitions = [_Partition() for _ in range(num_partitions)]
        self._shards: dict[str, _Shard] = {}
        self._draining: set[str] = set()
        self._is_closing = False
        self._num_orders = 0
        self.num_moves = 0
        """Partitions taken from a living shard so far, to balance or to drain."""
        self.num_takeovers = 0
        """Partitions taken from a shard that was gone, stalled or out of time."""

    # What the router and the operator ask.

    def owner_of(self, partition: int) -> Seat | None:
        """Returns who may be asked about a partition, if anybody may now."""
        found = self._partitions[partition]
        return found.seat if found.state in (PartitionState.OWNED, PartitionState.RELEASING) else None

    def epoch_of(self, partition: int) -> int:
        """Returns the highest epoch of a partition that was heard of."""
        return self._partitions[partition].epoch

    def state_of(self, partition: int) -> PartitionState:
        """Returns where a partition stands."""
        return self._partitions[partition].state

    def partitions_of(self, shard: str) -> tuple[int, ...]:
        """Returns the partitions that a shard owns."""
        return tuple(
            number
            for number, one in enumerate(self._partitions)
            if one.seat is not None and one.seat.shard == shard and self.owner_of(number) is not None
        )

    def holds_any(self, shard: str) -> bool:
        """Says whether a shard owns a partition, is about to, or has not let it go yet."""
        return any(one.seat is not None and one.seat.shard == shard for one in self._partitions)

    @property
    def shards(self) -> dict[str, ShardState]:
        """The shards that are there."""
        return {name: shard.state for name, shard in self._shards.items()}

    @property
    def num_owned(self) -> int:
        """Partitions that somebody owns and is not about to let go."""
        return sum(one.state is PartitionState.OWNED for one in self._partitions)

    @property
    def is_settled(self) -> bool:
        """Whether every partition has its owner and none is on its way."""
        return self.num_owned == len(self._partitions)

    @property
    def is_even(self) -> bool:
        """Whether every partition has its owner, and the shares differ by one at most: nothing is left to be moved."""
        if not self.is_settled:
            return False
        shares = [len(self.partitions_of(name)) for name, one in self._shards.items() if one.state is ShardState.READY]
        return bool(shares) and sum(shares) == len(self._partitions) and max(shares) - min(shares) <= 1

    @property
    def is_empty(self) -> bool:
        """Whether no partition has an owner."""
        return all(one.state is PartitionState.FREE for one in self._partitions)

    # What is heard.

    def heard(self, seat: Seat, claim: Claim, now_s: float) -> None:
        """A shard is there, and says what it owns."""
        shard = self._shards.get(seat.shard)
        if shard is None or shard.seat != seat:
            self.gone(seat.shard)
            state = ShardState.DRAINING if seat.shard in self._draining else ShardState.READY
            shard = self._shards[seat.shard] = _Shard(seat, now_s, state)
        shard.heard_at_s = now_s
        if shard.state is ShardState.STALLED:
            shard.state = ShardState.DRAINING if seat.shard in self._draining else ShardState.READY
        if claim.change >= shard.change:
            # One that is older than what was heard since says nothing about now.
            shard.change = claim.change
            self._reconcile(shard, claim.epochs)

    def _reconcile(self, shard: _Shard, epochs: Mapping[int, int]) -> None:
        shard.strays.clear()
        for number, one in enumerate(self._partitions):
            epoch = epochs.get(number)
            is_here = one.seat == shard.seat
            if epoch is None:
                if is_here and one.state in (PartitionState.OWNED, PartitionState.RELEASING):
                    self._move(one, Trigger.LOSE)
            elif is_here:
                if one.state is PartitionState.ASSIGNING:
                    # Its answer is on the way, or was lost.
                    self._confirm(one, shard.seat, epoch)
                one.epoch = max(one.epoch, epoch)
            elif one.state is PartitionState.FREE and epoch >= one.epoch and not self._is_closing:
                self._confirm(one, shard.seat, epoch)
            elif one.state is not PartitionState.ASSIGNING and epoch > one.epoch:
                # Whoever has it in our books was fenced, and does not know it yet.
                if one.seat is not None and (other := self._shards.get(one.seat.shard)) is not None:
                    other.strays.add(number)
                self._confirm(one, shard.seat, epoch)
            else:
                shard.strays.add(number)

    def gone(self, shard: str) -> None:
        """A shard's process has ended, or is another one now."""
        if self._shards.pop(shard, None) is not None:
            self._take_all(shard)

    def assigned(self, number: int, claim: Claim, now_s: float) -> None:
        """An order to assign was carried out: the claim holds the epochs of its partitions, and of no others."""
        for partition, one in self._ordered(number):
            epoch = claim.epochs.get(partition)
            if one.state is not PartitionState.ASSIGNING or one.seat is None:
                continue
            if epoch is None or epoch < one.epoch:
                self._move(one, Trigger.LOSE)
                one.not_before_s = now_s + self._config.heartbeat_every_s
                continue
            shard = self._shards.get(one.seat.shard)
            if shard is not None and shard.seat == one.seat:
                shard.change = max(shard.change, claim.change)
            self._confirm(one, one.seat, epoch)

    def released(self, number: int, change: int) -> None:
        """An order to release was carried out."""
        for _, one in self._ordered(number):
            if one.state is not PartitionState.RELEASING or one.seat is None:
                continue
            shard = self._shards.get(one.seat.shard)
            if shard is not None and shard.seat == one.seat:
                shard.change = max(shard.change, change)
            self._move(one, Trigger.LET_GO)

    def failed(self, number: int, now_s: float) -> None:
        """An order could not be carried out, or nobody knows whether it was."""
        for _, one in self._ordered(number):
            if one.state in (PartitionState.ASSIGNING, PartitionState.RELEASING):
                self._move(one, Trigger.LOSE)
                one.not_before_s = now_s + self._config.heartbeat_every_s

    # What is wanted.

    def drain(self, shard: str) -> None:
        """Takes everything from a shard, bit by bit, and gives it nothing any more."""
        self._draining.add(shard)
        if shard in self._shards:
            self._shards[shard].state = ShardState.DRAINING

    def undrain(self, shard: str) -> None:
        """Lets a shard have partitions again."""
        self._draining.discard(shard)
        if shard in self._shards and self._shards[shard].state is ShardState.DRAINING:
            self._shards[shard].state = ShardState.READY

    def close(self) -> None:
        """Takes everything from everybody: nobody gets anything any more."""
        self._is_closing = True

    def tick(self, now_s: float) -> list[Order]:
        """Returns what is to be done now. Every order is to be answered by `assigned`, `released` or `failed`."""
        for name, shard in self._shards.items():
            if shard.state is not ShardState.STALLED and now_s - shard.heard_at_s > self._config.stalled_after_s:
                shard.state = ShardState.STALLED
                self._take_all(name)
        for one in self._partitions:
            if one.state in (PartitionState.ASSIGNING, PartitionState.RELEASING) and now_s >= one.give_up_at_s:
                self.num_takeovers += one.state is PartitionState.RELEASING
                self._move(one, Trigger.LOSE)
        return [*self._release_strays(), *self._assign(now_s), *self._release(now_s)]

    def _release_strays(self) -> list[Order]:
        orders: list[Order] = []
        for shard in self._shards.values():
            if shard.strays and shard.state is not ShardState.STALLED:
                self._num_orders += 1
                orders.append(Release(self._num_orders, shard.seat, tuple(sorted(shard.strays)), is_stray=True))
                shard.strays.clear()
        return orders

    def _assign(self, now_s: float) -> list[Order]:
        counts = self._counts()
        if self._is_closing or not counts:
            return []
        free = [
            number
            for number, one in enumerate(self._partitions)
            if one.state is PartitionState.FREE and now_s >= one.not_before_s
        ]
        orders: list[Order] = []
        for name, numbers in share_out(free, counts).items():
            seat = self._shards[name].seat
            self._num_orders += 1
            for number in numbers:
                one = self._partitions[number]
                self._move(one, Trigger.ASSIGN)
                one.seat, one.order = seat, self._num_orders
                one.give_up_at_s = now_s + self._config.assign_budget_s
            orders.append(Assign(self._num_orders, seat, numbers))
        return orders

    def _release(self, now_s: float) -> list[Order]:
        moving = (PartitionState.ASSIGNING, PartitionState.RELEASING)
        num_left = self._config.max_moves - sum(one.state in moving for one in self._partitions)
        leaving = [name for name, shard in self._shards.items() if shard.state is ShardState.DRAINING]
        counts = self._counts()
        if self._is_closing:
            leaving, counts, num_left = list(self._shards), {}, len(self._partitions)
        elif not counts:
            # Nobody could take what is let go: better a shard that is to go than none.
            return []
        owned = {
            name: [number for number in self.partitions_of(name) if self.state_of(number) is PartitionState.OWNED]
            for name in (*counts, *leaving)
        }
        orders: list[Order] = []
        for name, numbers in to_release(owned, leaving, len(self._partitions), num_left).items():
            seat = self._shards[name].seat
            self._num_orders += 1
            for number in numbers:
                one = self._partitions[number]
                self._move(one, Trigger.RELEASE)
                one.order, one.give_up_at_s = self._num_orders, now_s + self._config.release_budget_s
            self.num_moves += len(numbers)
            orders.append(Release(self._num_orders, seat, numbers))
        return orders

    def _counts(self) -> dict[str, int]:
        """Returns how many partitions every shard has that may get more, those on their way to it included."""
        counts = {name: 0 for name, shard in sorted(self._shards.items()) if shard.state is ShardState.READY}
        for one in self._partitions:
            is_there = one.state in (PartitionState.OWNED, PartitionState.ASSIGNING)
            if is_there and one.seat is not None and one.seat.shard in counts:
                counts[one.seat.shard] += 1
        return counts

    def _ordered(self, number: int) -> Iterable[tuple[int, _Partition]]:
        return [(partition, one) for partition, one in enumerate(self._partitions) if one.order == number]

    def _take_all(self, shard: str) -> None:
        for one in self._partitions:
            if one.seat is not None and one.seat.shard == shard and one.state is not PartitionState.FREE:
                self._move(one, Trigger.LOSE)
                self.num_takeovers += 1

    def _confirm(self, one: _Partition, seat: Seat, epoch: int) -> None:
        self._move(one, Trigger.CONFIRM)
        one.seat, one.epoch = seat, max(one.epoch, epoch)

    def _move(self, one: _Partition, trigger: Trigger) -> None:
        one.state = MOVES[one.state, trigger]
        one.order = 0
        if one.state is PartitionState.FREE:
            one.seat = None
