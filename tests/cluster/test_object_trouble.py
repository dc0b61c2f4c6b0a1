"""Large memories when the object store is away, users are forgotten, writers die, and what a sweep then finds."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import proxy
import pytest
from large_memories import OWNERS, away, key_of, later, objects_in, snapshot, swept
from typer.testing import CliRunner

from siltstone.errors import Corrupt, Unavailable
from siltstone.faults import FAULT_VARIABLE
from siltstone.values import Commit
from siltstone_services.cli import app

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
