"""Valkey's append-only file, cut anywhere: a whole earlier commit is there again, and replay brings the rest."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers
from effects import SETTINGS, Tally, all_taken_in, faultless, record_figures, stream_of, tally
from shard_fleet import Place, place_at
from test_outages import host_at

from siltstone.memory.user_memory import UserMemory
from siltstone.ports import SnapshotStore
from siltstone.values import Commit, Interaction, UserKey

SEED = 12
NUM_USERS = 6
NUM_INTERACTIONS = 40
NUM_PARTITIONS = SETTINGS["redis.num_partitions"]
NewHome = Callable[[], Path]


class WatchedStore:
    """A store that keeps of every commit where its partition then was, and the digests of whom it wrote."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.commits: list[Commit] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, commit: Commit) -> None:
        self._store.commit(commit)
        self.commits.append(commit)


@dataclass
class Kept:
    """A home with a journal, the folder of a store that was killed, and all that store had committed."""

    home: Path
    folder: Path
    stream: list[Interaction]
    expected: dict[UserKey, UserMemory]
    commits: list[Commit] = field(default_factory=list)

    @property
    def log(self) -> Path:
        (log,) = self.folder.glob("appendonlydir/*.incr.aof")
        return log

    def state_at(self, positions: dict[int, int]) -> dict[UserKey, str]:
        """Returns everybody's digest when the partitions' newest whole commits were those that ended there."""
        found: dict[UserKey, str] = {}
        for commit in self.commits:
            if commit.next_position <= positions[commit.lease.partition]:
                found |= {one.owner: one.digest for one in commit.snapshots}
        return found


@pytest.fixture(scope="module")
def kept(new_home: NewHome, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    stream = stream_of(NUM_INTERACTIONS, NUM_USERS, SEED)
    expected = asyncio.run(faultless(new_home(), SETTINGS, stream))
    found = Kept(new_home(), tmp_path_factory.mktemp("valkey"), stream, expected)

    async def run() -> None:
        with servers.valkey(found.folder) as server, place_at(found.home, "valkey", at(server)) as place:
            store = WatchedStore(place.store)
            async with host_at(place, store=store) as host:
                assert await host.wait_absorbed(await host.record(stream)) == []
            found.commits = store.commits

    asyncio.run(run())
    return found


def at(server: servers.Server) -> dict[str, Any]:
    return {**SETTINGS, "redis.address": f"redis://127.0.0.1:{server.port}"}


def cut_copy(kept: Kept, folder: Path, num_bytes: int) -> None:
    """Copies the store's folder, with its log cut after so many bytes."""
    shutil.copytree(kept.folder, folder)
    (log,) = folder.glob("appendonlydir/*.incr.aof")
    log.write_bytes(kept.log.read_bytes()[:num_bytes])


def check_is_a_whole_earlier_state(kept: Kept, store: SnapshotStore) -> int:
    """Checks that what is stored is what some commits had made of it, all of each; returns how many are missing."""
    positions = {partition: store.position(partition) for partition in range(NUM_PARTITIONS)}
    known = {(commit.lease.partition, commit.next_position) for commit in kept.commits}
    for partition, position in positions.items():
        assert position == 0 or (partition, position) in known
    digests = {owner: snapshot.digest for owner in kept.expected if (snapshot := store.load(owner)) is not None}
    assert digests == kept.state_at(positions)
    return sum(commit.next_position > positions[commit.lease.partition] for commit in kept.commits)


async def replay(kept: Kept, place: Place) -> None:
    async with host_at(place) as host:
        async with asyncio.timeout(120):
            while not all_taken_in(place.journal, place.store):
                await asyncio.sleep(0.02)
        # Everything is committed, and the host has met nothing that it does not know.
        assert (await host.status()).num_parked == 0
    whole = Tally(NUM_USERS, 0, 0, 0)
    assert tally(place.config, place.store, kept.stream, kept.expected) == whole


async def cut_and_replay(kept: Kept, tmp_path: Path, num_cuts: int) -> tuple[int, int]:
    """Returns how many commits were cut off, in all, and how many states lost some."""
    rng, num_bytes = random.Random(SEED), kept.log.stat().st_size
    missing = []
    for number in range(num_cuts):
        folder = tmp_path / f"cut-{number}"
        cut_copy(kept, folder, rng.randrange(num_bytes))
        # The server's own rule: a log whose end is broken off is taken up to its last whole transaction.
        with (
            servers.valkey(folder, "--aof-load-truncated", "yes") as server,
            place_at(kept.home, "valkey", at(server)) as place,
        ):
            missing.append(check_is_a_whole_earlier_state(kept, place.store))
            await replay(kept, place)
        shutil.rmtree(folder)
    return sum(missing), sum(map(bool, missing))


async def test_a_log_cut_anywhere_gives_a_whole_earlier_commit_and_replay_heals(kept: Kept, tmp_path: Path) -> None:
    num_missing, num_earlier = await cut_and_replay(kept, tmp_path, 4)
    assert num_earlier > 0, num_missing


@pytest.mark.slow
async def test_forty_cuts_of_a_log_give_whole_earlier_commits_and_replay_heals(kept: Kept, tmp_path: Path) -> None:
    num_missing, num_earlier = await cut_and_replay(kept, tmp_path, 40)
    record_figures("log of Valkey cut", cuts=40, states_that_lost=num_earlier, commits_cut_off=num_missing, differing=0)
    assert num_earlier >= 30


def test_without_replay_what_was_cut_off_is_lost(kept: Kept, tmp_path: Path) -> None:
    """The control: the same cut, and nobody who takes the journal in again."""
    folder = tmp_path / "cut"
    cut_copy(kept, folder, kept.log.stat().st_size // 2)
    with (
        servers.valkey(folder, "--aof-load-truncated", "yes") as server,
        place_at(kept.home, "valkey", at(server)) as place,
    ):
        assert check_is_a_whole_earlier_state(kept, place.store) > 0
        found = tally(place.config, place.store, kept.stream, kept.expected)
        assert found.lost > 0
        assert found.differing > 0


def test_without_that_rule_the_server_does_not_start_on_a_cut_log(kept: Kept, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    cut_copy(kept, folder, kept.log.stat().st_size - 1)
    with (
        pytest.raises(RuntimeError, match="aof-load-truncated"),
        servers.valkey(folder, "--aof-load-truncated", "no"),
    ):
        pass
