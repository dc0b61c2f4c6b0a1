"""Timing in turns: what is compared is run side by side, so that a busy machine slows all of it alike.

Computing on a processor is timed by the thread's own processor time, system calls included: on one thread that is what
the clock says on a machine that does nothing else, and what other programs take away is not counted. They still share
caches and memory with us. What waits for a disk or a GPU is timed by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the things compared.

    `work` is timed; `prepare` runs before, untimed. With `warm` the work is done once more, untimed, right before it is
    timed: what the others left in the processor's caches is then no longer there.
    """

    work: Callable[[], object]
    prepare: Callable[[], object] | None = None
    steps: int = 1
    warm: bool = True


def take_turns(
    turns: Mapping[str, Turn], rounds: int, device: torch.device | str = "cpu", *, waits: bool = False
) -> dict[str, list[float]]:
    """Runs every turn once a round and returns the seconds of one step of each, a list entry a round.

    Every second round goes backwards. `waits` says that the work waits for something other than the processor.
    """
    clock = time.perf_counter if waits or torch.device(device).type != "cpu" else time.thread_time
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(rounds):
        for name in reversed(names) if number % 2 else names:
            seconds[name].append(_time(turns[name], device, clock))
    return seconds


def _time(turn: Turn, device: torch.device | str, clock: Callable[[], float]) -> float:
    if turn.prepare is not None:
        turn.prepare()
    if turn.warm:
        turn.work()
    settle(device)
    start_s = clock()
    for _ in range(turn.steps):
        turn.work()
    settle(device)
    return (clock() - start_s) / turn.steps


def settle(device: torch.device | str) -> None:
    """Waits until a device has done all it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
