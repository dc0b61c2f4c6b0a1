"""Store or journal are away for a while: what can go on goes on, nothing grows, it heals by itself, nothing is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers
from effects import SETTINGS, Tally, all_taken_in, faultless, record_figures, stream_of, tally
from proxy import Proxy, proxy_to
from shard_fleet import Place, opened_place, place_at
from tiny_cluster import cluster_settings
from tiny_home import answer, asking

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import Overloaded, Unavailable
from siltstone.memory.user_memory import UserMemory
from siltstone.ports import Journal
from siltstone.values import Commit, Interaction, Receipt, UserKey
from siltstone_services.shard import EmbeddedHost

SEED = 8
NUM_USERS = 8
LIMIT = 20
"""Interactions that may wait to be absorbed."""
AWAY: dict[str, Any] = {
    **SETTINGS,
    "redis.retry_budget_s": 0.2,
    "store.busy_timeout_ms": 100,
    "shard.retry_after_s": 0.05,
    "shard.max_lag_interactions": LIMIT,
}
STRANGER = UserKey("office", "stranger")
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]


@asynccontextmanager
async def host_at(place: Place, journal: Journal | None = None, store: Any = None) -> AsyncIterator[EmbeddedHost]:
    config = place.config
    core = CoreStore(place.home).load(config.core)
    parts = (journal or place.journal, store or place.store)
    async with EmbeddedHost(core, *parts, Bm25Recall(), SystemClock(), config) as host:
        yield host


@dataclass
class Sent:
    """What became of what was sent: acknowledged, or refused with a word when to come again, or not taken."""

    receipts: list[Receipt] = field(default_factory=list)
    told_later: list[Interaction] = field(default_factory=list)
    not_taken: list[Interaction] = field(default_factory=list)
    retry_after_s: set[float] = field(default_factory=set)
    most_waiting: int = 0


async def send(host: EmbeddedHost, stream: Sequence[Interaction], sent: Sent) -> None:
    for start in range(0, len(stream), 4):
        piece = stream[start : start + 4]
        try:
            sent.receipts += await host.record(piece)
        except Overloaded as error:
            sent.retry_after_s.add(error.retry_after_s)
            sent.told_later += piece
        except Unavailable:
            sent.not_taken += piece
        sent.most_waiting = max(sent.most_waiting, host._num_waiting())


async def send_again(host: EmbeddedHost, sent: Sent, stream: Sequence[Interaction]) -> None:
    """Sends what was not acknowledged, in order, as often as it takes; what was acknowledged is not sent again."""
    waiting = [one for one in stream if one.id in {each.id for each in sent.told_later + sent.not_taken}]
    while waiting:
        try:
            sent.receipts += await host.record(waiting[:4])
            waiting = waiting[4:]
        except (Overloaded, Unavailable):
            await asyncio.sleep(0.05)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not is_so():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def short_run(new_home: NewHome) -> Run:
    stream = stream_of(60, NUM_USERS, SEED)
    # Whoever is refused sends again later, so what one user says is sent in one go of that user: in the order of users.
    stream.sort(key=lambda one: one.owner)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


async def test_while_the_store_is_away_answers_go_on_and_what_waits_is_bounded(
    new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place("valkey", new_home(), AWAY, tmp_path) as (place, server):
        assert server is not None
        async with host_at(place) as host:
            before, after = stream[:20], stream[20:]
            for start in range(0, 20, 4):
                await host.wait_absorbed(await host.record(before[start : start + 4]))
            held = before[0].owner
            told, end = await answer(host, asking(held, "Where do I live?"))
            server.kill()
            sent = Sent()
            await send(host, after, sent)
            # The journal takes what it may, and no more.
            assert len(sent.receipts) == LIMIT
            assert len(sent.told_later) == len(after) - LIMIT
            assert sent.retry_after_s == {place.config.shard.retry_after_s}
            assert sent.most_waiting <= LIMIT
            with pytest.raises(Unavailable):
                await host.wait_absorbed(sent.receipts)
            again, its_end = await answer(host, asking(held, "Where do I live?"))
            assert (again, its_end.snapshot_sequence) == (told, end.snapshot_sequence)
            with pytest.raises(Unavailable):
                await answer(host, asking(STRANGER, "Where do I live?"))
            server.start()
            await until(lambda: all_taken_in(place.journal, place.store))
            await send_again(host, sent, after)
            assert await host.wait_absorbed(sent.receipts) == []
        assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)


async def test_without_a_limit_all_of_it_waits(new_home: NewHome, tmp_path: Path, short_run: Run) -> None:
    stream, _ = short_run
    settings = {**AWAY, "shard.max_lag_interactions": 1_000_000}
    with opened_place("valkey", new_home(), settings, tmp_path) as (place, server):
        assert server is not None
        async with host_at(place) as host:
            server.kill()
            sent = Sent()
            await send(host, stream, sent)
            assert sent.most_waiting == len(stream)
            server.start()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the file as another process does that writes and does not end: it has neither journal nor store then."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_while_neither_journal_nor_store_can_be_written_nothing_is_acknowledged(
    new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place("sqlite", new_home(), AWAY, tmp_path) as (place, _):
        async with host_at(place) as host:
            await host.wait_absorbed(await host.record(stream[:12]))
            told, _ = await answer(host, asking(stream[0].owner, "Where do I live?"))
            sent = Sent()
            with locked(place.home / "siltstone.db"):
                await send(host, stream[12:24], sent)
                assert (sent.receipts, sent.told_later) == ([], [])
                again, _ = await answer(host, asking(stream[0].owner, "Where do I live?"))
                assert again == told
            sent.told_later += stream[24:]
            await send_again(host, sent, stream)
            assert await host.wait_absorbed(sent.receipts) == []
        assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)


class HastyJournal:
    """Without its protection: acknowledges before anything is written, and writes when there is time for it."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        ends = self._journal.end_positions()

        def write() -> None:
            try:
                self._journal.append(interactions)
            except Unavailable:
                return

        threading.Thread(target=write).start()
        return [Receipt(one.id, 0, ends[0], duplicate=False) for one in interactions]


