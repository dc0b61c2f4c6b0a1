"""The conductor: listens to the shards, tells the coordinator, and carries out what it orders."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import SiltstoneError, Unavailable
from siltstone.memory.shard import Damage
from siltstone.placement.coordinator import Assign, Coordinator, Order, Seat, ShardState
from siltstone.placement.settings import ClusterConfig
from siltstone.ports import Journal
from siltstone_services.beat import Beat
from siltstone_services.cluster.links import ShardFleet, ShardGone, ShardLink
from siltstone_services.cluster.silence import Silence

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_ENDS_EVERY_S: Final = 1.0
_AGES_EVERY_S: Final = 60.0
_STARTS_ANEW_AFTER_S: Final = 1.0


async def within(budget_s: float, work: Awaitable[T]) -> T:
    """Returns what comes of work, if it does in time. A cancellation is never lost, as it may be to `asyncio.wait_for`.

    Raises: TimeoutError.
    """
    async with asyncio.timeout(budget_s):
        return await work


class Conductor:
    """Runs from `async with` on. Uses one event loop; what it knows of shards is never older than a heartbeat or two.

    Shards start one after the other the first time: the first builds what all of them read.
    """

    def __init__(
        self,
        num_partitions: int,
        fleet: ShardFleet,
        journal: Journal,
        config: ClusterConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells the seconds by which partitions are silent."""
        self._fleet, self._journal, self._config, self._clock = fleet, journal, config, clock
        self.coordinator = Coordinator(num_partitions, config)
        self.beats: dict[str, Beat] = {}
        """What each shard that is there said last."""
        self.rates: dict[str, tuple[float, float]] = {}
        """Interactions absorbed and tokens answered in a second, by shard, of the last seconds."""
        self.positions: dict[int, int] = {}
        """The highest position of each partition that was committed, as far as heard."""
        self.ends: dict[int, int] = {}
        """Where each partition ends, as far as known."""
        self.damaged: dict[int, Damage] = {}
        self.troubles: dict[str, Unavailable] = {}
        """What each shard's journal or store could not do when last it could not: a new one is a new object."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._suspects: dict[str, asyncio.Event] = {}
        self._listeners: dict[str, tuple[asyncio.Task[None], ...]] = {}
        self._has_first = asyncio.Event()
        self._samples: dict[str, tuple[float, Beat]] = {}
        self._failing: dict[tuple[str, str], str] = {}
        """Why a shard's last order of a kind failed, until one succeeds."""
        self._silence = Silence(config.silent_after_s)

    async def __aenter__(self) -> Conductor:
        for number, name in enumerate(self._fleet.names):
            self._listen_to(name, is_first=number == 0)
        self._start(self._conduct())
        self._start(self._look_at_ends())
        self._start(self._look_at_ages())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("conductor failed", extra={"error": f"{type(error).__name__}: {error}"})

    # Shards come and go.

    @property
    def members(self) -> tuple[str, ...]:
        """The shards that are listened to, whether they are there or not."""
        return tuple(self._listeners)

    def join(self, name: str) -> None:
        """Listens to a shard from now on: it gets its share as soon as it says that it is there."""
        self._listen_to(name, is_first=False)

    def _listen_to(self, name: str, is_first: bool) -> None:
        self._suspects[name] = asyncio.Event()
        self._listeners[name] = (self._start(self._listen(name, is_first)), self._start(self._watch(name)))

    def part(self, name: str) -> None:
        """Listens to a shard no more: it is to end, and not to begin anew."""
        for task in self._listeners.pop(name):
            task.cancel()
        del self._suspects[name]
        said: tuple[dict[str, Any], ...] = (self.beats, self.rates, self.troubles, self._samples)
        for by_name in said:
            by_name.pop(name, None)
        for kind in ("assign", "release"):
            self._failing.pop((name, kind), None)
        self.coordinator.gone(name)
        # Another one may bear its name some day.
        self.coordinator.undrain(name)
        self.hurry()
        self.tell()

    # What others ask.

    async def wait_for(self, is_so: Callable[[], bool], budget_s: float, what: str, reason: str) -> None:
        """Returns once something is so. It is looked at whenever anything has changed.

        Raises: Unavailable(what, reason) when it is not within the budget.
        """
        try:
            async with asyncio.timeout(budget_s):
                while not is_so():
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable(what, reason) from None

    async def news(self) -> None:
        """Returns when anything has changed."""
        await self._changed.wait()

    async def owner_of(self, partition: int, budget_s: float, not_this: Seat | None = None) -> Seat:
        """Returns who may be asked about a partition, as soon as somebody may.

        `not_this` has just said that it is not the one: it is asked again only when it says anew that it is.
        Raises: Unavailable when there is nobody within the budget.
        """
        if not_this is not None:
            self.suspect(not_this.shard)
            with suppress(Unavailable):
                # It may be right, and we be behind: then its next word changes that. If not, it is asked again.
                soon_s = min(budget_s, 2 * self._config.heartbeat_every_s)
                await self.wait_for(
                    lambda: self.coordinator.owner_of(partition) not in (None, not_this), soon_s, "", ""
                )
        what = f"the shard of partition {partition}"
        await self.wait_for(
            lambda: self.coordinator.owner_of(partition) is not None, budget_s, what, "none owns it now"
        )
        owner = self.coordinator.owner_of(partition)
        assert owner is not None
        return owner

    async def fresh_beats(self) -> list[Beat]:
        """Asks every shard that is there how it is now; of one that does not answer soon, what it said last."""

        async def ask(name: str, last: Beat) -> Beat:
            try:
                beat = await within(self._config.heartbeat_every_s, self._fleet.link(name).beat())
            except (SiltstoneError, TimeoutError):
                return last
            return beat or last

        return await asyncio.gather(*(ask(name, last) for name, last in self.beats.items()))

    def suspect(self, name: str) -> None:
        """Somebody had trouble with a shard: it is asked at once how it is."""
        if name in self._suspects:
            self._suspects[name].set()

    def link(self, name: str) -> ShardLink:
        """Returns how a shard is reached now."""
        return self._fleet.link(name)

    def lag_of(self, partitions: tuple[int, ...]) -> int:
        """Returns how many records of partitions wait, as far as known; a damaged one's wait for somebody."""
        return sum(
            max(0, self.ends.get(partition, 0) - self.positions[partition])
            for partition in partitions
            if partition in self.positions and partition not in self.damaged
        )

    def tell(self) -> None:
        """Says that something has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def hurry(self) -> None:
        """Lets the coordinator decide at once."""
        self._hurry.set()

    async def close(self, budget_s: float) -> None:
        """Lets every shard release what it owns, within the budget."""
        self.coordinator.close()
        self.hurry()
        with suppress(Unavailable):
            await self.wait_for(lambda: self.coordinator.is_empty, budget_s, "", "")

    # What it does all the time.

    async def _listen(self, name: str, is_first: bool) -> None:
        """Asks a shard how it is, again and again."""
        if not is_first:
            await self._has_first.wait()
        silent_since_s = time.monotonic()
        while True:
            self._suspects[name].clear()
            try:
                beat = await within(self._config.stalled_after_s, self._fleet.link(name).beat())
                now_s = time.monotonic()
                if beat is not None:
                    self._hear(name, beat, now_s)
                    silent_since_s = now_s
                elif now_s - silent_since_s > self._config.start_budget_s:
                    raise TimeoutError
            except ShardGone as error:
                self._lose(name, str(error))
                await self._begin_anew(name, is_gone=True)
                silent_since_s = time.monotonic()
            except TimeoutError:
                # The coordinator knows by now that it is stalled, and its partitions are others'.
                if time.monotonic() - silent_since_s > 2 * self._config.stalled_after_s:
                    _LOG.error("shard stalled", extra={"shard": name})
                    self._lose(name, "it does not answer")
                    await self._begin_anew(name, is_gone=False)
                    silent_since_s = time.monotonic()
            except SiltstoneError as error:
                _LOG.error("shard does not start", extra={"shard": name, "error": str(error)})
                await asyncio.sleep(_STARTS_ANEW_AFTER_S)
            with suppress(TimeoutError):
                await within(self._config.heartbeat_every_s, self._suspects[name].wait())

    def _hear(self, name: str, beat: Beat, now_s: float) -> None:
        if name not in self.coordinator.shards or beat.incarnation != self.beats[name].incarnation:
            _LOG.info("shard ready", extra={"shard": name, "core": beat.core})
            self._samples.pop(name, None)
        self._has_first.set()
        self.beats[name] = beat
        self._rate(name, beat, now_s)
        self._note(beat.positions)
        self.coordinator.heard(Seat(name, beat.incarnation), beat.claim, now_s)
        self.hurry()
        self.tell()

    def _note(self, positions: Mapping[int, int]) -> None:
        for partition, at in positions.items():
            self.positions[partition] = max(self.positions.get(partition, 0), at)

    def _rate(self, name: str, beat: Beat, now_s: float) -> None:
        before_s, before = self._samples.setdefault(name, (now_s, beat))
        if (elapsed_s := now_s - before_s) >= 2.0:
            absorbed, answered = beat.num_absorbed - before.num_absorbed, beat.answered_tokens - before.answered_tokens
            self.rates[name] = (absorbed / elapsed_s, answered / elapsed_s)
            self._samples[name] = (now_s, beat)

    def _lose(self, name: str, reason: str) -> None:
        if name in self.coordinator.shards:
            _LOG.warning("shard gone", extra={"shard": name, "reason": reason})
        self.coordinator.gone(name)
        self.beats.pop(name, None)
        self.rates.pop(name, None)
        self.hurry()
        self.tell()

    async def _begin_anew(self, name: str, is_gone: bool) -> None:
        """Lets a shard start anew; where whoever runs it does that by itself, that is not disturbed."""
        try:
            await self._fleet.restart(name, is_gone)
        except Unavailable as error:
            _LOG.error("shard cannot be started", extra={"shard": name, "error": str(error)})
            await asyncio.sleep(_STARTS_ANEW_AFTER_S)

    async def _watch(self, name: str) -> None:
        """Hears of a shard's commits as they are made."""
        while True:
            try:
                async for progress in self._fleet.link(name).watch():
                    self._note(progress.positions)
                    mine = self.beats[name].claim.epochs if name in self.beats else {}
                    for partition in [one for one in self.damaged if one in mine]:
                        del self.damaged[partition]
                    self.damaged.update(progress.damaged)
                    if progress.trouble is not None:
                        self.troubles[name] = progress.trouble
                        self._silence.excuse(mine, self._clock())
                    self.tell()
            except SiltstoneError:
                # Who listens for its beats sees to it.
                await asyncio.sleep(self._config.heartbeat_every_s / 2)

    async def _conduct(self) -> None:
        while True:
            with suppress(TimeoutError):
                await within(self._config.heartbeat_every_s, self._hurry.wait())
            self._hurry.clear()
            before = self.coordinator.shards
            for order in self.coordinator.tick(time.monotonic()):
                self._start(self._carry_out(order))
            for name, state in self.coordinator.shards.items():
                if state is ShardState.STALLED and before.get(name) is not state:
                    _LOG.warning("shard late", extra={"shard": name})
            self.tell()

    async def _carry_out(self, order: Order) -> None:
        name, config = order.seat.shard, self._config
        kind = "assign" if isinstance(order, Assign) else "release"
        told = {"shard": name, "num_partitions": len(order.partitions)}
        try:
            link = self._fleet.link(name)
            if isinstance(order, Assign):
                claim = await within(config.assign_budget_s, link.assign(order.partitions))
                self.coordinator.assigned(order.number, claim, time.monotonic())
                _LOG.info("partitions assigned", extra=told)
            else:
                change = await within(config.release_budget_s, link.release(order.partitions))
                self.coordinator.released(order.number, change)
                _LOG.info("partitions released", extra={**told, "is_stray": order.is_stray})
            self._failing.pop((name, kind), None)
        except (SiltstoneError, TimeoutError) as error:
            self.coordinator.failed(order.number, time.monotonic())
            reason = str(error) or type(error).__name__
            if self._failing.get((name, kind)) != reason:
                # It is given again at once, and while a server is away it fails of the same each time.
                _LOG.warning("order failed", extra={**told, "order": kind, "error": reason})
            if name in self._listeners:
                self._failing[name, kind] = reason
        self.hurry()
        self.tell()

    async def _look_at_ends(self) -> None:
        """Learns how far the journal goes, whoever has written to it, and looks whether what waits is absorbed."""
        while True:
            try:
                for partition, end in (await asyncio.to_thread(self._journal.end_positions)).items():
                    self.ends[partition] = max(self.ends.get(partition, 0), end)
                self._look_for_silence()
            except SiltstoneError as error:
                _LOG.warning("ends of the journal not known", extra={"error": str(error)})
            await asyncio.sleep(_ENDS_EVERY_S)

    def _look_for_silence(self) -> None:
        waiting = {
            partition: (at, end)
            for partition, at in self.positions.items()
            if (end := self.ends.get(partition, 0)) > at and partition not in self.damaged
        }
        owners = {one: seat.shard for one in waiting if (seat := self.coordinator.owner_of(one)) is not None}
        self._silence.look(waiting, owners, self._clock())

    async def _look_at_ages(self) -> None:
        """Warns of what has waited for so long that the journal may forget it before it is absorbed."""
        while True:
            try:
                waiting = {
                    partition: at for partition, at in self.positions.items() if self.ends.get(partition, 0) > at
                }
                overdue = await asyncio.to_thread(self._journal.overdue, waiting, SystemClock().now_ms())
                if overdue:
                    _LOG.error("records wait for long", extra={"partitions": overdue})
            except SiltstoneError as error:
                _LOG.info("ages of records not known", extra={"error": str(error)})
            await asyncio.sleep(_AGES_EVERY_S)
