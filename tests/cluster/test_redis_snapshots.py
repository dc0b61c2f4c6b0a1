"""What the Redis store does when its server is full, away, cut off, wrong, or holds what we did not write."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import proxy
import pytest
import redis
import servers

from siltstone.adapters import redis_snapshots
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_key_vault import RedisKeyVault
from siltstone.adapters.redis_records import RECORD_VERSION, write_snapshot
from siltstone.adapters.redis_server import RedisServer
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import ConfigInvalid, Corrupt, PositionConflict, Unavailable
from siltstone.faults import FAULT_VARIABLE
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Parked, ParkReason, Snapshot, TakenIn, UserKey

OWNERS = [
    owner for owner in (UserKey("office", f"user{number}") for number in range(100)) if not partition_of(owner, 2)
][:4]
QUICK = {"num_partitions": 2, "retry_budget_s": 0.3, "connect_timeout_s": 1.0, "answer_timeout_s": 2.0}


def config_of(port, **changes):
    return RedisConfig(f"redis://127.0.0.1:{port}", **(QUICK | changes))


@pytest.fixture
def server(tmp_path):
    with servers.valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port) as client:
        yield client


@contextmanager
def cut_off(port, **changes):
    """A store behind a proxy."""
    with proxy.proxy_to(port) as between, RedisSnapshotStore(config_of(between.port, **changes)) as store:
        yield between, store


@pytest.fixture
def store(server):
    with RedisSnapshotStore(config_of(server.port)) as store:
        yield store


def snapshot(number=0, sequence=1, blob=b"memory"):
    return Snapshot.seal(OWNERS[number], "core-1", sequence, blob)


# Who may come in.


def test_a_wrong_password_is_told_as_such_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE_PASSWORD", "wrong-and-secret")
    with servers.valkey(tmp_path, "--requirepass", "open-sesame") as server:
        with pytest.raises(ConfigInvalid, match="refuses the password of the default user") as caught:
            RedisSnapshotStore(config_of(server.port, password_variable="STORE_PASSWORD"))
        assert "secret" not in str(caught.value)
        with pytest.raises(ConfigInvalid, match="password"):
            RedisSnapshotStore(config_of(server.port))


def test_the_right_password_comes_from_a_file_and_stays_out_of_the_configuration(tmp_path):
    (tmp_path / "password").write_text("open-sesame\n")
    with servers.valkey(tmp_path, "--requirepass", "open-sesame") as server:
        config = config_of(server.port, password_file=str(tmp_path / "password"))
        assert "open-sesame" not in repr(config)
        with RedisSnapshotStore(config) as store:
            assert store.position(0) == 0


def test_a_user_without_the_rights_is_told_as_such(server, client, monkeypatch):
    client.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+@read", "+info", "+ping", "+client")
    monkeypatch.setenv("STORE_PASSWORD", "word")
    with pytest.raises(ConfigInvalid, match="lacks a right"):
        RedisSnapshotStore(config_of(server.port, username="reader", password_variable="STORE_PASSWORD"))


def test_a_user_with_the_rights_that_the_documentation_names_is_enough(server, client, master, monkeypatch):
    rights = ["+@read", "+@write", "+@scripting", "+@connection", "-@dangerous", "+info", "+waitaof"]
    client.execute_command("ACL", "SETUSER", "store", "on", ">word", "~{siltstone:*", "~siltstone:*", *rights)
    monkeypatch.setenv("STORE_PASSWORD", "word")
    config = config_of(server.port, username="store", password_variable="STORE_PASSWORD")
    with RedisSnapshotStore(config) as store, RedisKeyVault(config, master) as vault:
        lease = store.acquire(0, "shard")
        store.commit(Commit(lease, 0, 1, (snapshot(),), taken_in=(TakenIn(0, OWNERS[0], "i0"),)))
        assert store.load(OWNERS[0]) == snapshot()
        assert (store.count_users(), list(store.parked()), store.users_by_core()) == (1, [], {"core-1": 1})
        assert store.erase(OWNERS[0], lease)
        (key,) = vault.current([OWNERS[0]])
        assert vault.destroy(OWNERS[0]) == key.name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "noeviction"),
        (("--appendonly", "no"), "append-only"),
    ],
)
def test_a_server_that_would_forget_is_refused(tmp_path, options, reason):
    with servers.valkey(tmp_path, *options) as server, pytest.raises(ConfigInvalid, match=reason):
        RedisSnapshotStore(config_of(server.port))


def test_a_server_without_a_file_is_taken_when_that_is_wished(tmp_path):
    with ExitStack() as stack:
        server = stack.enter_context(servers.valkey(tmp_path, "--appendonly", "no"))
        store = stack.enter_context(RedisSnapshotStore(config_of(server.port, must_append=False)))
        assert store.count_users() == 0


def test_another_number_of_partitions_and_a_newer_store_are_refused(server, client, store):
    with pytest.raises(ConfigInvalid, match="expected 3 partitions, found a store with 2"):
        RedisSnapshotStore(config_of(server.port, num_partitions=3))
    client.set("siltstone:store", f"{redis_snapshots.STORE_VERSION + 1} 2")
    with pytest.raises(ConfigInvalid, match="store version"):
        RedisSnapshotStore(config_of(server.port))


def test_two_namespaces_on_one_server_are_two_stores(server, store):
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
    with RedisSnapshotStore(config_of(server.port, namespace="other")) as other:
        assert (other.position(0), other.count_users(), other.load(OWNERS[0])) == (0, 0, None)


# A full memory.


def test_a_full_memory_refuses_what_is_new_keeps_what_is_there_and_lets_users_go(server, client, store):
    lease, position = store.acquire(0, "shard"), 0
    store.commit(Commit(lease, 0, 1, (snapshot(0, 1, b"\1" * 1_000_000),)))
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)
    kept = [snapshot(0, 1, b"\1" * 1_000_000)]
    position, full = 1, None
    for number in range(1, 4):
        one = snapshot(number, 1, bytes([number]) * 1_500_000)
        try:
            store.commit(Commit(lease, position, position + 1, (one,)))
        except Unavailable as error:
            full = error
            break
        kept.append(one)
        position += 1
    assert full is not None
    assert "memory is full" in str(full)
    assert store.position(0) == position
    assert store.count_users() == len(kept)
    assert [store.load(one.owner) for one in kept] == kept
    # Another shard can take over, and forgetting makes room.
    lease = store.acquire(0, "next")
    assert store.erase(kept[0].owner, lease)
    client.config_set("maxmemory", 0)
    store.commit(Commit(lease, position, position + 1, (one,)))
    assert store.load(one.owner) == one


# A server that is away, and comes back.


def test_a_killed_server_keeps_what_was_committed_and_the_client_finds_it_again(server, store):
    lease = store.acquire(0, "shard")
    for sequence in range(1, 6):
        store.commit(Commit(lease, sequence - 1, sequence, (snapshot(0, sequence),)))
        server.kill()
        with pytest.raises(Unavailable):
            store.position(0)
        server.start()
        assert store.load(OWNERS[0]) == snapshot(0, sequence)
        assert store.position(0) == sequence


def test_what_was_waited_for_in_vain_is_not_waited_for_again_until_it_answers(server):
    asked: list[int] = []

    def ask(client):
        asked.append(1)
        return client.ping()

    def tries() -> int:
        asked.clear()
        with pytest.raises(Unavailable):
            connection.call(ask)
        return len(asked)

    connection = RedisServer(config_of(server.port, retry_budget_s=0.5, backoff_s=0.01))
    try:
        for _ in range(2):
            assert connection.call(ask)
            server.kill()
            assert tries() > 3
            # At most one more, for a connection that is of before.
            assert [tries() for _ in range(3)] == [2, 2, 2]
            server.start()
    finally:
        connection.close()


def test_a_call_waits_for_a_server_that_comes_back_within_the_budget(server):
    with RedisSnapshotStore(config_of(server.port, retry_budget_s=20.0)) as store:
        lease = store.acquire(0, "shard")
        server.kill()
        late = threading.Timer(0.5, server.start)
        late.start()
        try:
            store.commit(Commit(lease, 0, 1, (snapshot(),)))
        finally:
            late.join()
        assert store.load(OWNERS[0]) == snapshot()


@pytest.mark.parametrize("num_cuts", [1, 2, 3])
def test_a_commit_whose_answer_is_lost_is_written_once(server, num_cuts):
    with cut_off(server.port, retry_budget_s=10.0, backoff_s=0.01) as (between, store):
        lease = store.acquire(0, "shard")
        taken = (TakenIn(0, OWNERS[0], "i0"),)
        parked = (Parked(0, 0, OWNERS[1], "i1", ParkReason.EMPTY, "none", b"payload"),)
        between.swallow(num_cuts)
        store.commit(Commit(lease, 0, 1, (snapshot(),), parked, taken))
        assert between.num_swallowed == num_cuts
        assert (store.position(0), store.count_users()) == (1, 1)
        assert list(store.parked()) == list(parked)
        store.commit(Commit(lease, 1, 2, (snapshot(0, 2),)))
        assert store.load(OWNERS[0]) == snapshot(0, 2)


def test_the_same_commit_sent_again_after_the_error_is_written_once(server):
    with cut_off(server.port, retry_budget_s=0.01) as (between, store):
        lease = store.acquire(0, "shard")
        commit = Commit(lease, 0, 1, (snapshot(),))
        between.swallow(1_000_000)
        with pytest.raises(Unavailable):
            store.commit(commit)
        between.swallow(0)
        store.commit(commit)
        assert store.position(0) == 1
        # The control: another commit from the same position is no repeat.
        with pytest.raises(PositionConflict):
            store.commit(Commit(lease, 0, 1, (snapshot(0, 2),)))


def test_a_commit_from_before_a_users_erasure_does_not_pass_for_done(store):
    lease = store.acquire(0, "shard")
    commit = Commit(lease, 0, 0, (snapshot(),))
    store.commit(commit)
    store.erase(OWNERS[0], lease)
    store.commit(commit)
    assert store.load(OWNERS[0]) == snapshot()


def test_nothing_stays_of_a_commit_but_what_it_wrote(store, client):
    lease = store.acquire(0, "shard")
    commit = Commit(lease, 0, 1, (snapshot(), snapshot(1)))
    store.commit(commit)
    store.commit(commit)
    with pytest.raises(PositionConflict):
        store.commit(Commit(lease, 7, 8, (snapshot(2),)))
    assert not [key for key in client.scan_iter() if b":stage:" in key]
    assert all(client.ttl(key) == -1 for key in client.scan_iter())


def test_a_commit_larger_than_one_sending_is_still_one_commit(server):
    many = tuple(snapshot(number, 1, bytes([number]) * 80_000) for number in range(4))
    with RedisSnapshotStore(config_of(server.port, send_bytes=100_000)) as store:
        store.commit(Commit(store.acquire(0, "shard"), 0, 1, many))
        assert [store.load(one.owner) for one in many] == list(many)


# What is stored is not what was written.


def test_a_flipped_bit_in_a_stored_memory_is_found(store, client):
    rng = random.Random(3)
    written = snapshot(0, 1, rng.randbytes(2_000))
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (written,)))
    (key,) = [key for key in client.scan_iter() if b":snap:" in key]
    sound = client.get(key)
    for _ in range(300):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        client.set(key, bytes(damaged))
        with pytest.raises(Corrupt):
            store.load(OWNERS[0])
    client.set(key, sound[:-1])
    with pytest.raises(Corrupt):
        store.load(OWNERS[0])
    client.set(key, sound)
    assert store.load(OWNERS[0]) == written


def test_a_changed_field_of_a_partition_is_found_before_anything_is_written(store, client):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    key = "{siltstone:0}:part"
    for field in client.hkeys(key):
        sound = client.hget(key, field)
        client.hset(key, field, sound + b"0")
        for call in (
            lambda: store.position(0),
            lambda: store.acquire(0, "next"),
            lambda: store.commit(Commit(lease, 1, 2, (snapshot(1),))),
            lambda: store.erase(OWNERS[0], lease),
            lambda: list(store.parked()),
        ):
            with pytest.raises(Corrupt):
                call()
        client.hset(key, field, sound)
    assert (store.position(0), store.count_users()) == (1, 1)
    client.delete(key)
    with pytest.raises(Corrupt):
        store.position(0)


def test_what_is_missing_or_anothers_is_found(store, client):
    lease = store.acquire(0, "shard")
    parked = (Parked(0, 0, OWNERS[0], "i0", ParkReason.EMPTY, "none", b"payload"),)
    store.commit(Commit(lease, 0, 1, (snapshot(), snapshot(1)), parked))
    mine, other = (f"{{siltstone:0}}:snap:{owner}" for owner in OWNERS[:2])
    client.rename(other, mine)
    for owner in OWNERS[:2]:
        with pytest.raises(Corrupt):
            store.load(owner)
    client.hdel("{siltstone:0}:payloads", 0)
    for call in (lambda: list(store.parked()), lambda: list(store.parked(OWNERS[0])), lambda: store.parked_at(0, [0])):
        with pytest.raises(Corrupt):
            call()
    client.hdel("{siltstone:0}:parked", 0)
    with pytest.raises(Corrupt):
        list(store.parked())


def test_a_key_of_another_kind_is_damage(store, client):
    client.delete("{siltstone:0}:part")
    client.set("{siltstone:0}:part", "text")
    with pytest.raises((Corrupt, Unavailable)):
        store.position(0)
    client.lpush(f"{{siltstone:0}}:snap:{OWNERS[0]}", "text")
    with pytest.raises(Corrupt, match="kinds"):
        store.load(OWNERS[0])


def test_a_memory_of_newer_code_is_waited_for_not_parked(store, client):
    record = write_snapshot(snapshot(), Unsealed())
    (head_bytes,) = struct.unpack_from(">I", record, 10)
    start = record[:8] + struct.pack(">H", RECORD_VERSION + 1) + record[10 : 14 + head_bytes]
    newer = start + hashlib.sha256(start).digest() + record[14 + head_bytes + 32 :]
    client.set(f"{{siltstone:0}}:snap:{OWNERS[0]}", newer)
    with pytest.raises(Unavailable, match="newer code"):
        store.load(OWNERS[0])


# A process that dies.


@pytest.mark.parametrize("point", ["commit.checked", "commit.staging", "commit.durable"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_writer_killed_at_any_step_leaves_a_whole_commit_or_none(server, store, point, count):
    """The worker counts in a memory; the next worker goes on from what the store holds."""
    command = [sys.executable, str(Path(__file__).with_name("counting_writer.py")), f"redis://127.0.0.1:{server.port}"]
    dead = subprocess.run(command, env=os.environ | {FAULT_VARIABLE: f"{point}:{count}"}, timeout=60, check=False)
    assert dead.returncode == -signal.SIGKILL
    position = store.position(0)
    assert position == (count if point == "commit.durable" else count - 1)
    found = store.load(OWNERS[0])
    assert (0 if found is None else int(found.blob)) == position
    subprocess.run(command, timeout=60, check=True)
    assert store.position(0) == 6
    found = store.load(OWNERS[0])
    assert found is not None
    assert (int(found.blob), found.sequence) == (6, 6)
    assert store.taken_in(0, [(OWNERS[0], f"i{number}") for number in range(6)]) == list(range(6))


# Sealed contents.


def test_a_forgotten_users_words_are_in_no_file_of_the_server(server, client, sealer, tmp_path):
    marker = b"Pickle comes on Fridays"
    with RedisSnapshotStore(config_of(server.port), sealer) as store:
        lease = store.acquire(0, "shard")
        parked = Parked(0, 0, OWNERS[0], "i0", ParkReason.EMPTY, "none", marker)
        store.commit(Commit(lease, 0, 1, (snapshot(blob=marker * 100),), (parked,)))
        assert store.load(OWNERS[0]) == snapshot(blob=marker * 100)
        assert list(store.parked()) == [parked]
        # The control: in the clear they are.
        client.set("control", b"said in the clear")
        client.waitaof(1, 0, 5_000)
        files = b"".join(part.read_bytes() for part in (tmp_path / "valkey").rglob("*.aof"))
        assert marker not in files
        assert b"said in the clear" in files
        sealer.forget(OWNERS[0])
        assert store.load(OWNERS[0]) is None
        assert [one.payload for one in store.parked()] == [b""]
