"""Shards are killed with -9, again and again, in the middle of a stream: every interaction counts once all the same."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
from effects import (
    NUM_INTERACTIONS,
    NUM_USERS,
    ROUNDS,
    SEED,
    SETTINGS,
    TOLERANCE,
    Tally,
    all_taken_in,
    faultless,
    record_figures,
    stream_of,
    tally,
)
from shard_fleet import Forker, Place, Running, opened_place, wait_until
from shard_process import TORN_POINT

from siltstone.adapters import redis_snapshots, sqlite_snapshots
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, UserKey

POINTS = {
    "sqlite": re.findall(r'fault_point\("(.+?)"\)', Path(sqlite_snapshots.__file__).read_text()),
    "valkey": re.findall(r'fault_point\("(.+?)"\)', Path(redis_snapshots.__file__).read_text()),
}
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]


@dataclass(frozen=True)
class Case:
    """How long a stream is, and what is killed in it."""

    num_interactions: int
    num_users: int
    num_kills: int
    num_server_kills: int = 0


SHORT = Case(num_interactions=72, num_users=9, num_kills=6, num_server_kills=1)
LONG = Case(NUM_INTERACTIONS, NUM_USERS, num_kills=200, num_server_kills=10)


class Killer:
    """Two shards that share the partitions, one of which is killed now and then."""

    def __init__(self, forker: Forker, place: Place, points: Sequence[str], seed: int, store: str = "whole") -> None:
        self._forker, self._place, self._points, self._store = forker, place, points, store
        self._rng = random.Random(seed)
        every = range(place.num_partitions)
        self._shares = [every[::2], every[1::2]]
        self.num_kills = self.num_at_points = 0
        self._shards = [self._start(share) for share in range(2)]

    def _start(self, share: int) -> Running:
        # Half of them die between two steps of a commit, the others at any moment.
        fault = ""
        if self._points and self._rng.random() < 0.5:
            fault = f"{self._rng.choice(self._points)}:{self._rng.randint(1, 8)}"
        shard = self._place.shard(self._shares[share], fault=fault, store=self._store)
        return self._forker.start(shard)

    def kill_one(self) -> None:
        share = self._rng.randrange(2)
        victim = self._shards[share]
        if victim.shard.fault:
            # It dies by itself, if it gets there.
            for _ in range(100):
                if victim.has_ended:
                    break
                time.sleep(0.01)
        else:
            time.sleep(self._rng.uniform(0.0, 0.1))
        self._replace(share)

    def tend(self) -> None:
        """Starts anew whatever has died between two steps of a commit while nobody looked."""
        for share, shard in enumerate(self._shards):
            if shard.has_ended:
                self._replace(share)

    def _replace(self, share: int) -> None:
        victim = self._shards[share]
        self.num_kills += 1
        self.num_at_points += victim.has_ended
        victim.kill()
        # None has ended of anything else.
        assert victim.exit_status == -signal.SIGKILL, victim.log()[-2000:]
        self._shards[share] = self._start(share)

    def end_calmly(self) -> None:
        """Lets shards that nothing is done to take in what is left."""
        for share, old in enumerate(self._shards):
            old.kill()
            self._shards[share] = self._forker.start(self._place.shard(self._shares[share], store=self._store))
        place = self._place

        def is_done() -> bool:
            assert not any(shard.has_ended for shard in self._shards), self._shards[0].log()[-2000:]
            return all_taken_in(place.journal, place.store)

        wait_until(is_done, "what is left to be taken in", 900.0)


def survive(
    forker: Forker,
    place: Place,
    server: servers.Server | None,
    stream: Sequence[Any],
    case: Case,
    seed: int,
    put: Callable[[Sequence[Any]], Iterable[tuple[int, int]]] | None = None,
) -> dict[str, Any]:
    """Sends a stream, and kills all along it; returns how often, and what it cost.

    `put` writes a piece of it, and returns the (partition, position)s of its records.
    """

    def append(piece: Sequence[Any]) -> list[tuple[int, int]]:
        return [(receipt.partition, receipt.position) for receipt in place.journal.append(piece)]

    rng, started_s = random.Random(seed), time.monotonic()
    killer = Killer(forker, place, POINTS["sqlite" if place.ends == "sqlite" else "valkey"], seed)
    every = -(-len(stream) // case.num_kills)
    places = set[tuple[int, int]]()
    for number in range(case.num_kills):
        # A repeat within one piece has the place of the first: what is sent may be more than there are records.
        piece, num_before = stream[number * every : (number + 1) * every], len(places)
        places.update((put or append)(piece))
        killer.kill_one()
        server_every = case.num_kills // max(1, case.num_server_kills)
        if server is not None and number % server_every == server_every // 2:
            server.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            server.start()

        def goes_on(behind: int = num_before) -> bool:
            killer.tend()
            return place.num_taken_in() >= behind

        # The stream goes on as it is taken in, so that kills fall into all of it.
        wait_until(goes_on, "the stream to go on", 600.0)
    killer.end_calmly()
    return {
        "kills": killer.num_kills,
        "kills_between_steps": killer.num_at_points,
        "server_kills": case.num_server_kills if server else 0,
        "seconds": round(time.monotonic() - started_s, 1),
    }


@pytest.fixture(scope="module")
def short_run(new_home: NewHome) -> Run:
    stream = stream_of(SHORT.num_interactions, SHORT.num_users, SEED)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_shards_that_are_killed_take_in_every_interaction_once(
    ends: str,
    forker: Forker,
    new_home: NewHome,
    tmp_path: Path,
    short_run: Run,
) -> None:
    stream, expected = short_run
    with opened_place(ends, new_home(), SETTINGS, tmp_path) as (place, server):
        survive(forker, place, server, stream, SHORT, SEED)
        assert tally(place.config, place.store, stream, expected) == Tally(SHORT.num_users, 0, 0, 0)
        assert list(place.store.parked()) == []


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_a_commit_in_two_transactions_loses_what_it_was_killed_in(
    ends: str,
    forker: Forker,
    new_home: NewHome,
    tmp_path: Path,
    short_run: Run,
) -> None:
    stream, expected = short_run
    with opened_place(ends, new_home(), SETTINGS, tmp_path) as (place, _):
        place.journal.append(stream)
        every, num_torn = range(place.num_partitions), 3
        for _ in range(num_torn):
            shard = place.shard(every, store="position-first", fault=f"{TORN_POINT}:5")
            running = forker.start(shard)
            wait_until(lambda running=running: running.has_ended, "the shard to die")
            assert running.exit_status == -signal.SIGKILL
        last = forker.start(place.shard(every, store="position-first"))
        # By what it tells, and not by the positions: here they are ahead of the memories.
        last.wait_for("committed", len(stream) - 5 * num_torn - 1)
        assert all_taken_in(place.journal, place.store)
        found = tally(place.config, place.store, stream, expected)
    assert found.lost == num_torn
    assert found.differing > 0


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_two_hundred_kills_in_ten_thousand_interactions_change_nobodys_memory(
    ends: str, forker: Forker, new_home: NewHome, tmp_path: Path, long_run: Run
) -> None:
    stream, expected = long_run
    with opened_place(ends, new_home(), SETTINGS, tmp_path) as (place, server):
        cost = survive(forker, place, server, stream, LONG, SEED)
        found = tally(place.config, place.store, stream, expected)
        num_parked = len(list(place.store.parked()))
    record_figures(f"kill -9 of shards, {ends}", interactions=len(stream), **cost, **asdict(found), parked=num_parked)
    assert (found, num_parked) == (Tally(LONG.num_users, 0, 0, 0), 0)


ROUNDS_CASE = Case(num_interactions=2_000, num_users=160, num_kills=50, num_server_kills=5)


@pytest.fixture(scope="module")
def rounds_run(new_home: NewHome) -> Run:
    stream = stream_of(ROUNDS_CASE.num_interactions, ROUNDS_CASE.num_users, SEED + 1)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_rounds_of_several_users_survive_as_well(
    ends: str, forker: Forker, new_home: NewHome, tmp_path: Path, rounds_run: Run
) -> None:
    stream, expected = rounds_run
    with opened_place(ends, new_home(), ROUNDS, tmp_path) as (place, server):
        cost = survive(forker, place, server, stream, ROUNDS_CASE, SEED + 1)
        found = tally(place.config, place.store, stream, expected, TOLERANCE)
    case, told = f"kill -9 of shards, rounds of 8, {ends}", {**cost, **asdict(found), "tolerance": TOLERANCE}
    record_figures(case, interactions=len(stream), **told)
    assert found == Tally(ROUNDS_CASE.num_users, 0, 0, 0)
