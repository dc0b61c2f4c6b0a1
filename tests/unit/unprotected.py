"""The absorber with one protection taken away each: what the invariants must catch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.user_memory import UserMemory
from siltstone.model.lesson import LessonBatch, PieceResult
from siltstone.model.levels import GRADIENT, LevelCounters
from siltstone.values import Interaction

Work = Sequence[tuple[UserMemory, Sequence[Interaction]]]


class _LeakyBatch(LessonBatch):
    def read_piece(self, coefficients_BN: torch.Tensor, room: Sequence[int], gate_nats: float) -> PieceResult:
        piece = super().read_piece(coefficients_BN, room, gate_nats)
        mean = piece.gradient_BN.mean(dim=0, keepdim=True).expand_as(piece.gradient_BN)
        return replace(piece, gradient_BN=mean)


class _GreedyBatch(LessonBatch):
    def read_piece(self, coefficients_BN: torch.Tensor, room: Sequence[int], gate_nats: float) -> PieceResult:
        return super().read_piece(coefficients_BN, [10**9] * len(room), gate_nats)


class LeakyAbsorber(Absorber):
    """Averages the gradient over the users of a batch, as training usually does."""

    def _next_batch(self, pending):  # type: ignore[no-untyped-def]
        rows, batch = super()._next_batch(pending)
        batch.__class__ = _LeakyBatch
        return rows, batch


class GreedyAbsorber(Absorber):
    """Reads lessons whole, without a cut where a period ends."""

    def _next_batch(self, pending):  # type: ignore[no-untyped-def]
        rows, batch = super()._next_batch(pending)
        batch.__class__ = _GreedyBatch
        return rows, batch


class ForgetfulAbsorber(Absorber):
    """Starts a new period with every call."""

    def absorb(self, work: Work) -> Iterator[Step | list[UserMemory]]:
        started = []
        for memory, interactions in work:
            numbers = memory.numbers.clone()
            numbers[:, GRADIENT] = 0
            counters = LevelCounters(memory.counters.num_updates, [0] * len(numbers), [0.0] * len(numbers))
            started.append((memory.next(numbers=numbers, counters=counters), interactions))
        return super().absorb(started)