async def test_a_journal_that_acknowledges_before_it_has_written_loses(
    new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place("sqlite", new_home(), AWAY, tmp_path) as (place, _):
        async with host_at(place, HastyJournal(place.journal)) as host:
            with locked(place.home / "siltstone.db"):
                sent = Sent()
                await send(host, stream[:8], sent)
                assert len(sent.receipts) == 8
                await until(lambda: not _writers())
        assert tally(place.config, place.store, stream[:8], expected).lost == 8


def _writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "(write)" in thread.name]


class CutStore:
    """A store whose every so-many-th commit loses its answer on the way: nobody knows whether it was done."""

    def __init__(self, store: Any, proxy: Proxy, every: int) -> None:
        self._store, self._proxy, self._every = store, proxy, every
        self._num_commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, commit: Commit) -> None:
        self._num_commits += 1
        if self._num_commits % self._every == 0:
            self._proxy.swallow(1)
        self._store.commit(commit)


async def test_a_commit_whose_answer_is_cut_off_is_done_once(new_home: NewHome, tmp_path: Path, short_run: Run) -> None:
    stream, expected = short_run
    settings = {**AWAY, "redis.retry_budget_s": 10.0, "shard.max_lag_interactions": 1_000}
    with servers.valkey(tmp_path / "valkey") as server, proxy_to(server.port) as between:
        settings["redis.address"] = f"redis://127.0.0.1:{between.port}"
        with place_at(new_home(), "valkey", settings) as place:
            async with host_at(place, store=CutStore(place.store, between, every=8)) as host:
                assert await host.wait_absorbed(await host.record(stream)) == []
            assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)
        assert between.num_swallowed == len(stream) // 8


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.slow
@pytest.mark.usefixtures("leaky_client")
@pytest.mark.parametrize("away", ["store", "broker", "both"])
async def test_half_a_minute_without_store_or_broker_loses_nothing(
    away: str, new_home: NewHome, tmp_path: Path
) -> None:
    away_s, num_users = 30.0, 40
    stream = stream_of(1_200, num_users, SEED)
    limits = {"shard.max_lag_interactions": 200, "shard.retry_after_s": 0.2, "kafka.append_timeout_s": 2.0}
    settings = {**AWAY, **limits, "kafka.answer_timeout_s": 2.0}
    home = new_home()
    with ExitStack() as stack:
        store = stack.enter_context(servers.valkey(tmp_path / "valkey"))
        to_store = stack.enter_context(proxy_to(store.port))
        port = servers.free_port()
        broker = stack.enter_context(servers.tansu(tmp_path / "tansu", port))
        to_broker = stack.enter_context(proxy_to(broker.port, listen_at=port))
        settings |= cluster_settings(home, to_store.port, port)
        place = stack.enter_context(place_at(home, "cluster", settings))
        cut = {"store": [to_store], "broker": [to_broker], "both": [to_store, to_broker]}[away]
        async with host_at(place) as host:
            sender = InOrder(host, stream)
            await sender.send_for(5.0)
            held = stream[0].owner
            told, _ = await answer(host, asking(held, "Where do I live?"))
            bytes_before = resident_bytes()
            for proxy in cut:
                proxy.cut()
            sequence = await host.memory(held)
            before = sender.counts()
            asked = asyncio.create_task(keep_asking(host, held, away_s))
            await sender.send_for(away_s)
            num_answers = await asked
            during = {name: count - before[name] for name, count in sender.counts().items()}
            bytes_more = resident_bytes() - bytes_before
            waiting = host._num_waiting()
            for proxy in cut:
                proxy.mend()
            mended_s = time.monotonic()
            acknowledged = list(sender.receipts)
            await host_heals(host, acknowledged)
            healed_s = time.monotonic() - mended_s
            await sender.send_rest()
            assert await host_heals(host, sender.receipts) == []
            assert told
            assert sequence.num_interactions
        expected = await faultless(new_home(), SETTINGS, stream)
        found = tally(place.config, place.store, stream, expected)
    record_figures(
        f"{away} away",
        away_s=away_s,
        interactions=len(stream),
        during=during,
        answers_meanwhile=num_answers,
        most_waiting=sender.most_waiting,
        waiting_at_its_end=waiting,
        limit=200,
        more_bytes=bytes_more,
        healed_after_s=round(healed_s, 2),
        **asdict(found),
    )
    assert num_answers > 0
    assert sender.most_waiting <= 200
    assert found == Tally(num_users, 0, 0, 0)


