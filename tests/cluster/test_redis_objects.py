"""Large memories in an object store: what crashes, races, refusals, damage and an object store that is away leave."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import proxy
import pytest
import redis
import servers
from typer.testing import CliRunner

from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.object_store import ObjectStore
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_records import RECORD_VERSION, read_pointer, write_snapshot
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import ConfigInvalid, Corrupt, PositionConflict, StaleLease, Unavailable
from siltstone.faults import FAULT_VARIABLE
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Lease, Snapshot, TakenIn, UserKey
from siltstone_services.cli import app

OWNERS = [
    owner for owner in (UserKey("office", f"user{number}") for number in range(100)) if not partition_of(owner, 2)
][:4]
QUICK = {"num_partitions": 2, "retry_budget_s": 0.3, "connect_timeout_s": 1.0, "answer_timeout_s": 2.0}
LARGE = b"a memory of more than a hundred bytes, " * 10


class Watched(ObjectStore):
    """An object store that lets a test do something just before the next get, or just after the next put."""

    before_get = None
    after_put = None

    def get(self, name):
        act, self.before_get = self.before_get, None
        if act is not None:
            act()
        return super().get(name)

    def put(self, name, content):
        super().put(name, content)
        act, self.after_put = self.after_put, None
        if act is not None:
            act()


def snapshot(number=0, sequence=1, blob=LARGE):
    return Snapshot.seal(OWNERS[number], "core-1", sequence, blob)


def later(number=0, sequence=1):
    return snapshot(number, sequence, LARGE + b"%d" % sequence)


@pytest.fixture
def server(tmp_path):
    with servers.valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "objects"


@pytest.fixture
def opened(server, folder):
    """Opens the store, as often as a test likes. Memories of a hundred bytes are large, and the replaced go at once."""
    with ExitStack() as stack:

        def open_one(port=server.port, sealer=None, namespace="siltstone", budget_s=0.3, **changes):
            quick = {"min_bytes": 100, "keep_replaced_s": 0, "retry_budget_s": 0.2, "answer_timeout_s": 1.0}
            objects = Watched(ObjectConfig(f"file://{folder}", **(quick | changes)))
            config = RedisConfig(
                f"redis://127.0.0.1:{port}", namespace=namespace, **(QUICK | {"retry_budget_s": budget_s})
            )
            store = stack.enter_context(RedisSnapshotStore(config, sealer, objects))
            return store, objects

        yield open_one


@pytest.fixture
def store(opened):
    return opened()[0]


def objects_in(folder):
    """The objects of a folder, but for the marks of stores."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "store")


def key_of(number=0):
    return f"{{siltstone:0}}:snap:{OWNERS[number]}"


def swept(store):
    """A whole sweep of which nothing is on its way: there is nothing to wait for."""
    sweep = store.sweep()
    assert [*sweep.look()] == [0, 1]
    assert {*sweep.remove()} <= {0, 1}
    return sweep.num_objects, sweep.num_removed, sweep.num_unsure


