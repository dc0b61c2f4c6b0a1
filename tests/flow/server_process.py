"""Starts and always stops processes: a server over an echo host, `siltstone up`, any command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def echo_server(home: Path, pause_s: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Gives a running server over an echo host, and its address."""
    script = Path(__file__).with_name("echo_server.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(home), str(pause_s)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield process, address
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    """Starts a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from siltstone_services.cli import main; main()", "--home", str(home), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@contextmanager
def up(home: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Gives a running `siltstone up` and the lines of its log so far; it is gone when the block ends."""
    process = start(home, "up", "--port", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    # Read as it comes: a full pipe would stop the server.
    reader = threading.Thread(target=log.extend, args=(process.stderr,))
    reader.start()
    try:
        told = process.stdout.readline()
        assert told.startswith("siltstone listens at 127.0.0.1:"), (told, log)
        yield process, log
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
