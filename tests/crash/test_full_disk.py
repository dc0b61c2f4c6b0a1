"""A disk that is full refuses the write and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from full_disk_worker import NEVER_REFUSED

WORKER = Path(__file__).with_name("full_disk_worker.py")


def run_worker(path, spare_bytes):
    command = [sys.executable, str(WORKER), str(path), str(spare_bytes)]
    return subprocess.run(command, timeout=120, check=False).returncode


def test_a_full_disk_refuses_writes_changes_nothing_and_resumes_when_there_is_room(tmp_path):
    assert run_worker(tmp_path / "siltstone.db", 1_500_000) == 0


def test_a_disk_with_room_refuses_nothing(tmp_path):
    assert run_worker(tmp_path / "siltstone.db", 0) == NEVER_REFUSED