@contextmanager
def away(folder):
    """The object store cannot be reached meanwhile: a file is where its folder was."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    yield
    folder.unlink()
    aside.rename(folder)


# What is kept where.


def test_a_large_memory_is_one_object_and_its_record_a_pointer_to_it(store, client, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    (path,) = objects_in(folder)
    record = client.get(key_of())
    pointer = read_pointer(OWNERS[0], record)
    assert LARGE not in record
    assert path.read_bytes() == LARGE
    sha256 = hashlib.sha256(LARGE).hexdigest()
    assert (str(path.relative_to(folder)), len(LARGE), sha256) == (pointer.name, pointer.num_bytes, pointer.sha256)
    store_folder, partition, owner, name = pointer.name.split("/")
    assert store_folder.startswith("siltstone-")
    assert (partition, owner) == ("0", store.sweep().objects.folder_of(0, OWNERS[0]).rpartition("/")[2])
    epoch, sequence, _, digest = name.split("-")
    assert (int(epoch), int(sequence), digest) == (lease.epoch, 1, sha256)


def test_a_small_memory_stays_in_redis_and_one_that_shrinks_goes_back_there(store, client, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(0, 1, b"x" * 99), snapshot(1, 1, b"x" * 100))))
    assert b"x" * 99 in client.get(key_of(0))
    assert len(objects_in(folder)) == 1
    store.commit(Commit(lease, 1, 2, (snapshot(1, 2, b"small"),)))
    store.drop_replaced()
    store.close()
    assert objects_in(folder) == []
    assert b"small" in client.get(key_of(1))


def test_what_is_in_the_object_is_sealed_and_unreadable_once_the_key_is_destroyed(opened, sealer, folder):
    store, _ = opened(sealer=sealer)
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
    (path,) = objects_in(folder)
    assert LARGE[:20] not in path.read_bytes()
    assert store.load(OWNERS[0]) == snapshot()
    sealer.forget(OWNERS[0])
    assert store.load(OWNERS[0]) is None


def test_a_memory_from_before_there_were_objects_is_read_and_written_anew_as_one(server, opened, client, folder):
    config = RedisConfig(f"redis://127.0.0.1:{server.port}", **QUICK)
    with RedisSnapshotStore(config) as before:
        before.commit(Commit(before.acquire(0, "shard"), 0, 1, (snapshot(),)))
        assert client.get(key_of()) == write_snapshot(snapshot(), Unsealed())
    store, _ = opened()
    assert store.load(OWNERS[0]) == snapshot()
    store.commit(Commit(store.acquire(0, "next"), 1, 2, (later(0, 2),)))
    assert store.load(OWNERS[0]) == later(0, 2)
    assert len(objects_in(folder)) == 1


def test_a_pointer_is_of_a_version_that_older_code_waits_for_and_a_whole_record_is_not(store, client):
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(), snapshot(1, 1, b"small"))))
    versions = [struct.unpack_from(">H", client.get(key_of(number)), 8)[0] for number in range(2)]
    assert versions == [RECORD_VERSION, RECORD_VERSION - 1]


def test_a_store_with_objects_is_not_opened_without_them_or_with_others(server, opened, folder):
    opened()
    with pytest.raises(ConfigInvalid, match="found nothing"):
        RedisSnapshotStore(RedisConfig(f"redis://127.0.0.1:{server.port}", **QUICK))
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ConfigInvalid, match="none of them there"):
        opened()


def test_two_stores_in_one_folder_never_meet(tmp_path, opened, folder):
    with servers.valkey(tmp_path / "other") as other:
        for port in (None, other.port):
            store, _ = opened() if port is None else opened(port)
            store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
            assert swept(store) == (1, 0, 0)
            assert store.load(OWNERS[0]) == snapshot()
    assert len(objects_in(folder)) == 2


def test_many_large_memories_of_one_commit_are_put_and_all_of_them_are_found(opened, folder):
    many = tuple(snapshot(number, 1, bytes([number]) * 50_000) for number in range(4))
    for max_at_once in (1, 2, 8):
        store, _ = opened(namespace=f"n{max_at_once}", max_at_once=max_at_once)
        store.commit(Commit(store.acquire(0, "shard"), 0, 1, many))
        assert [store.load(one.owner) for one in many] == list(many)


# What is replaced, and what is refused.


def test_of_a_memory_only_the_newest_object_stays(store, folder):
    lease = store.acquire(0, "shard")
    for sequence in range(1, 6):
        store.commit(Commit(lease, sequence - 1, sequence, (later(0, sequence),)))
        store.drop_replaced()
        assert store.load(OWNERS[0]) == later(0, sequence)
    store.close()
    assert [path.read_bytes() for path in objects_in(folder)] == [later(0, 5).blob]


def test_a_redis_that_goes_back_a_moment_still_finds_what_it_points_to(opened, client, folder):
    for keep_s in (60, 0):
        namespace = f"n{keep_s}"
        store, _ = opened(namespace=namespace, keep_replaced_s=keep_s)
        keys = [f"{{{namespace}:0}}:part", f"{{{namespace}:0}}:snap:{OWNERS[0]}"]
        lease = store.acquire(0, "shard")
        store.commit(Commit(lease, 0, 1, (snapshot(),)))
        before = [client.dump(key) for key in keys]
        store.commit(Commit(lease, 1, 2, (later(0, 2),)))
        store.drop_replaced()
        store.close()
        for key, value in zip(keys, before, strict=True):
            client.restore(key, 0, value, replace=True)
        again, _ = opened(namespace=namespace)
        if keep_s:
            assert again.load(OWNERS[0]) == snapshot()
        else:
            # The control: removed at once, it is missed.
            with pytest.raises(Corrupt):
                again.load(OWNERS[0])


def test_what_redis_has_gone_back_to_is_not_removed_when_its_time_has_come(opened, client):
    store, _ = opened(keep_replaced_s=0.5)
    keys = ["{siltstone:0}:part", key_of()]
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    before = [client.dump(key) for key in keys]
    store.commit(Commit(lease, 1, 2, (later(0, 2),)))
    for key, value in zip(keys, before, strict=True):
        client.restore(key, 0, value, replace=True)
    objects = store.sweep().objects
    while objects.num_waiting:
        store.drop_replaced()
    assert store.load(OWNERS[0]) == snapshot()


def test_an_owner_that_stalled_removes_what_it_has_put_and_not_the_same_that_the_next_has_committed(opened, folder):
    stalled, objects = opened()
    next_one, _ = opened()
    lease = stalled.acquire(0, "stalled")
    commit = Commit(lease, 0, 1, (snapshot(),))
    seen = []

    def overtake():
        next_one.commit(replace(commit, lease=next_one.acquire(0, "next")))
        seen.extend(path.name for path in objects_in(folder))

    objects.after_put = overtake
    with pytest.raises(StaleLease):
        stalled.commit(commit)
    stalled.drop_replaced()
    stalled.close()
    # Two objects of the same sequence and the same bytes, and one of them is left: the one that is pointed to.
    assert [name.split("-")[1::2] for name in seen] == [["1", snapshot().digest]] * 2
    (kept,) = objects_in(folder)
    assert int(kept.name.split("-")[0]) == lease.epoch + 1
    assert next_one.load(OWNERS[0]) == snapshot()


def test_two_writers_with_one_lease_and_the_same_bytes_do_not_remove_each_others(opened, folder):
    loser, objects = opened()
    winner, _ = opened()
    commit = Commit(loser.acquire(0, "shard"), 0, 1, (snapshot(),))
    objects.after_put = lambda: winner.commit(replace(commit, taken_in=(TakenIn(0, OWNERS[0], "i0"),)))
    with pytest.raises(PositionConflict):
        loser.commit(commit)
    loser.drop_replaced()
    loser.close()
    assert len(objects_in(folder)) == 1
    assert winner.load(OWNERS[0]) == snapshot()


@pytest.mark.parametrize("num_cuts", [1, 3])
def test_a_commit_whose_answer_is_lost_leaves_one_object_and_removes_the_one_before(server, opened, folder, num_cuts):
    with proxy.proxy_to(server.port) as between:
        store, objects = opened(between.port, budget_s=10.0)
        lease = store.acquire(0, "shard")
        store.commit(Commit(lease, 0, 1, (snapshot(),)))
        objects.after_put = lambda: between.swallow(num_cuts)
        store.commit(Commit(lease, 1, 2, (later(0, 2),)))
        assert between.num_swallowed == num_cuts
        assert (store.position(0), store.load(OWNERS[0])) == (2, later(0, 2))
        store.drop_replaced()
        store.close()
    assert [path.read_bytes() for path in objects_in(folder)] == [later(0, 2).blob]


def test_a_refusal_after_a_lost_answer_leaves_what_the_first_try_has_committed(server, opened, folder):
    """The first try is done; before the second another owner has come and gone on with somebody else."""
    with proxy.proxy_to(server.port) as between:
        store, objects = opened(between.port, budget_s=0.01)
        next_one, _ = opened()
        commit = Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),))
        # So that the server knows the script, and the first try is one.
        store.commit(replace(commit, snapshots=(), next_position=0))
        objects.after_put = lambda: between.swallow(1_000_000)
        with pytest.raises(Unavailable):
            store.commit(commit)
        between.swallow(0)
        assert next_one.position(0) == 1
        next_one.commit(Commit(next_one.acquire(0, "next"), 1, 2, (snapshot(1),)))
        with pytest.raises(StaleLease):
            store.commit(commit)
        store.drop_replaced()
        store.close()
        assert next_one.load(OWNERS[0]) == snapshot()
    assert len(objects_in(folder)) == 2


def test_a_commit_sent_again_after_the_error_puts_nothing_twice(server, opened, folder):
    with proxy.proxy_to(server.port) as between:
        store, objects = opened(between.port, budget_s=0.01)
        commit = Commit(store.acquire(0, "shard"), 0, 1, (snapshot(), snapshot(1)))
        objects.after_put = between.cut
        with pytest.raises(Unavailable):
            store.commit(commit)
        between.mend()
        assert len(objects_in(folder)) == 2
        store.commit(commit)
        assert len(objects_in(folder)) == 2
        assert [store.load(owner) for owner in OWNERS[:2]] == [snapshot(), snapshot(1)]


def test_what_took_too_long_to_put_is_put_anew(opened, client, folder):
    """A sweep may have removed it by then."""
    store, objects = opened()

    def late():
        for path in objects_in(folder):
            path.unlink()
        assert client.delete(*client.keys("{siltstone:0}:put:*")) == 1

    objects.after_put = late
    commit = Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),))
    store.commit(commit)
    assert (store.position(0), store.load(OWNERS[0])) == (1, snapshot())


def test_nothing_of_a_right_stays_that_does_not_go_by_itself(store, client):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    with pytest.raises(PositionConflict):
        store.commit(Commit(lease, 7, 8, (snapshot(1),)))
    passing = [key for key in client.scan_iter() if client.ttl(key) != -1]
    assert all(b":put:" in key for key in passing)
    assert not [key for key in client.scan_iter() if b":stage:" in key]


# A reader beside a writer.


def test_an_object_that_goes_between_pointer_and_reading_is_looked_for_anew(opened):
    reader, objects = opened()
    writer, _ = opened()
    lease = writer.acquire(0, "shard")
    writer.commit(Commit(lease, 0, 1, (snapshot(),)))

    def overtake():
        writer.commit(Commit(lease, 1, 2, (later(0, 2),)))
        writer.drop_replaced()
        writer.close()

    objects.before_get = overtake
    assert reader.load(OWNERS[0]) == later(0, 2)


def test_a_user_who_is_erased_while_being_read_is_not_there(opened):
    reader, objects = opened()
    writer, _ = opened()
    lease = writer.acquire(0, "shard")
    writer.commit(Commit(lease, 0, 1, (snapshot(),)))
    objects.before_get = lambda: writer.erase(OWNERS[0], lease)
    assert reader.load(OWNERS[0]) is None


# Damage.


def test_an_object_that_is_not_what_was_put_is_damage(store, folder):
    rng = random.Random(5)
    written = snapshot(0, 1, rng.randbytes(2_000))
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (written,)))
    (path,) = objects_in(folder)
    sound = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(Corrupt):
            store.load(OWNERS[0])
    for torn in (sound[:-1], sound[:0], sound + b"\0"):
        path.write_bytes(torn)
        with pytest.raises(Corrupt, match="bytes"):
            store.load(OWNERS[0])
    path.unlink()
    with pytest.raises(Corrupt, match="none of that name"):
        store.load(OWNERS[0])
    path.write_bytes(sound)
    assert store.load(OWNERS[0]) == written


def test_a_flipped_bit_in_a_pointer_is_found_and_a_later_memory_takes_its_place(store, client):
    rng = random.Random(6)
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    sound = client.get(key_of())
    for _ in range(200):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        client.set(key_of(), bytes(damaged))
        with pytest.raises(Corrupt):
            store.load(OWNERS[0])
    client.set(key_of(), sound + b"more")
    with pytest.raises(Corrupt, match="nothing behind it"):
        store.load(OWNERS[0])
    store.commit(Commit(lease, 1, 2, (later(0, 2),)))
    assert store.load(OWNERS[0]) == later(0, 2)


def test_a_folder_that_is_not_mounted_is_no_damage(store, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    aside = folder.with_name("aside")
    folder.rename(aside)
    with pytest.raises(Unavailable, match="another folder"):
        store.load(OWNERS[0])
    with pytest.raises(Unavailable, match="another folder"):
        store.erase(OWNERS[0], lease)
    aside.rename(folder)
    assert store.erase(OWNERS[0], lease)
    assert objects_in(folder) == []


# An object store that is away.


def test_without_the_object_store_small_memories_go_on_and_large_ones_wait(store, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(), snapshot(1, 1, b"small"))))
    large = Commit(lease, 2, 3, (later(0, 2),))
    with away(folder):
        store.commit(Commit(lease, 1, 2, (snapshot(1, 2, b"small still"),)))
        assert store.load(OWNERS[1]) == snapshot(1, 2, b"small still")
        with pytest.raises(Unavailable, match="the object store"):
            store.commit(large)
        with pytest.raises(Unavailable, match="the object store"):
            store.load(OWNERS[0])
        assert store.position(0) == 2
    assert store.load(OWNERS[0]) == snapshot()
    store.commit(large)
    assert store.load(OWNERS[0]) == later(0, 2)


def test_without_redis_nothing_is_put(server, opened, folder):
    store, _ = opened()
    lease = store.acquire(0, "shard")
    server.kill()
    for _ in range(3):
        with pytest.raises(Unavailable):
            store.commit(Commit(lease, 0, 1, (snapshot(),)))
    assert objects_in(folder) == []


# Forgetting.


def test_an_erased_user_leaves_no_object_not_even_one_that_nothing_points_to(store, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(), snapshot(1))))
    mine = next(
        path for path in objects_in(folder) if path.parent.name in store.sweep().objects.folder_of(0, OWNERS[0])
    )
    shutil.copy(mine, mine.with_name("1-1-orphan-abc"))
    assert store.erase(OWNERS[0], lease)
    assert not mine.parent.exists()
    assert not store.erase(OWNERS[0], lease)
    assert (store.load(OWNERS[0]), store.load(OWNERS[1])) == (None, snapshot(1))
    assert len(objects_in(folder)) == 1


def test_an_erasure_without_the_object_store_is_told_and_a_repeat_does_the_rest(store, folder):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (snapshot(),)))
    with away(folder):
        for _ in range(2):
            with pytest.raises(Unavailable, match="the object store"):
                store.erase(OWNERS[0], lease)
        assert store.load(OWNERS[0]) is None
    assert len(objects_in(folder)) == 1
    assert store.erase(OWNERS[0], lease)
    assert objects_in(folder) == []


def test_a_commit_of_unknown_end_does_not_bring_back_what_was_erased_since(server, opened, folder):
    with proxy.proxy_to(server.port) as between:
        store, objects = opened(between.port, budget_s=0.01)
        commit = Commit(store.acquire(0, "shard"), 0, 0, (snapshot(), snapshot(1)))
        objects.after_put = between.cut
        with pytest.raises(Unavailable):
            store.commit(commit)
        between.mend()
        store.erase(OWNERS[0], commit.lease)
        assert store.load(OWNERS[0]) is None
        # Sent again it is another try, with objects of its own.
        store.commit(commit)
        assert [store.load(owner) for owner in OWNERS[:2]] == [snapshot(), snapshot(1)]


# A process that dies.

POINTS = ["checked", "entitled", "putting", "put", "staging", "durable", "settled"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_writer_killed_at_any_step_leaves_a_whole_commit_or_none(server, opened, folder, point, count):
    """The worker counts in a memory that is an object; the next worker goes on from what the store holds."""
    command = [sys.executable, str(Path(__file__).with_name("counting_writer.py"))]
    command += [f"redis://127.0.0.1:{server.port}", f"file://{folder}"]
    armed = os.environ | {FAULT_VARIABLE: f"commit.{point}:{count}"}
    dead = subprocess.run(command, env=armed, timeout=60, check=False)
    assert dead.returncode == -signal.SIGKILL
    store, _ = opened()
    position = store.position(0)
    assert position == (count if point in ("durable", "settled") else count - 1)
    found = store.load(OWNERS[0])
    assert (0 if found is None else int(found.blob)) == position
    subprocess.run(command, timeout=60, check=True)
    found = store.load(OWNERS[0])
    assert found is not None
    assert (store.position(0), int(found.blob), found.sequence) == (6, 6, 6)
    swept(store)
    assert [path.read_bytes() for path in objects_in(folder)] == [b"6"]


def test_a_writer_killed_before_it_removes_what_was_replaced_leaves_it_to_a_sweep(server, opened, folder):
    command = [sys.executable, str(Path(__file__).with_name("counting_writer.py"))]
    command += [f"redis://127.0.0.1:{server.port}", f"file://{folder}"]
    armed = os.environ | {FAULT_VARIABLE: "commit.dropping:1"}
    assert subprocess.run(command, env=armed, timeout=60, check=False).returncode == -signal.SIGKILL
    store, _ = opened()
    position, found = store.position(0), store.load(OWNERS[0])
    assert found is not None
    assert int(found.blob) == position >= 2
    assert len(objects_in(folder)) > 1
    swept(store)
    assert [path.read_bytes() for path in objects_in(folder)] == [b"%d" % position]


# Sweeping.


def test_a_sweep_leaves_what_is_pointed_to_and_removes_the_rest(store, folder):
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(), snapshot(1), snapshot(2, 1, b"small"))))
    kept = objects_in(folder)
    for number, path in enumerate(kept):
        shutil.copy(path, path.with_name(f"1-1-{number}-abc"))
    stranger = kept[0].parent.with_name("0" * 32)
    stranger.mkdir()
    (stranger / "1-1-0-abc.77.part").write_bytes(b"half")
    assert swept(store) == (5, 3, 0)
    assert objects_in(folder) == kept
    assert [store.load(owner) for owner in OWNERS[:2]] == [snapshot(), snapshot(1)]


def test_a_sweep_leaves_alone_what_is_on_its_way_at_its_first_look(opened, folder):
    store, objects = opened()
    sweep = store.sweep()
    objects.after_put = lambda: [*sweep.look()]
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
    # The control: by its first look alone it would have gone.
    assert sweep.num_suspects == 1
    assert [*sweep.remove()] == [0]
    assert sweep.num_removed == 0
    assert store.load(OWNERS[0]) == snapshot()


def test_a_sweep_waits_longer_than_a_right_to_commit_lasts_and_than_redis_may_go_back(opened):
    for put_s, keep_s in ((300, 60), (10, 60)):
        store, _ = opened(put_within_s=put_s, keep_replaced_s=keep_s)
        assert store.sweep().wait_s > max(put_s, keep_s)


def test_a_sweep_leaves_what_may_be_all_that_is_left_of_a_user(store, client, folder):
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(), snapshot(1), snapshot(2))))
    client.delete(key_of(0))
    client.set(key_of(1), b"something else")
    assert swept(store) == (3, 0, 2)
    client.hdel("{siltstone:0}:users", str(OWNERS[2]))
    with pytest.raises(Corrupt):
        swept(store)
    client.hset("{siltstone:0}:part", "position", "7")
    with pytest.raises(Corrupt):
        swept(store)
    assert len(objects_in(folder)) == 3


def test_what_was_put_for_a_commit_that_nobody_repeats_goes_when_its_right_has_ended(server, opened, folder):
    with proxy.proxy_to(server.port) as between:
        quick = {"put_within_s": 0.5, "answer_timeout_s": 0.3, "retry_budget_s": 0.1}
        store, objects = opened(between.port, budget_s=0.01, **quick)
        lease = store.acquire(0, "shard")
        objects.after_put = between.cut
        with pytest.raises(Unavailable):
            store.commit(Commit(lease, 0, 1, (snapshot(),)))
        between.mend()
        store.commit(Commit(lease, 0, 1, (later(0, 2),)))
        assert len(objects_in(folder)) == 2
        found = store.sweep().objects
        while found.num_waiting:
            store.drop_replaced()
        store.close()
    assert [path.read_bytes() for path in objects_in(folder)] == [later(0, 2).blob]


def test_the_command_sweeps(server, opened, folder, tmp_path):
    store, _ = opened()
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
    (kept,) = objects_in(folder)
    shutil.copy(kept, kept.with_name("1-1-orphan-abc"))
    (tmp_path / "master.key").write_text(base64.b64encode(bytes(range(32))).decode())
    settings = {
        "cluster.is_on": True,
        "sealing.master_key_file": str(tmp_path / "master.key"),
        "redis.address": f"redis://127.0.0.1:{server.port}",
        "objects.url": f"file://{folder}",
        "objects.put_within_s": 0.2,
        "objects.answer_timeout_s": 0.1,
        "objects.retry_budget_s": 0.1,
        "objects.keep_replaced_s": 0,
        **{f"{part}.num_partitions": 2 for part in ("kafka", "redis", "key_store")},
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    found = CliRunner().invoke(app, ["--home", str(tmp_path), *options, "objects", "sweep"])
    assert (found.exit_code, found.stdout) == (0, "2 objects looked at, 1 removed\n")
    assert objects_in(folder) == [kept]
    refused = CliRunner().invoke(app, ["--home", str(tmp_path), "objects", "sweep"])
    assert refused.exit_code == 2


def test_a_lease_that_was_never_given_removes_what_it_has_put(store, folder):
    lease = store.acquire(0, "shard")
    with pytest.raises(StaleLease):
        store.commit(Commit(Lease(0, "shard", lease.epoch + 7), 0, 1, (snapshot(),)))
    store.drop_replaced()
    store.close()
    assert objects_in(folder) == []
