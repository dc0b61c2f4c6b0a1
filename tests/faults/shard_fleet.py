"""The driver's side of shards in processes of their own: starts them, kills them, stops them, and sees what they do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import servers
from shard_process import Shard, as_order, opened
from tiny_cluster import cluster_settings
from tiny_home import tiny_config

from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone.ports import Journal, SnapshotStore

SCRIPT = Path(__file__).with_name("shard_process.py")
GIVE_UP_S = 120.0
"""Seconds in which something must come to pass that takes a fraction of one: a test that waits longer is stuck."""

LOOK_EVERY_S = 0.005


def wait_until(is_so: Callable[[], Any], what: str, give_up_s: float = GIVE_UP_S) -> Any:
    """Returns what `is_so` returns once that is something; looks often."""
    # Counted and not timed: a run may be stopped as a whole, and go on later.
    for _ in range(round(give_up_s / LOOK_EVERY_S)):
        if found := is_so():
            return found
        time.sleep(LOOK_EVERY_S)
    raise AssertionError(f"waited in vain for {what}")


class Running:
    """A shard's process."""

    def __init__(self, forker: Forker, shard: Shard) -> None:
        self.shard = shard
        self._forker = forker
        self.pid = int(forker.ask(f"fork {as_order(shard)}"))
        self.exit_status: int | None = None

    def effects(self, *kinds: str) -> list[dict[str, Any]]:
        """Returns what it has told so far, of these kinds."""
        try:
            text = Path(self.shard.effects).read_text()
        except FileNotFoundError:
            return []
        # What stands behind the last line's end is still being told, or was when the shard was killed.
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [told for told in map(json.loads, lines) if not kinds or told["what"] in kinds]

    def wait_for(self, kind: str, num_before: int = 0) -> dict[str, Any]:
        """Returns the first effect of a kind after so many of them."""

        def found() -> Any:
            assert not self.has_ended, f"the shard has ended: {self.log()[-2000:]}"
            return self.effects(kind)[num_before:]

        first: dict[str, Any] = wait_until(found, f"a shard to tell {kind}")[0]
        return first

    def log(self) -> str:
        return Path(f"{self.shard.effects}.log").read_text(errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Stops it: see `servers.freeze`."""
        servers.freeze(self.pid)

    @property
    def has_ended(self) -> bool:
        if self.exit_status is None:
            self.exit_status = self._forker.ask(f"poll {self.pid}")
        return self.exit_status is not None

    def kill(self) -> None:
        """Kills it, if it runs, and waits until it is gone."""
        if not self.has_ended:
            self.signal(signal.SIGKILL)
            self.exit_status = self._forker.ask(f"wait {self.pid}")


class Forker:
    """A process that has everything imported, off which shards are forked. They are gone when it is."""

    def __init__(self, folder: Path, home: Path) -> None:
        """`home` holds the core that all of them will use, ready to learn."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), str(home)]
        self._log = (folder / "forker.log").open("wb")
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._folder = folder
        self._started: list[Running] = []
        self._num_files = 0

    def ask(self, order: str) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{order}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the forker has ended: {Path(self._log.name).read_text()[-2000:]}"
        return json.loads(answer)

    def start(self, shard: Shard) -> Running:
        """Forks a shard off, with a file of effects of its own."""
        effects = self._folder / f"effects-{self._num_files}.jsonl"
        self._num_files += 1
        running = Running(self, replace(shard, effects=str(effects)))
        self._started.append(running)
        return running

    def all_effects(self, *kinds: str) -> list[dict[str, Any]]:
        """Returns what all of them have told, one process after the other."""
        return [told for running in self._started for told in running.effects(*kinds)]

    def end(self) -> None:
        """Kills all shards and forgets them."""
        for running in self._started:
            running.kill()
        self._started = []

    def close(self) -> None:
        self.end()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
        self._log.close()


@dataclass
class Place:
    """A home and the servers beside it: where shards run, and where a test looks."""

    home: Path
    ends: str
    settings: dict[str, Any]
    journal: Journal
    store: SnapshotStore

    @property
    def config(self) -> SiltstoneConfig:
        return tiny_config(self.home, self.settings)

    @property
    def num_partitions(self) -> int:
        return len(self.ends_of_journal())

    def ends_of_journal(self) -> dict[int, int]:
        return self.journal.end_positions()

    def num_taken_in(self) -> int:
        """How many records are before the committed positions; negative while the store does not answer."""
        try:
            return sum(map(self.store.position, range(self.config.store.num_partitions)))
        except Unavailable:
            return -1

    def shard(self, partitions: Sequence[int], **more: Any) -> Shard:
        return Shard(str(self.home), self.settings, self.ends, list(partitions), "", **more)


@contextmanager
def place_at(home: Path, ends: str, settings: Mapping[str, Any]) -> Iterator[Place]:
    """Opens journal and store for a test, as its shards do for themselves."""
    config = tiny_config(home, settings)
    with opened(config, ends) as (journal, store):
        yield Place(home, ends, dict(settings), journal, store)


@contextmanager
def opened_place(
    ends: str, home: Path, settings: Mapping[str, Any], folder: Path
) -> Iterator[tuple[Place, servers.Server | None]]:
    """Gives a place, and the server of its store where it has one. A broker of its own, too, where `ends` says so."""
    with ExitStack() as stack:
        more, store = dict(settings), None
        if ends != "sqlite":
            store = stack.enter_context(servers.valkey(folder / "valkey"))
            more["redis.address"] = f"redis://127.0.0.1:{store.port}"
        if ends == "cluster":
            broker = stack.enter_context(servers.tansu(folder / "tansu"))
            more |= cluster_settings(home, store.port, broker.port)
        yield stack.enter_context(place_at(home, ends, more)), store
