"""How one version of the core follows another in a server that goes on answering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.errors import Corrupt, InvalidInput, NotFound, SiltstoneError, Unavailable, WrongState
from siltstone.memory.shard import Shard
from siltstone.ports import SnapshotStore
from siltstone_services.lanes import Lane, Lanes, open_lane
from siltstone_services.served import ServedCores
from siltstone_services.upkeep import Upkeep

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class Ask(Protocol):
    """Runs a question on the worker's thread and returns its answer."""

    async def __call__(self, question: Callable[[], T], /) -> T:
        """Asks."""
        ...


class Succession:
    """Opens the versions that users need, and lets the one that is to serve lead.

    Without `served` only the core that was handed in serves.
    """

    def __init__(
        self,
        served: ServedCores | None,
        loaded: LoadedCore,
        lanes: Lanes,
        shard: Shard,
        upkeep: Upkeep,
        store: SnapshotStore,
        config: SiltstoneConfig,
        crew: Crew,
    ) -> None:
        self._served, self._loaded, self._lanes, self._shard = served, loaded, lanes, shard
        self._upkeep, self._store, self._config, self._crew = upkeep, store, config, crew
        self._unserved: set[str] = set()

    def open_needed(self) -> None:
        """Opens every other version that somebody's memory was learned under, before anything is served.

        Who needs one that may not serve is refused, as a memory of any foreign core is.
        """
        for version, num_users in self._store.users_by_core().items():
            if self._served is None or not version or self._lanes.get(version) is not None:
                continue
            try:
                lane = self._open(version)
            except (NotFound, WrongState, Corrupt, InvalidInput, Unavailable) as error:
                told = {"core": version, "users": num_users, "error": str(error)}
                _LOG.warning("version cannot serve", extra=told)
                continue
            if lane is not None:
                self._lanes.add(lane)

    async def open_missing(self, ask: Ask) -> None:
        """Opens every version that somebody's memory was learned under by now, before users come from elsewhere.

        Raises: Unavailable: users who come without their version would be refused, so they are to come later.
        """
        if self._served is None:
            return
        needed = await asyncio.to_thread(self._store.users_by_core)
        known = await ask(lambda: {lane.version for lane in self._lanes})
        for version in needed.keys() - known - {""} - self._unserved:
            try:
                lane = await asyncio.to_thread(self._open, version)
            except (NotFound, WrongState, Corrupt, InvalidInput) as error:
                _LOG.warning("version cannot serve", extra={"core": version, "error": str(error)})
                lane = None
            if lane is None:
                self._unserved.add(version)
            else:
                await ask(partial(self._lanes.add, lane))

    def _open(self, version: str) -> Lane | None:
        """Returns the lane of a version; None under other settings of the memory: it has another read basis then."""
        assert self._served is not None
        lane = open_lane(self._served.load(version.split("-")[0]), self._config, self._crew)
        return lane if lane.version == version else None

    async def watch(self, ask: Ask) -> None:
        """Looks, again and again, whether another version is to lead."""
        told = ""
        while self._served is not None:
            await asyncio.sleep(self._config.sleep.look_every_s)
            try:
                await self.follow(ask)
                told = ""
            except SiltstoneError as error:
                if str(error) != told:
                    _LOG.warning("version not taken over", extra={"error": str(error)})
                told = str(error)

    async def follow(self, ask: Ask) -> None:
        """Lets the version that is to serve lead, if it does not yet.

        1. See which one is to. 2. Load it, its signature and every byte verified, beside those that serve. 3. Between
        two steps of the worker, let it lead: requests under way end on the version they began with, newcomers get this
        one, and whoever has a memory is carried over after having come back.
        Raises: NotFound; WrongState; Corrupt; Unavailable. The version that leads goes on then.
        """
        if self._served is None:
            return
        # 1.
        digest = await asyncio.to_thread(self._served.digest)
        lane = await ask(lambda: next((lane for lane in self._lanes if lane.digest == digest), None))
        if lane is not None and lane is await ask(lambda: self._lanes.leading):
            return
        # 2.
        if lane is None:
            loaded = await asyncio.to_thread(self._served.load, digest)
            if loaded.tokenizer.json != self._loaded.tokenizer.json or loaded.config != self._loaded.config:
                raise Corrupt(f"core {digest[:12]}", "the shape and the tokenizer of the core that serves", "others")
            lane = await asyncio.to_thread(open_lane, loaded, self._config, self._crew)
        # 3.
        await ask(partial(self._lead, lane))

    def _lead(self, lane: Lane) -> None:
        before = self._lanes.leading
        if self._lanes.get(lane.version) is None:
            self._lanes.add(lane)
        self._lanes.leading, self._shard.core = lane, lane.version
        _LOG.info("version leads", extra={"core": lane.version})
        self._upkeep.leave(before.version)
