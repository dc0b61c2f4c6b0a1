"""Shards as actors of Ray that wait at some place of a commit to be killed there; one kind lacks its protection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from shard_process import PositionFirst, WholeStore

from siltstone.config import SiltstoneConfig
from siltstone.values import Commit
from siltstone_services.cluster.backends import Backends, open_backends
from siltstone_services.cluster.opening import open_node
from siltstone_services.cluster.shard_actor import ShardActor
from siltstone_services.node import ShardNode

ANYBODY, NOBODY = 0, -1
"""Instead of a process id: whichever comes first is to wait, or none."""

_WAITS_S = 120.0
"""Longer than anybody takes to kill it."""


class Halt:
    """Two files in a home, by which a test and a process say that a commit is to wait, and that it does."""

    def __init__(self, home: Path) -> None:
        self._wanted, self._reached = home / "wanted-halt", home / "reached-halt"

    def want(self, pid: int) -> None:
        self._reached.unlink(missing_ok=True)
        new = self._wanted.with_suffix(".new")
        new.write_text(str(pid))
        # At once: it is not to be read while it is written.
        os.replace(new, self._wanted)

    @property
    def is_reached(self) -> bool:
        return self._reached.exists()

    def reach(self) -> None:
        """Waits to be killed, where this process is to."""
        if self._wanted.exists() and int(self._wanted.read_text()) in (os.getpid(), ANYBODY):
            self._reached.touch()
            time.sleep(_WAITS_S)


class HaltsBefore(WholeStore):
    """Waits before its one transaction."""

    def __init__(self, store: Any, home: Path) -> None:
        super().__init__(store, lambda what, **fields: None)
        self.halt = Halt(home)

    def write(self, commit: Commit) -> None:
        self.halt.reach()
        super().write(commit)


class HaltsAfter(HaltsBefore):
    """Waits after its one transaction, before anybody hears of it."""

    def write(self, commit: Commit) -> None:
        WholeStore.write(self, commit)
        self.halt.reach()


class Torn(PositionFirst):
    """Without its protection: the position in one transaction, the memories in the next, and waits between them."""

    def __init__(self, store: Any, home: Path) -> None:
        super().__init__(store, lambda what, **fields: None)
        self.halt = Halt(home)

    def between(self) -> None:
        self.halt.reach()


class HaltingActor(ShardActor):
    """A shard over a store that waits."""

    store: ClassVar[type[WholeStore]] = HaltsBefore

    def _open(self) -> AbstractAsyncContextManager[ShardNode]:
        @contextmanager
        def halting_backends(config: SiltstoneConfig) -> Iterator[Backends]:
            with open_backends(config) as backends:
                store: Any = self.store(backends.store, config.home_path)
                yield replace(backends, store=store)

        return open_node(self._config, halting_backends)


class HaltsAfterActor(HaltingActor):
    store = HaltsAfter


class TornActor(HaltingActor):
    store = Torn


ACTORS: dict[str, type[HaltingActor]] = {"before": HaltingActor, "after": HaltsAfterActor, "torn": TornActor}
"""By where they are killed: before a commit, after it, or between the two of which one commit was made."""
