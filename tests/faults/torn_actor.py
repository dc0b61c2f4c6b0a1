"""A shard as an actor of Ray without its protection: the position in one transaction, the memories in the next."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shard_process import PositionFirst

from siltstone.config import SiltstoneConfig
from siltstone_services.cluster.backends import Backends, open_backends
from siltstone_services.cluster.opening import open_node
from siltstone_services.cluster.shard_actor import ShardActor
from siltstone_services.node import ShardNode

ANYBODY, NOBODY = 0, -1
"""Instead of a process id: whichever comes first is to wait, or none."""

_WAITS_S = 120.0
"""Longer than anybody takes to kill it."""


class Between:
    """Two files in a home, by which a test and a process say that the next commit is to wait between its two
    transactions, and that it does."""

    def __init__(self, home: Path) -> None:
        self._wanted, self._reached = home / "wanted-between", home / "reached-between"

    def want(self, pid: int) -> None:
        self._reached.unlink(missing_ok=True)
        # At once, not written to while it is read.
        os.replace(self._written(pid), self._wanted)

    def _written(self, pid: int) -> Path:
        path = self._wanted.with_suffix(".new")
        path.write_text(str(pid))
        return path

    @property
    def is_reached(self) -> bool:
        return self._reached.exists()

    def reach(self) -> None:
        """Waits to be killed, where this process is to."""
        if self._wanted.exists() and int(self._wanted.read_text()) in (os.getpid(), ANYBODY):
            self._reached.touch()
            time.sleep(_WAITS_S)


class Torn(PositionFirst):
    def __init__(self, store: Any, home: Path) -> None:
        super().__init__(store, lambda what, **fields: None)
        self._between = Between(home)

    def between(self) -> None:
        self._between.reach()


@contextmanager
def torn_backends(config: SiltstoneConfig) -> Iterator[Backends]:
    with open_backends(config) as backends:
        store: Any = Torn(backends.store, config.home_path)
        yield replace(backends, store=store)


class TornActor(ShardActor):
    def _open(self) -> AbstractAsyncContextManager[ShardNode]:
        return open_node(self._config, torn_backends)
