"""Work on a thread of its own, which is not to take the processor from those who serve, or not to be waited for."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

NICENESS: Final = 8
"""Of such work: on a processor that others want as well, it gets a sixth of what each of them gets."""


async def gently(work: Callable[[], T]) -> T:
    """Returns what work returns, done on a thread of its own that gives way to others: see `apart`.

    A thread that has given way cannot take that back without a right: this one ends with its work, and so must whatever
    threads the work starts. On systems that know priorities of processes only it is a thread like any other.
    """

    def run() -> T:
        _give_way()
        return work()

    return await apart(run)


async def apart(work: Callable[[], T]) -> T:
    """Returns what work returns, done on a thread of its own. A process that is told to end does not wait for it."""
    done: Future[T] = Future()
    # Whoever waits may stop waiting: the work goes on, and nobody hears of it.
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="siltstone-apart", daemon=True).start()
    return await asyncio.wrap_future(done)


def _give_way() -> None:
    if sys.platform == "linux":
        # Where not even that is allowed, it is a thread like any other, too.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
