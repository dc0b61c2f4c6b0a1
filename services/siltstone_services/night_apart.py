"""Nights in a process of their own, so that they and whoever serves do not wait for one another.

What goes between the two is pickled by the standard library: both are this program, and nobody else holds the pipe.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self

from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.judging import Exam
from siltstone_services.night import NightDone, run_night

_CONTEXT: Final = multiprocessing.get_context("spawn")
"""A fork of a process with threads would hold their locks for ever."""
_END_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Slept:
    """What a night came to: the core it began with, the version it recorded, and how many dreams taught something."""

    core: str
    version: int
    num_dreams: int


@dataclass(frozen=True, slots=True)
class _Asked:
    config: SiltstoneConfig
    exam: Exam | None


class NightsApart:
    """Runs nights one after the other in one process. A night over the same plan learns from the same dreams."""

    def __enter__(self) -> Self:
        self._told, there = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_sleep_when_asked, args=(there,), name="siltstone-night", daemon=True)
        self._process.start()
        # Only the process itself may hold its end: when it dies, reading ends.
        there.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # It may be in the middle of a night, and a thread may read what it tells.
            self._process.kill()
            self._process.join()
        self._told.close()
        self._process.join(_END_S)
        self._process.kill()
        self._process.join()
        self._process.close()

    def sleep(
        self, config: SiltstoneConfig, exam: Exam | None, say: Callable[[str], None], on_step: Callable[[], None]
    ) -> Slept:
        """Runs a night, from the beginning of the journal. `on_step` is called after each step of training.

        Raises: as `run_night`; Unavailable when the process ended.
        """
        try:
            self._told.send(_Asked(config, exam))
            while True:
                match self._told.recv():
                    case str(text):
                        say(text)
                    case None:
                        on_step()
                    case Slept() as slept:
                        return slept
                    case error:
                        raise error
        except (EOFError, OSError) as error:
            raise Unavailable("the process of the night", "it ended") from error


def _sleep_when_asked(told: Connection) -> None:
    """Runs nights until nobody asks for more."""
    # An interrupt reaches everybody at the terminal: who asked is the one to end this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    before: NightDone | None = None
    while True:
        try:
            asked: _Asked = told.recv()
        except EOFError:
            return
        try:
            before = run_night(asked.config, 0, 0, told.send, lambda _: told.send(None), exam=asked.exam, before=before)
            told.send(Slept(before.plan.core, before.version.number, len(before.night.dreams)))
        except BrokenPipeError:
            return
        except Exception as error:
            told.send(error)
