"""Starts and always stops a server process."""

from __future__ import annotations

import os
import subprocess
import sys
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
