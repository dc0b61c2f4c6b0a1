"""One user's way through what is to be absorbed: which lesson is next, and what the memory has become so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from siltstone.memory.lessons import LessonPlan
from siltstone.memory.reservoir import ReservoirLimits, add, entry_of
from siltstone.memory.user_memory import NUM_REMEMBERED_IDS, UserMemory
from siltstone.model.lesson import Lesson, Span
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
        self._own_of_next: deque[Lesson] | None = None
        self._at = 0
        self._nats, self._num_learned = 0.0, 0
        self._open_next()

    def next_spans(self, room: int) -> list[Span]:
        """Returns what is read next: lessons, or parts of them, of `room` learned tokens together.

        They are fewer only where everything is absorbed then, or where what comes next hangs on what these will show.
        Empty when everything is absorbed.
        """
        spans: list[Span] = []
        for lesson in self._known():
            span = lesson.span(0 if spans else self._at, room)
            spans.append(span)
            room -= span.num_learned
            if not room:
                break
        return spans

    def has_read(self, span: Span, nats: float) -> None:
        """Notes what a span has shown, and goes on behind it: in its lesson, or to the next."""
        self._position += span.num_learned
        # How surprising an interaction was is a matter of its own words, not of those replayed with it.
        if self._own:
            self._nats += nats
            self._num_learned += span.num_learned
        self._at = span.end
        if span.is_last:
            self._at = 0
            (self._own or self._replayed).popleft()
            if not self._own and not self._replayed:
                self._close()
                self._open_next()

    def _known(self) -> Iterator[Lesson]:
        """Yields the lessons that are known already: those of this interaction, and the next one's own."""
        yield from self._own
        yield from self._replayed
        if len(self._waiting) > 1:
            if self._own_of_next is None:
                self._own_of_next = deque(self._plan.lessons(self._waiting[1]))
            yield from self._own_of_next

    def _open_next(self) -> None:
        while self._waiting and not self._own:
            interaction = self._waiting[0]
            self._own = deque(self._plan.lessons(interaction)) if self._own_of_next is None else self._own_of_next
            self._own_of_next = None
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
