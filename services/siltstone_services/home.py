"""The home folder of one Siltstone: who uses it, and where its server listens. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final

from siltstone.errors import Unavailable

_RUNNING: Final = "up.json"
_LOCK: Final = "up.lock"


class NoServer(Unavailable):
    """Nobody answers where a server is expected. Args: what, reason."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that said it runs: where it listens, and its process."""

    address: str
    pid: int


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Holds the home folder, made where there is none, for this process alone; the system lets go if we are killed.

    Raises: Unavailable when another process holds it.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Unavailable(f"the home folder {home}", error.strerror or str(error)) from error
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise Unavailable(f"the home folder {home}", f"process {holder or 'unknown'} uses it") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def announced(home: Path, address: str) -> Iterator[None]:
    """Tells other commands where the server of this process listens, for as long as the block runs."""
    path = home / _RUNNING
    beside = path.with_name(f".{_RUNNING}")
    beside.write_text(json.dumps({"address": address, "pid": os.getpid()}) + "\n", encoding="utf-8")
    beside.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_server(home: Path) -> RunningServer:
    """Returns the server that runs on a home folder.

    Raises: NoServer when there is none, or its process has ended without a word.
    """
    try:
        told = json.loads((home / _RUNNING).read_text(encoding="utf-8"))
        server = RunningServer(str(told["address"]), int(told["pid"]))
        os.kill(server.pid, 0)
    except PermissionError:
        return server
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoServer("the server", f"none runs on {home}") from error
    return server
