"""Threads that compute side by side what does not depend on one another: users, or parts of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
Look = Callable[[], None]
"""Looks whether work is to go on, on any thread and often: what it raises ends the work."""


def go_on() -> None:
    """Lets work go on to its end."""


class Crew:
    """Runs independent calls at the same time, each on one thread and with one torch thread.

    Torch's own threads meet at the end of every operation, thousands of times a step, and the slower one is waited for
    each time; here they meet once a step. Measured on two cores: users absorbed in two halves side by side take half
    the time of one batch on two torch threads, and far less when another process wants a core too.
    """

    def __init__(self, num_threads: int = 1, look: Look = go_on) -> None:
        """Takes who looks before every call. Whoever takes long over one calls `look` too."""
        self.num_threads, self.look = num_threads, look
        self._pool = ThreadPoolExecutor(num_threads, "siltstone-crew") if num_threads > 1 else None

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Returns what every call returns, in order. The first error is raised when all have ended."""
        if self._pool is None or len(calls) < 2:
            return [self._run(call) for call in calls]
        with _one_torch_thread():
            # A thread counts torch's threads for itself, and the matrix library counts for all: both must be told.
            running = [self._pool.submit(self._run_alone, call) for call in calls]
            wait(running)
        return [done.result() for done in running]

    def _run(self, call: Callable[[], T]) -> T:
        self.look()
        return call()

    def _run_alone(self, call: Callable[[], T]) -> T:
        torch.set_num_threads(1)
        return self._run(call)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
