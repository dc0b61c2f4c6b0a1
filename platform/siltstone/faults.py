"""Places at which a crash test lets the process die. Standard library only."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Final

FAULT_VARIABLE: Final = "SILTSTONE_FAULT"
"""Environment variable that arms one fault point: `name:count`, to die when `name` is reached for the count-th time."""


@dataclass(slots=True)
class _Armed:
    name: str
    remaining: int
    lock: threading.Lock = field(default_factory=threading.Lock)


def _armed_by(setting: str) -> _Armed | None:
    name, _, count = setting.rpartition(":")
    return _Armed(name, int(count)) if setting else None


_armed = _armed_by(os.environ.get(FAULT_VARIABLE, ""))


def fault_point(name: str) -> None:
    """Does nothing, unless this point was armed when the process started: then kill -9, with no chance to clean up."""
    if _armed is None or _armed.name != name:
        return
    with _armed.lock:
        _armed.remaining -= 1
        if _armed.remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
