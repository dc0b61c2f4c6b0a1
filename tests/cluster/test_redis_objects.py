"""Large memories in an object store: where they are, what is replaced or refused, who reads meanwhile, damage."""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import replace

import proxy
import pytest
import servers
from large_memories import LARGE, OWNERS, QUICK, key_of, later, objects_in, snapshot, swept

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_records import RECORD_VERSION, read_pointer, write_snapshot
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import ConfigInvalid, Corrupt, PositionConflict, StaleLease, Unavailable
from siltstone.values import Commit, Lease, TakenIn

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


def test_a_lease_that_was_never_given_removes_what_it_has_put(store, folder):
    lease = store.acquire(0, "shard")
    with pytest.raises(StaleLease):
        store.commit(Commit(Lease(0, "shard", lease.epoch + 7), 0, 1, (snapshot(),)))
    store.drop_replaced()
    store.close()
    assert objects_in(folder) == []
