"""One user's way through what is to be absorbed: which lesson is next, and what the memory has become so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from siltstone.memory.lessons import LessonPlan
from siltstone.memory.reservoir import ReservoirLimits, add, entry_of
from siltstone.memory.user_memory import NUM_REMEMBERED_IDS, UserMemory
from siltstone.model.lesson import Lesson
from siltstone.values import Interaction


class Learner:
    """A user who learns interactions one after the other.

    What is replayed with an interaction comes from the reservoir as the interaction before left it, so that it does not
    depend on how many of them are absorbed in one call. An interaction whose id the memory already holds is left out.
    """

    def __init__(
        self, memory: UserMemory, interactions: Sequence[Interaction], plan: LessonPlan, limits: ReservoirLimits
    ) -> None:
        self._memory, self._plan, self._limits = memory, plan, limits
        self.counters = memory.counters.copy()
        self._position = memory.position_tokens
        self._reservoir = memory.reservoir
        self._absorbed: list[str] = []
        self._waiting = deque(_new(memory, interactions))
        self._own: deque[Lesson] = deque()
        self._replayed: deque[Lesson] = deque()
        self._nats, self._num_learned = 0.0, 0
        self._open_next()

    @property
    def lesson(self) -> Lesson | None:
        """The lesson to be read now; None when everything is absorbed."""
        if self._own:
            return self._own[0]
        return self._replayed[0] if self._replayed else None

    def has_learned(self, num_tokens: int, nats: float) -> None:
        """Notes what a piece of the lesson gave."""
        self._position += num_tokens
        # How surprising an interaction was is a matter of its own words, not of those replayed with it.
        if self._own:
            self._nats += nats
            self._num_learned += num_tokens

    def end_lesson(self) -> None:
        """Goes on to the next lesson, of this interaction or of the next."""
        (self._own or self._replayed).popleft()
        if self.lesson is None:
            self._close()
            self._open_next()

    def _open_next(self) -> None:
        while self._waiting and self.lesson is None:
            interaction = self._waiting[0]
            self._own.extend(self._plan.lessons(interaction))
            if self._own:
                self._replayed.extend(self._plan.replays(interaction.id, self._reservoir.lines()))
            else:
                self._close()

    def _close(self) -> None:
        interaction = self._waiting.popleft()
        surprise = self._nats / self._num_learned if self._num_learned else 0.0
        # Such a memory is not sound, which its owner's shard sees; here it must not stop the other users.
        surprise = surprise if math.isfinite(surprise) else 0.0
        self._reservoir = add(self._reservoir, entry_of(interaction, surprise, self._limits), self._limits)
        self._absorbed.append(interaction.id)
        self._nats, self._num_learned = 0.0, 0

    def grown(self, numbers: Tensor) -> UserMemory:
        """Returns the new memory, with its levels' new numbers."""
        ids = (*self._memory.absorbed_ids, *self._absorbed)
        return self._memory.next(
            position_tokens=self._position,
            num_interactions=self._memory.num_interactions + len(self._absorbed),
            counters=self.counters,
            absorbed_ids=ids[-NUM_REMEMBERED_IDS:],
            reservoir=self._reservoir,
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
