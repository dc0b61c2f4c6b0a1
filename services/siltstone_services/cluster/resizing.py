"""More shards, or fewer, while the cluster serves: who joins gets a share, who leaves gives up all and then ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import suppress
from copy import copy
from typing import Final

from siltstone.errors import Cancelled, InvalidInput, Unavailable
from siltstone.placement.coordinator import ShardState
from siltstone.placement.settings import ClusterConfig
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.links import ShardFleet

_LOG = logging.getLogger(__name__)
_QUIET_BEATS: Final = 2
"""Times in a row that a leaving shard must say that nobody listens to it: what was sent to it just before may arrive
between two of them."""


class Resizing:
    """How many shards there are to be. One change at a time: a new one takes the place of one that is under way."""

    def __init__(self, conductor: Conductor, fleet: ShardFleet, num_partitions: int, config: ClusterConfig) -> None:
        self._conductor, self._fleet = conductor, fleet
        self._num_partitions, self._config = num_partitions, config
        self._task: asyncio.Task[None] | None = None
        self._wanted = 0
        self._endings: dict[str, asyncio.Task[None]] = {}

    async def to(self, num_shards: int) -> None:
        """Returns once there are so many shards, each with its share, and those that left have ended.

        It goes on when the caller does not wait any more; whoever asks for the same number again waits for it too.
        Raises: InvalidInput for a number that is none of shards. Unavailable when there is no room for them, or they
        do not begin within `cluster.start_budget_s`; those that are there stay. Cancelled when another number was asked
        for meanwhile.
        """
        if not 1 <= num_shards <= self._num_partitions:
            raise InvalidInput("num_shards", f"1 to {self._num_partitions}, the number of partitions", str(num_shards))
        if self._task is not None and not self._task.done() and self._wanted != num_shards:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._task is None or self._task.done():
            self._wanted = num_shards
            self._task = asyncio.create_task(self._change(num_shards))
            self._task.add_done_callback(_told)
        task = self._task
        await asyncio.wait({task})
        if task.cancelled():
            raise Cancelled(f"the change to {num_shards} shards", len(self._conductor.members), num_shards)
        if (error := task.exception()) is not None:
            # A copy: others may wait for the same one.
            raise copy(error)

    async def close(self) -> None:
        """Ends what is under way; shards that are ending may end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await asyncio.gather(*self._endings.values(), return_exceptions=True)

    async def _change(self, num_shards: int) -> None:
        """1. Say who leaves and who stays. 2. Start who is missing. 3. Let go who leaves. 4. Wait for even shares.

        May be cut off anywhere: the next change begins with who is there then.
        """
        conductor, coordinator = self._conductor, self._conductor.coordinator
        # 1.
        leaving = self._leaving(num_shards)
        for name in conductor.members:
            if name in leaving:
                coordinator.drain(name)
            else:
                coordinator.undrain(name)
        conductor.hurry()
        _LOG.info("cluster resizes", extra={"num_shards": num_shards, "leaving": sorted(leaving)})
        # 2.
        while len(conductor.members) - len(leaving) < num_shards:
            name = self._next_name()
            await self._fleet.begin(name)
            conductor.join(name)
        # 3.
        async with asyncio.TaskGroup() as group:
            for name in leaving:
                group.create_task(self._let_leave(name))
        # 4.
        await conductor.wait_for(
            lambda: self._is_at_rest(num_shards),
            self._config.start_budget_s,
            f"the cluster of {num_shards} shards",
            "not all of them serve within cluster.start_budget_s; it goes on",
        )
        _LOG.info("cluster resized", extra={"num_shards": num_shards})

    def _leaving(self, num_shards: int) -> set[str]:
        """Returns who is to leave: who is in trouble first, then whoever came last."""
        states = self._conductor.coordinator.shards
        serving = (ShardState.READY, ShardState.DRAINING)
        order = sorted(self._conductor.members, key=lambda name: (states.get(name) not in serving, _number(name)))
        return set(order[num_shards:])

    def _next_name(self) -> str:
        taken = {*self._conductor.members, *self._endings}
        return next(name for number in itertools.count() if (name := f"shard-{number}") not in taken)

    def _is_at_rest(self, num_shards: int) -> bool:
        states = self._conductor.coordinator.shards
        is_there = len(states) == num_shards and set(states.values()) == {ShardState.READY}
        return is_there and self._conductor.coordinator.is_even

    async def _let_leave(self, name: str) -> None:
        """Ends a shard in three steps, after each of which nothing of it is missed.

        1. Wait until it has let go of everything: the round under way is committed, and others own its partitions.
        2. Let the answers that run on it end, within the budget. 3. Listen to it no more, and end its process.
        """
        conductor = self._conductor
        # 1. Without a limit: the coordinator takes from it what it does not let go, once there is who can have it.
        while conductor.coordinator.holds_any(name):
            await conductor.news()
        # 2.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.leave_budget_s):
                await self._until_quiet(name)
        # 3.
        conductor.part(name)
        self._endings[name] = asyncio.create_task(self._end(name))
        await asyncio.shield(self._endings[name])

    async def _until_quiet(self, name: str) -> None:
        conductor, num_quiet = self._conductor, 0
        last = conductor.beats.get(name)
        while last is not None and num_quiet < _QUIET_BEATS:
            await conductor.news()
            beat = conductor.beats.get(name)
            if beat is not last and beat is not None:
                num_quiet = 0 if beat.num_listeners or beat.claim.epochs else num_quiet + 1
            last = beat

    async def _end(self, name: str) -> None:
        try:
            await self._fleet.end(name)
        except Unavailable as error:
            _LOG.warning("shard not ended", extra={"shard": name, "error": str(error)})
        else:
            _LOG.info("shard left", extra={"shard": name})
        finally:
            self._endings.pop(name, None)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("cluster not resized", extra={"error": str(error)})