class InOrder:
    """Sends a stream in order, a piece again until it is acknowledged: a user's words never overtake one another."""

    def __init__(self, host: EmbeddedHost, stream: Sequence[Interaction]) -> None:
        self._host, self._left = host, list(stream)
        self.receipts: list[Receipt] = []
        self.num_told_later = self.num_not_taken = self.most_waiting = 0

    def counts(self) -> dict[str, int]:
        return {
            "acknowledged": len(self.receipts),
            "refused_with_a_time": self.num_told_later,
            "unavailable": self.num_not_taken,
        }

    async def send_for(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while self._left and time.monotonic() < end_s:
            await self._send()
            await asyncio.sleep(0.02)

    async def send_rest(self) -> None:
        while self._left:
            await self._send()
            await asyncio.sleep(0.002)

    async def _send(self) -> None:
        try:
            self.receipts += await self._host.record(self._left[:2])
            del self._left[:2]
        except Overloaded:
            self.num_told_later += 1
        except Unavailable:
            self.num_not_taken += 1
        self.most_waiting = max(self.most_waiting, self._host._num_waiting())


async def keep_asking(host: EmbeddedHost, owner: UserKey, duration_s: float) -> int:
    """Returns how many answers a user got who is held in memory. None may fail."""
    end_s, num_answers = time.monotonic() + duration_s, 0
    while time.monotonic() < end_s:
        await answer(host, asking(owner, "Where do I live?"))
        num_answers += 1
        await asyncio.sleep(0.5)
    return num_answers


async def host_heals(host: EmbeddedHost, receipts: Sequence[Receipt]) -> list[Any]:
    """Returns what of the receipts was parked, once all of them are taken in."""
    while True:
        try:
            return await host.wait_absorbed(receipts)
        except Unavailable:
            await asyncio.sleep(0.1)
