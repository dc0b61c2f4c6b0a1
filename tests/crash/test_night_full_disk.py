"""A night on a full disk is refused with what serves untouched, and succeeds when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_night import make_home, sleep, state_of

WORKER = Path(__file__).with_name("night_on_full_disk.py")


def run(home: Path, seed: int, max_bytes: int) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WORKER.parent.parent), *sys.path])}
    command = [sys.executable, str(WORKER), str(home), str(seed), str(max_bytes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 5), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("full"))
    sleep(folder, seed=0)
    return folder


# Below the core's own size; above it and below that of the evidence and of the databases, whose pages grow.
@pytest.mark.parametrize("max_bytes", [4_096, 60_000, 110_000])
def test_a_full_disk_refuses_the_night_and_with_room_it_is_one_version(home: Path, max_bytes: int) -> None:
    before = state_of(home)
    assert before["champion"] is not None

    assert run(home, max_bytes, max_bytes) == 5

    after = state_of(home)
    assert (after["champion"], after["default"]) == (before["champion"], before["default"])
    assert after["versions"][: len(before["versions"])] == before["versions"]
    done = sleep(home, max_bytes, accepts=False)
    assert [one[0] for one in state_of(home)["versions"] if one[3] == done.plan.id] == [done.version.number]


def test_with_room_the_night_ends(home: Path) -> None:
    """The control: what the test above runs does not fail by itself."""
    assert run(home, 1, 0) == 0
