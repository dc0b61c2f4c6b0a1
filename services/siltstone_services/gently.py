"""Work that is not to take the processor from those who serve."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

NICENESS: Final = 8
"""Of such work: on a processor that others want as well, it gets a sixth of what each of them gets."""


async def gently(work: Callable[[], T]) -> T:
    """Returns what work returns, done on a thread of its own that gives way to others.

    A thread that has given way cannot take that back without a right: this one ends with its work, and so must whatever
    threads the work starts. On systems that know priorities of processes only it is a thread like any other.
    """
    done: Future[T] = Future()

    def run() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # Not one to wait for: a process that is told to end while it starts ends.
    threading.Thread(target=run, name="siltstone-gently", daemon=True).start()
    return await asyncio.wrap_future(done)
