"""Absorbing many users' interactions at once, in small steps that can be interleaved with answering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from siltstone.memory.learner import Learner
from siltstone.memory.lessons import LessonPlan
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import MemoryConfig, UserMemory
from siltstone.model.core import Core, KeyValues, read_prefix
from siltstone.model.deltas import Basis, DeltaShape
from siltstone.model.guard import Guard
from siltstone.model.lesson import LessonBatch
from siltstone.model.levels import coefficients, fold_in
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
        self._prefix = read_prefix(core, plan.prefix_ids)

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
        learners = [Learner(memory, interactions, self._plan, self._limits) for memory, interactions in work]
        numbers = torch.stack([memory.numbers for memory, _ in work]).to(self._core.device)
        while any(learner.lesson for learner in learners):
            rows, batch = self._next_batch(learners)
            reading = [learners[row] for row in rows]
            counters = [learner.counters for learner in reading]
            while not batch.is_done:
                # Everybody's state is moved where it is; only a part of the users' is gathered first.
                takes_all = len(rows) == len(learners)
                index = torch.tensor(rows, device=numbers.device)
                state = numbers if takes_all else numbers[index]
                # Every level's period is a multiple of the fastest's, so no piece crosses any boundary.
                # At least one token: a memory kept under a longer period may already be past the end of this one.
                room = [max(1, self._config.fast.period_tokens - counter.open_tokens[0]) for counter in counters]
                piece = batch.read_piece(coefficients(state), room, self._config.gate_nats)
                fold_in(
                    self._shape,
                    self._config.levels,
                    state,
                    counters,
                    piece.gradient_BN,
                    piece.learned_tokens,
                    piece.surprise,
                    self._guard,
                )
                if not takes_all:
                    numbers[index] = state
                for learner, learned, nats in zip(reading, piece.learned_tokens, piece.nats, strict=True):
                    learner.has_learned(learned, nats)
                yield Step(len(rows), sum(piece.learned_tokens))
            for learner in reading:
                learner.end_lesson()
        numbers = numbers.cpu()
        yield [learner.grown(numbers[row].clone()) for row, learner in enumerate(learners)]

    def _next_batch(self, learners: Sequence[Learner]) -> tuple[list[int], LessonBatch]:
        """Takes the next lesson of every user who has one, of one kind of context."""
        waiting = [(row, lesson) for row, learner in enumerate(learners) if (lesson := learner.lesson) is not None]
        after_prefix = waiting[0][1].after_prefix
        taken = [(row, lesson) for row, lesson in waiting if lesson.after_prefix == after_prefix]
        prefix = self._prefix if after_prefix else None
        batch = LessonBatch(self._core, self._shape, self._basis, [lesson for _, lesson in taken], prefix)
        return [row for row, _ in taken], batch
