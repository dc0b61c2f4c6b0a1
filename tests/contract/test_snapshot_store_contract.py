"""What `ports.SnapshotStore` promises, for every backend."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest

from siltstone.errors import Corrupt, InvalidInput, PositionConflict, StaleLease
from siltstone.values import Commit, Lease, Parked, ParkReason, Snapshot, TakenIn, UserKey


def parked_of(owner, position, reason=ParkReason.EMPTY):
    return Parked(0, position, owner, f"i{position}", reason, "text: expected some, found none", b"payload")


def state_of(store, owners):
    return [store.position(0), store.count_users(), list(store.parked()), [store.load(owner) for owner in owners]]


def test_an_unknown_user_has_no_snapshot(store, owners):
    assert store.load(owners[0]) is None
    assert store.count_users() == 0
    assert store.position(0) == 0


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 40_000, 700_001])
def test_a_committed_snapshot_is_loaded_as_it_was_also_after_a_restart(store_backend, owners, num_bytes):
    snapshot = Snapshot.seal(owners[0], "core-1", 3, random.Random(num_bytes).randbytes(num_bytes))
    with store_backend.open() as store:
        store.commit(Commit(store.acquire(0, "shard"), 0, 5, (snapshot,)))
        assert store.load(owners[0]) == snapshot
    with store_backend.open() as store:
        assert store.load(owners[0]) == snapshot
        assert store.position(0) == 5
        assert store.count_users() == 1


def test_a_later_snapshot_takes_the_place_of_the_earlier_whatever_its_size(store, owners):
    lease = store.acquire(0, "shard")
    for sequence, num_bytes in enumerate([300_000, 300_000, 10, 70_000, 0, 300_001]):
        snapshot = Snapshot.seal(owners[0], "core-1", sequence, random.Random(sequence).randbytes(num_bytes))
        store.commit(Commit(lease, sequence, sequence + 1, (snapshot,)))
        assert store.load(owners[0]) == snapshot
    assert store.count_users() == 1


def test_a_commit_writes_all_its_snapshots_and_parked_interactions(store, owners):
    snapshots = tuple(Snapshot.seal(owner, "core-1", 1, str(owner).encode()) for owner in owners)
    parked = (parked_of(owners[0], 1), parked_of(owners[1], 2, ParkReason.TOO_LARGE))
    store.commit(Commit(store.acquire(0, "shard"), 0, 3, snapshots, parked))
    assert state_of(store, owners) == [3, 3, list(parked), list(snapshots)]
    assert list(store.parked(owners[1])) == [parked[1]]
    assert list(store.parked(owners[2])) == []


def test_parked_interactions_are_found_by_their_place(store, owners):
    parked = (parked_of(owners[0], 1), parked_of(owners[1], 2, ParkReason.TOO_LARGE))
    store.commit(Commit(store.acquire(0, "shard"), 0, 3, (), parked))
    assert store.parked_at(0, [0, 1]) == [parked[0]]
    assert store.parked_at(0, range(9)) == list(parked)
    assert store.parked_at(0, []) == store.parked_at(1, [1, 2]) == []


def test_a_commit_without_snapshots_moves_the_position(store):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 4, ()))
    store.commit(Commit(lease, 4, 4, ()))
    assert [store.position(0), store.position(1)] == [4, 0]


def test_every_acquire_gives_a_higher_epoch_also_after_a_restart(store_backend):
    epochs = []
    for holder in ("one", "two"):
        with store_backend.open() as store:
            leases = [store.acquire(0, holder), store.acquire(0, holder)]
            assert all((lease.partition, lease.holder) == (0, holder) for lease in leases)
            epochs += [lease.epoch for lease in leases]
    assert epochs == sorted(set(epochs))


def test_a_fenced_writer_changes_nothing(store, owners):
    old = store.acquire(0, "old")
    store.commit(Commit(old, 0, 1, (Snapshot.seal(owners[0], "core-1", 1, b"before"),), (parked_of(owners[0], 0),)))
    new = store.acquire(0, "new")
    before = state_of(store, owners)
    refused = Commit(old, 1, 2, (Snapshot.seal(owners[0], "core-1", 2, b"zombie"),), (parked_of(owners[0], 1),))
    with pytest.raises(StaleLease):
        store.commit(refused)
    with pytest.raises(StaleLease):
        store.erase(owners[0], old)
    with pytest.raises(StaleLease):
        store.commit(replace(refused, lease=Lease(0, "old", new.epoch + 1)))
    assert state_of(store, owners) == before
    store.commit(replace(refused, lease=new))
    assert store.position(0) == 2


def test_a_lease_of_one_partition_is_not_fenced_by_another_partitions(store):
    lease = store.acquire(0, "one")
    store.acquire(1, "two")
    store.commit(Commit(lease, 0, 1, ()))
    assert store.position(0) == 1


def test_a_commit_from_another_position_changes_nothing(store, owners):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 2, (Snapshot.seal(owners[0], "core-1", 1, b"before"),)))
    before = state_of(store, owners)
    for expected in (0, 1, 3):
        with pytest.raises(PositionConflict):
            store.commit(Commit(lease, expected, 9, (Snapshot.seal(owners[0], "core-1", 2, b"after"),)))
    assert state_of(store, owners) == before


def test_an_unsound_commit_changes_nothing(store, owners, partition):
    lease = store.acquire(0, "shard")
    good = Snapshot.seal(owners[0], "core-1", 1, b"good")
    stranger = next(u for u in (UserKey("office", f"user{n}") for n in range(100)) if partition(u) != 0)
    before = state_of(store, owners)
    with pytest.raises(Corrupt):
        store.commit(Commit(lease, 0, 1, (good, replace(Snapshot.seal(owners[1], "core-1", 1, b"a"), blob=b"b"))))
    with pytest.raises(InvalidInput):
        store.commit(Commit(lease, 0, 1, (good, Snapshot.seal(stranger, "core-1", 1, b"lost"))))
    with pytest.raises(InvalidInput):
        store.commit(Commit(lease, 0, -1, (good,)))
    with pytest.raises(InvalidInput):
        store.commit(Commit(lease, 0, 1, (good,), (replace(parked_of(owners[0], 0), partition=1),)))
    assert state_of(store, owners) == before


def test_what_was_taken_in_is_known_by_owner_and_id_also_after_a_restart(store_backend, owners):
    taken = (TakenIn(1, owners[0], "i1"), TakenIn(2, owners[1], "i1"), TakenIn(4, owners[0], "i2"))
    asked = [(owners[0], "i1"), (owners[1], "i1"), (owners[1], "i2"), (owners[2], "i1"), (owners[0], "i2")]
    with store_backend.open() as store:
        assert store.taken_in(0, asked) == [None] * 5
        store.commit(Commit(store.acquire(0, "shard"), 0, 5, (), taken_in=taken))
        assert store.taken_in(0, []) == []
    with store_backend.open() as store:
        assert store.taken_in(0, asked) == [1, 2, None, None, 4]
        assert store.taken_in(1, asked) == [None] * 5


def test_a_repeat_that_was_taken_in_all_the_same_leaves_the_first_place(store, owners):
    lease = store.acquire(0, "shard")
    store.commit(Commit(lease, 0, 1, (), taken_in=(TakenIn(0, owners[0], "i0"),)))
    store.commit(Commit(lease, 1, 2, (), taken_in=(TakenIn(1, owners[0], "i0"),)))
    assert store.taken_in(0, [(owners[0], "i0")]) == [0]


def test_what_lies_behind_the_window_is_no_longer_known(store, owners, id_window):
    lease = store.acquire(0, "shard")
    taken = tuple(TakenIn(position, owners[0], f"i{position}") for position in range(10))
    store.commit(Commit(lease, 0, 10, (), taken_in=taken))
    last = TakenIn(id_window + 3, owners[0], "last")
    store.commit(Commit(lease, 10, id_window + 4, (), taken_in=(last,)))
    known = store.taken_in(0, [(owners[0], f"i{position}") for position in range(10)])
    assert known == [None, None, None, None, 4, 5, 6, 7, 8, 9]


def test_a_refused_commit_takes_nothing_in_and_an_erased_user_stays_known(store, owners):
    lease = store.acquire(0, "shard")
    with pytest.raises(PositionConflict):
        store.commit(Commit(lease, 1, 2, (), taken_in=(TakenIn(1, owners[0], "i1"),)))
    for position in (-1, 3):
        with pytest.raises(InvalidInput):
            store.commit(Commit(lease, 0, 3, (), taken_in=(TakenIn(position, owners[0], "i1"),)))
    assert store.taken_in(0, [(owners[0], "i1")]) == [None]
    store.commit(Commit(lease, 0, 3, (), taken_in=(TakenIn(2, owners[0], "i1"),)))
    store.erase(owners[0], lease)
    assert store.taken_in(0, [(owners[0], "i1")]) == [2]


def test_users_are_counted_by_the_core_of_their_newest_snapshot(store, owners):
    lease = store.acquire(0, "shard")
    assert store.users_by_core() == {}
    store.commit(Commit(lease, 0, 1, tuple(Snapshot.seal(owner, "core-1", 1, b"a") for owner in owners)))
    store.commit(Commit(lease, 1, 2, (Snapshot.seal(owners[0], "core-2", 2, b"b"),)))
    assert store.users_by_core() == {"core-1": 2, "core-2": 1}
    store.erase(owners[1], lease)
    store.commit(Commit(lease, 2, 3, (Snapshot.seal(owners[2], "core-2", 2, b"b"),)))
    assert store.users_by_core() == {"core-2": 2}


def test_an_unknown_partition_is_refused(store):
    for call in (
        lambda: store.position(4_000),
        lambda: store.acquire(4_000, "shard"),
        lambda: store.parked_at(4_000, [1]),
        lambda: store.taken_in(4_000, []),
    ):
        with pytest.raises(InvalidInput):
            call()


def test_an_erased_user_leaves_no_snapshot_and_nothing_parked(store, owners):
    lease = store.acquire(0, "shard")
    snapshots = tuple(Snapshot.seal(owner, "core-1", 1, str(owner).encode()) for owner in owners)
    store.commit(Commit(lease, 0, 4, snapshots, (parked_of(owners[0], 1), parked_of(owners[1], 2))))
    assert store.erase(owners[0], lease)
    assert state_of(store, owners) == [4, 2, [parked_of(owners[1], 2)], [None, *snapshots[1:]]]
    assert not store.erase(owners[0], lease)
    store.commit(Commit(lease, 4, 5, (snapshots[0],)))
    assert store.load(owners[0]) == snapshots[0]


def test_a_user_is_not_erased_under_another_partitions_lease(store, owners):
    store.commit(Commit(store.acquire(0, "shard"), 0, 1, (Snapshot.seal(owners[0], "core-1", 1, b"mine"),)))
    with pytest.raises(InvalidInput):
        store.erase(owners[0], store.acquire(1, "shard"))
    assert store.load(owners[0]) is not None


def test_of_many_writers_with_one_lease_each_position_is_won_once(store, owners):
    lease, won, errors = store.acquire(0, "shard"), [], []

    def writer(number):
        try:
            for _ in range(20):
                position = store.position(0)
                snapshot = Snapshot.seal(owners[0], "core-1", position + 1, b"%d" % number * 1_000)
                try:
                    store.commit(Commit(lease, position, position + 1, (snapshot,)))
                    won.append((position, number))
                except PositionConflict:
                    continue
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(position for position, _ in won) == list(range(store.position(0)))
    loaded = store.load(owners[0])
    assert loaded is not None
    assert loaded.sequence == store.position(0)
    assert loaded.blob == b"%d" % max(won)[1] * 1_000


def test_a_snapshot_read_during_commits_is_always_whole(store, owners):
    lease = store.acquire(0, "shard")
    stop, errors = threading.Event(), []

    def reader():
        try:
            while not stop.is_set():
                snapshot = store.load(owners[0])
                assert snapshot is None or snapshot.blob == b"%d" % (snapshot.sequence % 10) * 200_000
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for sequence in range(1, 41):
        blob = b"%d" % (sequence % 10) * 200_000
        store.commit(Commit(lease, sequence - 1, sequence, (Snapshot.seal(owners[0], "core-1", sequence, blob),)))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
