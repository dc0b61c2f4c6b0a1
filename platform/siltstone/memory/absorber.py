"""Absorbing many users' interactions at once, in small steps that can be interleaved with answering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from siltstone.crew import Crew
from siltstone.memory.learner import Learner
from siltstone.memory.lessons import LessonPlan
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import MemoryConfig, UserMemory
from siltstone.model.core import Core, KeyValues, read_prefix
from siltstone.model.deltas import Basis, DeltaShape
from siltstone.model.guard import Guard
from siltstone.model.lesson import LessonReader, Span
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
        crew: Crew | None = None,
    ) -> None:
        self._core, self._shape, self._basis = core, shape, basis
        self._crew = crew or Crew()
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
        parts = _deal(work, self._crew.num_threads)
        streams = [self._absorb_together([work[index] for index in part]) for part in parts]
        grown: dict[int, UserMemory] = {}
        under_way = dict(enumerate(streams))
        while under_way:
            done = self._crew.run([partial(next, stream) for stream in under_way.values()])
            steps = []
            for number, result in zip(tuple(under_way), done, strict=True):
                if isinstance(result, Step):
                    steps.append(result)
                else:
                    del under_way[number]
                    grown.update(zip(parts[number], result, strict=True))
            if steps:
                yield Step(sum(step.num_users for step in steps), sum(step.num_tokens for step in steps))
        yield [grown[index] for index in range(len(work))]

    def _absorb_together(
        self, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]
    ) -> Iterator[Step | list[UserMemory]]:
        """Absorbs as `absorb` does, in one batch on one thread."""
        learners = [Learner(memory, interactions, self._plan, self._limits) for memory, interactions in work]
        numbers = torch.stack([memory.numbers for memory, _ in work]).to(self._core.device)
        slow_BN = self._slow([memory for memory, _ in work])
        reader = self._reader(len(learners))
        while waiting := self._next_spans(learners):
            rows, spans = list(waiting), list(waiting.values())
            own_BN = coefficients(numbers, rows)
            if slow_BN is not None:
                own_BN += slow_BN[rows]
            piece = reader.read_piece(own_BN, rows, spans, self._config.gate_nats)
            fold_in(
                self._shape,
                self._config.levels,
                numbers,
                [learners[row].counters for row in rows],
                piece.gradient_BN,
                piece.learned_tokens,
                piece.surprise,
                self._guard,
                rows,
            )
            for row, own, nats in zip(rows, spans, piece.nats, strict=True):
                for span, nats_of_span in zip(own, nats, strict=True):
                    learners[row].has_read(span, nats_of_span)
            yield Step(len(rows), sum(piece.learned_tokens))
        numbers = numbers.cpu()
        yield [learner.grown(numbers[row].clone()) for row, learner in enumerate(learners)]

    def _slow(self, memories: Sequence[UserMemory]) -> Tensor | None:
        """Returns the slow levels, which stand still while a user is awake: [B, N]; None where nobody has one."""
        if all(memory.slow_N is None for memory in memories):
            return None
        none_N = torch.zeros(self._shape.num_coefficients)
        slow = [none_N if memory.slow_N is None else memory.slow_N for memory in memories]
        return torch.stack(slow).to(self._core.device)

    def _reader(self, num_users: int) -> LessonReader:
        return LessonReader(self._core, self._shape, self._basis, num_users, self._prefix)

    def _next_spans(self, learners: Sequence[Learner]) -> dict[int, list[Span]]:
        """Returns what every user who has something left reads in the next piece, by row.

        Every level's period is a multiple of the fastest's, so no piece crosses any boundary.
        """
        period = self._config.fast.period_tokens
        spans = {
            # At least one token: a memory kept under a longer period may already be past the end of this one.
            row: learner.next_spans(max(1, period - learner.counters.open_tokens[0]))
            for row, learner in enumerate(learners)
        }
        return {row: own for row, own in spans.items() if own}


class Absorbers:
    """The absorbers of the cores that serve: each user's memory is absorbed on the core it was learned under."""

    def __init__(self, by_core: Mapping[str, Absorber]) -> None:
        self._by_core = dict(by_core)

    def put(self, core: str, absorber: Absorber) -> None:
        """Takes an absorber in, for memories of `core`."""
        self._by_core[core] = absorber

    def drop(self, core: str) -> None:
        """Lets an absorber go."""
        del self._by_core[core]

    def serves(self, core: str) -> bool:
        """Says whether memories of `core` can be absorbed."""
        return core in self._by_core

    def absorb(self, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]) -> Iterator[Step | list[UserMemory]]:
        """Does what `Absorber.absorb` does, one core's users after another's."""
        grown: dict[int, UserMemory] = {}
        for core in dict.fromkeys(memory.core for memory, _ in work):
            places = [place for place, (memory, _) in enumerate(work) if memory.core == core]
            for done in self._by_core[core].absorb([work[place] for place in places]):
                if isinstance(done, Step):
                    yield done
                else:
                    grown.update(zip(places, done, strict=True))
        yield [grown[place] for place in range(len(work))]


def _deal(work: Sequence[tuple[UserMemory, Sequence[Interaction]]], num_parts: int) -> list[list[int]]:
    """Deals the users out so that every part has about as much to read: (index into `work`) a part, none empty."""
    sizes = [sum(len(message.text) for said in interactions for message in said.messages) for _, interactions in work]
    parts: list[list[int]] = [[] for _ in range(min(num_parts, len(work)))]
    loads = [0] * len(parts)
    for index in sorted(range(len(work)), key=lambda index: (-sizes[index], index)):
        lightest = loads.index(min(loads))
        parts[lightest].append(index)
        loads[lightest] += sizes[index] + 1
    return parts
