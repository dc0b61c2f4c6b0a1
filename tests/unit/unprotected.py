"""The absorber with one protection taken away each: what the invariants must catch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.learner import Learner
from siltstone.memory.user_memory import UserMemory
from siltstone.model.lesson import LessonReader, PieceResult, Span
from siltstone.model.levels import GRADIENT, LevelCounters
from siltstone.values import Interaction

Work = Sequence[tuple[UserMemory, Sequence[Interaction]]]


class _LeakyReader(LessonReader):
    def read_piece(
        self, coefficients_BN: torch.Tensor, users: Sequence[int], spans: Sequence[Sequence[Span]], gate_nats: float
    ) -> PieceResult:
        piece = super().read_piece(coefficients_BN, users, spans, gate_nats)
        mean = piece.gradient_BN.mean(dim=0, keepdim=True).expand_as(piece.gradient_BN)
        return replace(piece, gradient_BN=mean)


class LeakyAbsorber(Absorber):
    """Averages the gradient over the users of a batch, as training usually does."""

    def _reader(self, num_users: int) -> LessonReader:
        return _LeakyReader(self._core, self._shape, self._basis, num_users, self._prefix)


class GreedyAbsorber(Absorber):
    """Reads lessons whole, without a cut where a period ends."""

    def _next_spans(self, learners: Sequence[Learner]) -> dict[int, list[Span]]:
        found = {row: learner.next_spans(10**9)[:1] for row, learner in enumerate(learners)}
        return {row: own for row, own in found.items() if own}


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
