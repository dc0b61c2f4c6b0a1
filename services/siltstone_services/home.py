"""The home folder of one Siltstone: who uses it, and where its server listens. Standard library only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import Final

from siltstone.errors import Unavailable

_RUNNING: Final = "up.json"
_LOCK: Final = "up.lock"
_LOOK_S: Final = 0.05
_NIGHT: Final = "night"


class NoServer(Unavailable):
    """Nobody answers where a server is expected. Args: what, reason."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that said it runs: where it listens, and its process."""

    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a home folder, and the core it uses: empty until it knows which.

    `is_night` says that it is a night in which memories sleep, and not a server.
    """

    pid: str
    core: str
    is_night: bool = False

    def in_use(self, home: Path) -> Unavailable:
        """Returns the error for who wants the home folder too."""
        if self.is_night:
            told = f"memories sleep in it, in the night of process {self.pid}; `siltstone sleep cancel` ends that"
            return Unavailable(f"the home folder {home}", told)
        return Unavailable(f"the home folder {home}", f"process {self.pid} uses it")


class Hold:
    """This process's hold of a home folder."""

    def __init__(self, descriptor: int, is_night: bool = False) -> None:
        self._descriptor, self._mark = descriptor, _NIGHT if is_night else ""
        self.use("")

    def use(self, core: str) -> None:
        """Says which core, by digest, is used from now on: nobody is to remove it."""
        told = " ".join(filter(None, (str(os.getpid()), core, self._mark))).encode() + b"\n"
        os.pwrite(self._descriptor, told, 0)
        os.ftruncate(self._descriptor, len(told))


@contextmanager
def exclusive(home: Path, *, is_night: bool = False) -> Iterator[Hold]:
    """Holds the home folder, made where there is none, for this process alone; the system lets go if we are killed.

    A night says that it is one: it is no server, so others may look at what is in the home meanwhile.

    Raises: Unavailable when another process holds it.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Unavailable(f"the home folder {home}", error.strerror or str(error)) from error
    try:
        if not try_lock(descriptor, LOCK_EX):
            # It may be somebody who only looks who holds it: that takes no time.
            time.sleep(_LOOK_S)
            if not try_lock(descriptor, LOCK_EX):
                raise _read_holder(descriptor).in_use(home)
        yield Hold(descriptor, is_night)
    finally:
        os.close(descriptor)


def holder_of(home: Path) -> Holder | None:
    """Returns the process that holds a home folder, or None for one that is free."""
    try:
        descriptor = os.open(home / _LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if try_lock(descriptor, LOCK_SH) else _read_holder(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Takes a lock on an open file without waiting, and says whether it could."""
    try:
        flock(descriptor, kind | LOCK_NB)
    except OSError:
        return False
    return True


def _read_holder(descriptor: int) -> Holder:
    pid, *rest = os.pread(descriptor, 128, 0).decode("ascii", "replace").split() or ["unknown"]
    core = next((word for word in rest if word != _NIGHT), "")
    return Holder(pid, core, _NIGHT in rest)


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

    Raises: NoServer when there is none, or its process has ended without a word; Unavailable while a process holds the
    home folder and does not listen.
    """
    try:
        told = json.loads((home / _RUNNING).read_text(encoding="utf-8"))
        server = RunningServer(str(told["address"]), int(told["pid"]))
        os.kill(server.pid, 0)
    except PermissionError:
        return server
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (holder := holder_of(home)) is not None and not holder.is_night:
            found = f"process {holder.pid} holds {home} and does not listen: it is starting, or stopping"
            raise Unavailable("the server", f"{found}; try again in a moment") from error
        raise NoServer("the server", f"none runs on {home}") from error
    return server
