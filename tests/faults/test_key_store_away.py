"""The server of users' keys is away: who is held is answered, nothing is taken in unsealed, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
from effects import SETTINGS, Tally, all_taken_in, faultless, stream_of, tally, told
from shard_fleet import Place, place_at
from tiny_cluster import cluster_settings
from tiny_home import answer, asking

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import Unavailable
from siltstone.values import UserKey
from siltstone_services.shard import EmbeddedHost

SEED, NUM_USERS = 13, 6
AWAY: dict[str, Any] = {
    **SETTINGS,
    "key_store.retry_budget_s": 0.2,
    "shard.retry_after_s": 0.05,
    # Nobody's key is held, and one memory at a time: what needs a key shows so at once.
    "sealing.cached_for_s": 0.0,
    "shard.max_resident_bytes": 1,
}
STRANGER, LEAVER = UserKey("office", "stranger"), UserKey("office", "leaver")
NewHome = Callable[[], Path]


@dataclass
class Cluster:
    """A place whose keys have a server of their own."""

    place: Place
    keys: servers.Server


@pytest.fixture
def open_with(new_home: NewHome, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Cluster]]:
    with ExitStack() as stack:

        def make(settings: dict[str, Any]) -> Cluster:
            home = new_home()
            broker = stack.enter_context(servers.tansu(tmp_path / "tansu"))
            store, keys = (stack.enter_context(servers.valkey(tmp_path / name)) for name in ("memories", "keys"))
            where = cluster_settings(home, store.port, broker.port)
            where["key_store.address"] = f"redis://127.0.0.1:{keys.port}"
            return Cluster(stack.enter_context(place_at(home, "cluster", {**settings, **where})), keys)

        yield make


@asynccontextmanager
async def host_at(place: Place) -> AsyncIterator[EmbeddedHost]:
    core = CoreStore(place.home).load(place.config.core)
    async with EmbeddedHost(core, place.journal, place.store, Bm25Recall(), SystemClock(), place.config) as host:
        yield host


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_without_keys_who_is_held_is_answered_and_nobody_else_is_recorded_or_forgotten(
    open_with: Callable[[dict[str, Any]], Cluster], new_home: NewHome
) -> None:
    stream = stream_of(40, NUM_USERS, SEED)
    expected = await faultless(new_home(), SETTINGS, stream)
    cluster = open_with(AWAY)
    place = cluster.place
    async with host_at(place) as host:
        await host.wait_absorbed(await host.record([*stream[:30], told(LEAVER, "l0", "Tea.")]))
        held, left = stream[0].owner, next(one.owner for one in stream if one.owner != stream[0].owner)
        said, end = await answer(host, asking(held, "Where do I live?"))
        cluster.keys.kill()
        again, its_end = await answer(host, asking(held, "Where do I live?"))
        assert (again, its_end.snapshot_sequence) == (said, end.snapshot_sequence)
        # Who has no memory needs no key; who has one that is not held does.
        _, strangers_end = await answer(host, asking(STRANGER, "Where do I live?"))
        assert strangers_end.snapshot_sequence == 0
        with pytest.raises(Unavailable):
            await answer(host, asking(left, "Where do I live?"))
        with pytest.raises(Unavailable):
            await host.record(stream[30:])
        with pytest.raises(Unavailable):
            await host.forget(LEAVER)
        cluster.keys.start()
        # A forgetting that was refused is done when it is said again.
        await host.forget(LEAVER)
        assert (await host.export(LEAVER)).journal == ()
        assert await host.wait_absorbed(await host.record(stream[30:])) == []
    assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)


async def test_what_waits_sealed_in_the_journal_is_taken_in_once_the_keys_are_back(
    open_with: Callable[[dict[str, Any]], Cluster], new_home: NewHome, caplog: pytest.LogCaptureFixture
) -> None:
    stream = stream_of(24, NUM_USERS, SEED)
    expected = await faultless(new_home(), SETTINGS, stream)
    cluster = open_with(AWAY)
    place = cluster.place
    receipts = place.journal.append(stream)
    cluster.keys.kill()
    async with host_at(place) as host:
        await until(lambda: any(record.message == "absorbing waits" for record in caplog.records))
        with pytest.raises(Unavailable):
            await host.wait_absorbed(receipts)
        # Nothing is parked for it, and nothing is said to be damaged.
        assert (await host.status()).num_parked == 0
        assert not any(record.levelname == "ERROR" for record in caplog.records)
        cluster.keys.start()
        await until(lambda: all_taken_in(place.journal, place.store))
    assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)


async def test_an_empty_key_store_in_its_place_is_told_as_damage_and_takes_nobody_for_forgotten(
    open_with: Callable[[dict[str, Any]], Cluster], new_home: NewHome, caplog: pytest.LogCaptureFixture
) -> None:
    """What the test above must not do: keys that are away for good are another thing than keys that are away."""
    stream = stream_of(24, NUM_USERS, SEED)
    cluster = open_with(AWAY)
    place = cluster.place
    place.journal.append(stream)
    with redis.Redis(port=cluster.keys.port) as client:
        client.flushall()
    async with host_at(place):
        await until(lambda: any(record.message == "partition damaged" for record in caplog.records))
    assert place.num_taken_in() == 0
