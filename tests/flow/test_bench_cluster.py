"""The cluster's benchmark on real servers: its mechanics, and that it refuses to time what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import servers

from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.memory.user_memory import MemoryConfig
from siltstone.model.config import CoreConfig
from siltstone.values import Interaction, Receipt, Snapshot, UserKey
from siltstone_services.benchmark import gateway_load
from siltstone_services.benchmark.absorption import run_absorb_share, run_overload
from siltstone_services.benchmark.gateway_load import Round, run_gateway
from siltstone_services.benchmark.ingest import run_ingest
from siltstone_services.benchmark.readings import Outcome
from siltstone_services.benchmark.resizing import run_resize
from siltstone_services.benchmark.stored_redis import run_stored_redis
from siltstone_services.benchmark.world import Shape, World
from siltstone_services.shard import EmbeddedHost

TINY = Shape(
    "tiny",
    CoreConfig(97, 32, 3, 4, 2, 8, 48, 10_000.0, 1e-5, 256, tied_head=True),
    MemoryConfig(num_layers=2, rank=4, guarded_directions=8),
)


def silent(text: str) -> None:
    """Says nothing."""


def names(outcome: Outcome) -> set[str]:
    assert not outcome.refusal
    assert all(value > 0 for reading in outcome.readings for value in reading.values)
    return {reading.name for reading in outcome.readings}


def test_the_gateway_is_compared_with_bare_grpc() -> None:
    found = names(run_gateway(4, 12, 2, silent))

    assert {"gateway, 4 callers, Record / bare grpc.aio", "gateway, 4 callers, Generate / bare grpc.aio"} <= found
    assert "gateway, 4 callers, Generate, p99 / p50" in found


def test_a_gateway_that_answers_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_load, "PIECES", (*gateway_load.PIECES, *gateway_load.PIECES))

    outcome = run_gateway(2, 4, 1, silent)

    assert "Generate answered 17 messages" in outcome.refusal
    assert not outcome.readings


def test_a_quantile_is_a_time_that_was_seen() -> None:
    took = Round(1.0, tuple(range(1, 101)))

    assert (took.quantile(0.5), took.quantile(0.99), took.quantile(1.0)) == (50, 99, 100)


def test_what_is_taken_in_is_looked_for_in_the_journal(tmp_path: Path) -> None:
    embedded, absent = run_ingest("", 5, 8, 2, tmp_path, silent)

    assert names(embedded) == {"ingest, embedded journal, of one core", "ingest, embedded journal, by the clock"}
    assert absent.absence


def test_an_interaction_that_is_lost_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = SqliteJournal.append

    def lose_one(self: SqliteJournal, interactions: Sequence[Interaction]) -> list[Receipt]:
        return [*append(self, interactions[:-1]), Receipt(interactions[-1].id, 0, 99, duplicate=False)]

    monkeypatch.setattr(SqliteJournal, "append", lose_one)
    embedded, _ = run_ingest("", 5, 8, 2, tmp_path, silent)

    assert embedded.refusal == "1 of 8 interactions are not in the journal"


def test_stored_users_are_timed_on_a_real_server(tmp_path: Path) -> None:
    with servers.valkey(tmp_path) as server:
        outcome = run_stored_redis(f"redis://127.0.0.1:{server.port}", (70, 90), 2, silent)

    assert {"stored users, Redis, start, 90 / 70", "stored users, Redis, swap-in, 90 / 70"} <= names(outcome)


def test_a_user_who_does_not_come_back_as_stored_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = RedisSnapshotStore.load

    def forgetful(self: RedisSnapshotStore, owner: UserKey) -> Snapshot | None:
        found = load(self, owner)
        return found and replace(found, blob=found.blob[:-1])

    monkeypatch.setattr(RedisSnapshotStore, "load", forgetful)
    with servers.valkey(tmp_path) as server, pytest.raises(AssertionError):
        run_stored_redis(f"redis://127.0.0.1:{server.port}", (70,), 1, silent)


def test_absorbing_is_compared_with_the_bare_engine(tmp_path: Path) -> None:
    found = names(run_absorb_share(World(TINY), 3, 2, "", "", tmp_path, silent))

    assert "absorb through the embedded file, tiny, 3 users x 32 tokens, of the bare engine's" in found


def test_what_is_too_much_is_refused_and_the_rest_absorbed(tmp_path: Path) -> None:
    outcome = run_overload(0.5, "", "", tmp_path, silent)

    assert "overload, the embedded file, offered / absorbed" in names(outcome)
    assert outcome.readings[0].value <= 1


def test_a_host_that_takes_everything_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedHost, "_check_lag", lambda self, num_more: None)

    outcome = run_overload(0.1, "", "", tmp_path, silent)

    assert outcome.refusal == "nothing was refused: there was no overload"


@pytest.mark.slow
def test_absorbing_and_overload_run_on_real_servers(tmp_path: Path) -> None:
    with servers.noida(tmp_path / "noida") as broker, servers.valkey(tmp_path / "valkey") as store:
        where = f"127.0.0.1:{broker.port}", f"redis://127.0.0.1:{store.port}"
        assert names(run_absorb_share(World(TINY), 3, 2, *where, tmp_path, silent))
        assert names(run_overload(1.0, *where, tmp_path, silent))


def test_a_resize_needs_servers(tmp_path: Path) -> None:
    assert run_resize("127.0.0.1:9092", "", 1.0, 1, tmp_path, silent).absence


@pytest.mark.slow
def test_a_resize_is_timed_on_real_servers(tmp_path: Path) -> None:
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        addresses = (f"127.0.0.1:{broker.port}", f"redis://127.0.0.1:{store.port}")
        outcome = run_resize(*addresses, 3.0, 1, tmp_path / "homes", silent)

    assert not outcome.refusal
    by_name = {reading.name: reading.value for reading in outcome.readings}
    assert by_name["resize, calls that failed"] == 0
    assert {"resize, learn, p99, longer by", "resize, record, p99 during", "resize, score, p50 before"} <= set(by_name)


@pytest.mark.slow
def test_interactions_are_taken_into_a_real_broker(tmp_path: Path) -> None:
    with servers.noida(tmp_path / "noida") as server:
        embedded, clustered = run_ingest(f"127.0.0.1:{server.port}", 5, 8, 2, tmp_path, silent)

    assert names(embedded)
    assert "ingest, Kafka journal, of one core" in names(clustered)
    assert "ingest, Kafka journal, the client library alone / all of it, processor time" in {
        name.replace(" (checksums in Python)", "") for name in names(clustered)
    }
