"""Kill -9 at any time: every interaction is applied exactly once, and only the newest owner writes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absorb_worker import CONFIG, FENCED, fold_all

from siltstone.adapters import sqlite_snapshots
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.faults import FAULT_VARIABLE
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

BEFORE_DURABLE = [
    "commit.checked",
    "commit.begun",
    "commit.fenced",
    "commit.snapshots_written",
    "commit.parked_written",
    "commit.position_written",
]
POINTS = [*BEFORE_DURABLE, "commit.durable"]
WORKER = Path(__file__).with_name("absorb_worker.py")


def start_worker(path, task, fault=""):
    environment = {**os.environ, FAULT_VARIABLE: fault}
    command = [sys.executable, str(WORKER), str(path), task]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_worker(path, task, fault=""):
    with start_worker(path, task, fault) as worker:
        worker.communicate(timeout=60)
    return worker.returncode


def append(path, start, count, num_users=12):
    def interaction(number):
        messages = (Message(Role.USER, f"Line {number}."),)
        owner = UserKey("office", f"user{number % num_users}")
        return Interaction(f"i{number}", owner, InteractionKind.DOCUMENT, number, messages)

    with SqliteFile(path, CONFIG) as file:
        SqliteJournal(file).append([interaction(number) for number in range(start, start + count)])


def stored_state(path):
    """Returns the journal, the memories, the positions and the parked interactions, all of it read and verified."""
    with SqliteFile(path, CONFIG) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        records = [r for p in range(CONFIG.num_partitions) for r in journal.read(p, 0, 1_000_000)]
        owners = {record.owner for record in records}
        memories = {owner: memory for owner in owners if (memory := store.load(owner)) is not None}
        positions = [store.position(p) for p in range(CONFIG.num_partitions)]
        assert store.count_users() == len(memories)
        return records, memories, positions, list(store.parked())


def applied_once(path):
    """Says whether the memories are those of every record up to the position applied once, in order."""
    records, memories, positions, _ = stored_state(path)
    return memories == fold_all(record for record in records if record.position < positions[record.partition])


def test_every_step_of_the_commit_has_its_fault_point():
    source = Path(sqlite_snapshots.__file__).read_text()
    assert re.findall(r'fault_point\("(.+?)"\)', source) == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_a_commit_killed_between_two_steps_happened_whole_or_not_at_all(tmp_path, point):
    path = tmp_path / "siltstone.db"
    append(path, 0, 8, num_users=3)
    assert run_worker(path, "one") == 0
    before = stored_state(path)
    assert run_worker(path, "one", fault=f"{point}:1") == -signal.SIGKILL
    after = stored_state(path)
    assert applied_once(path)
    assert (after == before) == (point in BEFORE_DURABLE)
    assert (sum(after[2]) > sum(before[2])) == (point == "commit.durable")
    assert run_worker(path, "exact") == 0
    assert applied_once(path)
    assert sum(stored_state(path)[2]) == 8


def test_memories_and_position_in_two_transactions_are_torn_by_one_kill(tmp_path):
    path = tmp_path / "siltstone.db"
    append(path, 0, 8, num_users=3)
    assert run_worker(path, "torn", fault="worker.between:1") == -signal.SIGKILL
    assert not applied_once(path)


def kill_often(path, task, points, num_kills, seed):
    """Feeds a stream and kills the worker once for every piece of it: at a fault point, or at any time."""
    rng = random.Random(seed)
    for number in range(num_kills):
        append(path, number * 16, 16)
        if number % 4 == 3:
            with start_worker(path, task) as worker:
                time.sleep(rng.uniform(0.05, 0.3))
                worker.kill()
                worker.communicate(timeout=60)
        else:
            assert run_worker(path, task, f"{rng.choice(points)}:{rng.randint(1, 3)}") == -signal.SIGKILL
    assert run_worker(path, task) == 0
    records, _, positions, _ = stored_state(path)
    assert len(records) == sum(positions) == num_kills * 16


def test_a_stream_survives_any_number_of_kills_with_each_interaction_applied_once(tmp_path):
    path = tmp_path / "siltstone.db"
    num_kills = int(os.environ.get("SILTSTONE_KILLS", "20"))
    kill_often(path, "exact", POINTS, num_kills, seed=20)
    assert applied_once(path)


def test_a_stream_without_the_one_transaction_does_not_survive(tmp_path):
    path = tmp_path / "siltstone.db"
    kill_often(path, "torn", ["worker.between"], 5, seed=5)
    assert not applied_once(path)


def pause_and_overtake(path, task):
    """Pauses a writer before its commit, lets another do all the work, and wakes the first. Returns its status."""
    append(path, 0, 24)
    with start_worker(path, task) as zombie:
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "paused\n"
        assert run_worker(path, "exact") == 0
        zombie.communicate("go\n", timeout=60)
    return zombie.returncode


def test_a_writer_that_wakes_after_its_successor_is_refused(tmp_path):
    path = tmp_path / "siltstone.db"
    assert pause_and_overtake(path, "pause") == FENCED
    assert applied_once(path)


def test_a_writer_without_epoch_and_position_checks_undoes_its_successors_work(tmp_path):
    path = tmp_path / "siltstone.db"
    assert pause_and_overtake(path, "pause-unfenced") == 0
    assert not applied_once(path)
