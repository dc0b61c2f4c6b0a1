"""A fifth of what is sent is sent twice, and is in the journal twice: it counts once, within what is remembered.

What is remembered: the ids of the newest `id_window` positions of a partition, and those of the last 512 interactions
that a user's memory has absorbed. Only what is behind both counts again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from effects import SETTINGS, Tally, faultless, read_memories, record_figures, stream_of, tally, told, users
from loose_log import LooseLog
from shard_fleet import Forker, opened_place
from test_killed_shards import Case, survive
from tiny_home import tiny_config

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.memory.user_memory import NUM_REMEMBERED_IDS, UserMemory
from siltstone.ports import SnapshotStore
from siltstone.values import Interaction, UserKey
from siltstone_services.shard import EmbeddedHost

SEED = 6
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]
NUM_LATE = 20
HEAVY: dict[str, Any] = {**SETTINGS, "lessons.replays": 0, "shard.max_round_interactions": 64}
"""Somebody says so much that a memory cannot remember all of it: learned in as few steps as there can be."""


def sent_again(stream: Sequence[Interaction], share: float, seed: int) -> list[Interaction]:
    """Returns what is on the wire: the stream in its order, and a part of it a second time, some time later."""
    rng = random.Random(seed)
    places = [(float(number), one) for number, one in enumerate(stream)]
    for number in rng.sample(range(len(stream)), round(share * len(stream))):
        # Most are sent again soon, some much later.
        places.append((number + 0.5 + rng.expovariate(1 / 40), stream[number]))
    return [one for _, one in sorted(places, key=lambda place: place[0])]


def told_by_one(num_interactions: int) -> list[Interaction]:
    (owner,) = users(1)
    return [told(owner, f"i{number}", "a") for number in range(num_interactions)]


@asynccontextmanager
async def loose_host(home: Path, settings: Mapping[str, Any], store: SnapshotStore) -> AsyncIterator[EmbeddedHost]:
    """Gives a host over a journal that is told everything twice, if that is how it is sent."""
    config = tiny_config(home, {**settings, "shard.max_lag_interactions": 100_000})
    core = CoreStore(home).load(config.core)
    log = LooseLog(config.store.num_partitions)
    async with EmbeddedHost(core, log, store, Bm25Recall(), SystemClock(), config) as host:
        yield host


@pytest.fixture(scope="module")
def short_run(new_home: NewHome) -> Run:
    stream = stream_of(60, 10, SEED)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
async def test_what_is_sent_twice_counts_once(
    ends: str,
    new_home: NewHome,
    tmp_path: Path,
    short_run: Run,
) -> None:
    stream, expected = short_run
    wire = sent_again(stream, 0.2, SEED)
    with opened_place(ends, new_home(), SETTINGS, tmp_path) as (place, _):
        async with loose_host(place.home, SETTINGS, place.store) as host:
            assert await host.wait_absorbed(await host.record(wire)) == []
            assert host._shard.num_repeats == len(wire) - len(stream) == 12
        assert tally(place.config, place.store, stream, expected) == Tally(10, 0, 0, 0)


async def num_counted(home: Path, ends: str, folder: Path, id_window: int) -> int:
    """Returns how many interactions count of somebody who says more than a memory remembers, and then some again."""
    settings = {**HEAVY, "store.id_window": id_window, "redis.id_window": id_window}
    stream = told_by_one(NUM_REMEMBERED_IDS + NUM_LATE)
    with opened_place(ends, home, settings, folder) as (place, _):
        async with loose_host(home, place.settings, place.store) as host:
            await host.wait_absorbed(await host.record(stream))
            await host.wait_absorbed(await host.record(stream[:NUM_LATE]))
        (memory,) = read_memories(place.config, place.store, users(1)).values()
    return memory.num_interactions


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
async def test_what_is_sent_again_late_counts_again_only_without_the_window(
    ends: str, new_home: NewHome, tmp_path: Path
) -> None:
    once = NUM_REMEMBERED_IDS + NUM_LATE
    assert await num_counted(new_home(), ends, tmp_path / "with", id_window=4_096) == once
    assert await num_counted(new_home(), ends, tmp_path / "without", id_window=0) == once + NUM_LATE


@pytest.mark.slow
def test_two_thousand_of_ten_thousand_sent_twice_count_once_while_shards_are_killed(
    forker: Forker, new_home: NewHome, tmp_path: Path, long_run: Run
) -> None:
    stream, expected = long_run
    case = Case(len(stream), len(expected), num_kills=20)
    wire = sent_again(stream, 0.2, SEED)
    # The journal of this process looks for no repeats, as that of a second gateway.
    settings = {**SETTINGS, "kafka.id_window": 0}
    with ExitStack() as stack:
        place, _ = stack.enter_context(opened_place("cluster", new_home(), settings, tmp_path))
        cost = survive(forker, place, None, wire, case, SEED)
        found = tally(place.config, place.store, stream, expected)
        num_records = sum(place.ends_of_journal().values())
    without = asyncio.run(num_counted(new_home(), "valkey", tmp_path / "without", 0)) - NUM_REMEMBERED_IDS - NUM_LATE
    record_figures(
        "duplicate sends, kafka and valkey",
        interactions=len(stream),
        sent_again=len(wire) - len(stream),
        records_in_the_journal=num_records,
        window_positions=place.config.redis.id_window,
        window_of_a_memory=NUM_REMEMBERED_IDS,
        **cost,
        **asdict(found),
        counted_again_without_the_window=f"{without} of {NUM_LATE}",
    )
    assert num_records > len(stream)
    assert found == Tally(case.num_users, 0, 0, 0)
    assert without == NUM_LATE
