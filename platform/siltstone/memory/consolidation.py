"""When a memory sleeps, what goes into its sleep, and what it is afterwards.

A sleep of a level moves what the level and all faster ones hold into the next slower one: fast into mid, mid into slow.
How that is learned is the business of whoever runs the sleep; here is only what of the memory takes part.

Shapes: N coefficients, L levels, S buffers of a level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from siltstone.memory.lessons import LessonPlan
from siltstone.memory.restate import sentences
from siltstone.memory.user_memory import LEVEL_NAMES, MemoryConfig, UserMemory
from siltstone.model.lesson import Lesson
from siltstone.model.levels import DELTA, LevelCounters


@dataclass(frozen=True, slots=True)
class Parts:
    """A memory's coefficients as a sleep sees them; together they are the memory's. [N] each.

    `moves` leaves its levels, `target` is the slower level before the sleep, `stays` is everything else. The target's
    norm is bounded by `max_norm`.
    """

    stays_N: Tensor
    target_N: Tensor
    moves_N: Tensor
    max_norm: float


def sleep_is_due(position_tokens: int, slept_at_tokens: int, sleep_tokens: int) -> bool:
    """Says whether a level is to sleep: so much of the user's own was learned since it last did.

    The position counts the user's own tokens, so it does not matter how long that took or who else was there.
    """
    return position_tokens - slept_at_tokens >= sleep_tokens


def due_level(memory: UserMemory, config: MemoryConfig) -> int | None:
    """Returns the slowest level that is to sleep, 0 the fastest; None where none is. It takes all faster ones along."""
    due = [
        level
        for level, own in enumerate(config.levels)
        if sleep_is_due(memory.position_tokens, memory.sleeps.at_tokens[level], own.sleep_tokens)
    ]
    return max(due, default=None)


def parts_of(memory: UserMemory, level: int, kept_share: float, config: MemoryConfig) -> Parts:
    """Returns what a sleep of a level moves, into what, and what stays; `kept_share` of what moves stays too."""
    deltas_LN = memory.numbers[:, DELTA]
    emptied_N = deltas_LN[: level + 1].sum(dim=0)
    if level + 1 < len(LEVEL_NAMES):
        target_N, max_norm = deltas_LN[level + 1], config.levels[level + 1].max_norm
        slower_N = deltas_LN[level + 2 :].sum(dim=0)
        slower_N = slower_N if memory.slow_N is None else slower_N + memory.slow_N
    else:
        target_N = torch.zeros_like(emptied_N) if memory.slow_N is None else memory.slow_N
        max_norm, slower_N = config.slow_max_norm, torch.zeros_like(emptied_N)
    return Parts(slower_N + kept_share * emptied_N, target_N, (1 - kept_share) * emptied_N, max_norm)


def slept(memory: UserMemory, level: int, kept_share: float, target_N: Tensor) -> UserMemory:
    """Returns the memory after an accepted sleep of a level: emptied levels, a new slower one, one commit later.

    Of the emptied levels the open gradient and the momentum go too: they were taken where the levels no longer are.
    Their tokens stay counted, so that a level goes on moving at multiples of its period of the user's own tokens; the
    surprise of those whose gradient is gone no longer counts.
    """
    numbers = memory.numbers.clone()
    numbers[: level + 1, DELTA] *= kept_share
    numbers[: level + 1, DELTA + 1 :] = 0
    slow_N = memory.slow_N
    if level + 1 < len(LEVEL_NAMES):
        numbers[level + 1, DELTA] = target_N
    else:
        slow_N = target_N
    surprise = [0.0 if at <= level else own for at, own in enumerate(memory.counters.open_surprise)]
    counters = LevelCounters(list(memory.counters.num_updates), list(memory.counters.open_tokens), surprise)
    counts = tuple(num + (at <= level) for at, num in enumerate(memory.sleeps.counts))
    at_tokens = tuple(memory.position_tokens if at <= level else own for at, own in enumerate(memory.sleeps.at_tokens))
    return memory.next(
        sequence=memory.sequence + 1,
        counters=counters,
        numbers=numbers,
        slow_N=slow_N,
        sleeps=replace(memory.sleeps, counts=counts, at_tokens=at_tokens),
    )


def replay_of(memory: UserMemory, plan: LessonPlan, level: int) -> list[Lesson]:
    """Returns what the user has told, as lessons, to cues that are others in every sleep."""
    return retold(memory, plan, f"sleep/{LEVEL_NAMES[level]}/{memory.sleeps.counts[level]}")


def retold(memory: UserMemory, plan: LessonPlan, seed: str) -> list[Lesson]:
    """Returns every statement of a user that is kept, as the answer to a cue that the seed chooses."""
    return [
        plan.as_recalled(sentence, f"{entry.interaction_id}/{number}/{seed}")
        for entry in memory.reservoir.entries
        for number, sentence in enumerate(told for line in entry.lines for told in sentences(line))
    ]
