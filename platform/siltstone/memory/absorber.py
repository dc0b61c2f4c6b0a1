"""Absorbing many users' interactions at once, in small steps that can be interleaved with answering."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from siltstone.memory.lessons import LessonPlan
from siltstone.memory.reservoir import ReservoirLimits, add, entry_of
from siltstone.memory.user_memory import NUM_REMEMBERED_IDS, MemoryConfig, UserMemory
from siltstone.model.core import Core, KeyValues, forward_keeping
from siltstone.model.deltas import Basis, DeltaShape
from siltstone.model.guard import Guard
from siltstone.model.lesson import Lesson, LessonBatch
from siltstone.model.levels import LevelCounters, coefficients, fold_in
from siltstone.values import Interaction


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-step did."""

    num_users: int
    num_tokens: int


class Absorber:
    """Folds interactions into memories, for one core. Keeps no user's state between calls."""

    def __init__(
        self,
        core: Core,
        shape: DeltaShape,
        basis: Basis,
        plan: LessonPlan,
        config: MemoryConfig,
        limits: ReservoirLimits,
        guard: Guard | None = None,
    ) -> None:
        self._core, self._shape, self._basis = core, shape, basis
        self._plan, self._config, self._limits, self._guard = plan, config, limits, guard
        self._prefix: KeyValues | None = None
        if plan.prefix_ids:
            with torch.no_grad():
                _, self._prefix = forward_keeping(core, torch.tensor([plan.prefix_ids], device=core.device))

    @property
    def prefix(self) -> KeyValues | None:
        """Keys and values of the default prefix as the bare core computes them; None where the core has no prefix."""
        return self._prefix

    def absorb(self, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]) -> Iterator[Step | list[UserMemory]]:
        """Folds each user's interactions, in order, into that user's memory. The owners must be distinct.

        Yields a `Step` after each micro-step, and at last the list of new memories, in the order of `work`. An
        interaction whose id the memory already holds changes nothing. Each user's state is a function of that user's
        interactions alone: neither the other users of the batch nor its order enter it.
        """
        memories = [memory for memory, _ in work]
        queues = [_new(memory, interactions) for memory, interactions in work]
        numbers = torch.stack([memory.numbers for memory in memories]).to(self._core.device)
        counters = [memory.counters.copy() for memory in memories]
        positions = [memory.position_tokens for memory in memories]
        lessons = [[self._plan.lessons(interaction) for interaction in queue] for queue in queues]
        nats = [[[0.0, 0] for _ in queue] for queue in queues]
        pending = [[(j, lesson) for j, group in enumerate(groups) for lesson in group] for groups in lessons]
        while any(pending):
            rows, batch = self._next_batch(pending)
            while not batch.is_done:
                # Everybody's state is moved where it is; only a part of the users' is gathered first.
                takes_all = len(rows) == len(memories)
                index = torch.tensor(rows, device=numbers.device)
                state = numbers if takes_all else numbers[index]
                # Every level's period is a multiple of the fastest's, so no piece crosses any boundary.
                # At least one token: a memory kept under a longer period may already be past the end of this one.
                room = [max(1, self._config.fast.period_tokens - counters[row].open_tokens[0]) for row in rows]
                piece = batch.read_piece(coefficients(state), room, self._config.gate_nats)
                fold_in(
                    self._shape,
                    self._config.levels,
                    state,
                    [counters[row] for row in rows],
                    piece.gradient_BN,
                    piece.learned_tokens,
                    piece.surprise,
                    self._guard,
                )
                if not takes_all:
                    numbers[index] = state
                for row, learned, sum_nats in zip(rows, piece.learned_tokens, piece.nats, strict=True):
                    positions[row] += learned
                    tally = nats[row][pending[row][0][0]]
                    tally[0] += sum_nats
                    tally[1] += learned
                yield Step(len(rows), sum(piece.learned_tokens))
            for row in rows:
                pending[row].pop(0)
        numbers = numbers.cpu()
        yield [
            self._grown(memory, queue, positions[row], counters[row], nats[row], numbers[row].clone())
            for row, (memory, queue) in enumerate(zip(memories, queues, strict=True))
        ]

    def _next_batch(self, pending: list[list[tuple[int, Lesson]]]) -> tuple[list[int], LessonBatch]:
        """Takes the next lesson of every user who has one, of one kind of context."""
        waiting = [row for row, queue in enumerate(pending) if queue]
        after_prefix = pending[waiting[0]][0][1].after_prefix
        rows = [row for row in waiting if pending[row][0][1].after_prefix == after_prefix]
        prefix = self._prefix if after_prefix else None
        taken = [pending[row][0][1] for row in rows]
        return rows, LessonBatch(self._core, self._shape, self._basis, taken, prefix)

    def _grown(
        self,
        memory: UserMemory,
        absorbed: Sequence[Interaction],
        position: int,
        counters: LevelCounters,
        nats: list[list[float]],
        numbers: torch.Tensor,
    ) -> UserMemory:
        reservoir = memory.reservoir
        for interaction, (sum_nats, learned) in zip(absorbed, nats, strict=True):
            surprise = sum_nats / learned if learned else 0.0
            # Such a memory is not sound, which its owner's shard sees; here it must not stop the other users.
            surprise = surprise if math.isfinite(surprise) else 0.0
            reservoir = add(reservoir, entry_of(interaction, surprise, self._limits), self._limits)
        ids = (*memory.absorbed_ids, *(interaction.id for interaction in absorbed))
        return memory.next(
            position_tokens=position,
            num_interactions=memory.num_interactions + len(absorbed),
            counters=counters,
            absorbed_ids=ids[-NUM_REMEMBERED_IDS:],
            reservoir=reservoir,
            numbers=numbers,
        )


def _new(memory: UserMemory, interactions: Sequence[Interaction]) -> list[Interaction]:
    """Returns the interactions the memory has not absorbed, each id once."""
    seen = set(memory.absorbed_ids)
    new = []
    for interaction in interactions:
        if interaction.id not in seen:
            seen.add(interaction.id)
            new.append(interaction)
    return new
