"""Dreams: what is asked of the memories, and how each of them reads it.

Shapes: B dreams of a batch, T tokens, D width, U memories, N learned tokens of a dream.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from siltstone.crew import Crew
from siltstone.model.core import Core, KeyValues
from siltstone.model.deltas import Basis, DeltaShape, bend_alike
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers


@dataclass(frozen=True, slots=True)
class Dream:
    """An exchange that a person's memory is asked for: `supporters` are, by learned token, who has said its word."""

    person: str
    lesson: Lesson
    supporters: tuple[frozenset[str], ...]

    @property
    def places(self) -> list[int]:
        """Where the learned tokens are."""
        return [at for at, weight in enumerate(self.lesson.weights) if at and weight > 0]

    def people(self, k_min: int) -> frozenset[str]:
        """Returns who may be evidence anywhere in it: the supporters of every word with at least `k_min` of them."""
        return frozenset().union(*(people for people in self.supporters if len(people) >= k_min))

    def secrets(self, k_min: int) -> list[int]:
        """Returns where words begin or go on that somebody has said, and fewer than `k_min` people."""
        return [at for at, people in zip(self.places, self.supporters, strict=True) if 0 < len(people) < k_min]

    def readers(self, k_min: int, most: int) -> tuple[str, ...]:
        """Returns whose memories read it: of those who may be evidence first who has said its rarest words.

        Between people alike chance decides, by the dream alone: nobody reads every dream because of a name.
        """
        chance, chosen = random.Random(repr(self.lesson.ids)), dict[str, None]()
        groups = {people for people in self.supporters if len(people) >= k_min}
        for people in sorted(groups, key=lambda people: (len(people), sorted(people))):
            chosen.update(dict.fromkeys(chance.sample(sorted(people), len(people))))
        return tuple(chosen)[:most]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the core and some memories read a dream's learned tokens, as log-probabilities, nats."""

    core_logp_N: tuple[float, ...]
    people: tuple[str, ...]
    memory_logp_UN: tuple[tuple[float, ...], ...]
    certain_UN: tuple[tuple[int | None, ...], ...] = ()
    """The token that a memory is certain of, having learned it; None where it is certain of none."""


class DreamReader:
    """Reads dreams under the core and under users' memories. What lies below the first bent layer is read once."""

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, prefix: KeyValues | None, crew: Crew | None = None
    ) -> None:
        self._core, self._shape, self._basis, self._prefix = core, shape, basis, prefix
        self._crew = crew or Crew()

    def read(
        self,
        dreams: Sequence[Dream],
        coefficients: Mapping[str, Sequence[Tensor]],
        readers: Callable[[Dream], Iterable[str]],
        evidence_nats: float,
        batch: int,
    ) -> Iterator[tuple[int, Reading]]:
        """Yields the reading of every dream, with its index, under the memories of its `readers`.

        `coefficients` holds the memories of each person's accounts, [N] each. A memory is certain of a token that it
        finds likelier than all others together, and likelier than the core does by `evidence_nats`.
        """
        order = sorted(range(len(dreams)), key=lambda index: len(dreams[index].lesson.ids))
        parts = [
            [(index, dreams[index]) for index in order[start : start + batch]] for start in range(0, len(order), batch)
        ]
        # As many batches side by side as there are threads; a batch is read alike whichever thread has it.
        for start in range(0, len(parts), self._crew.num_threads):
            calls = [
                partial(self._read_batch, part, coefficients, readers, evidence_nats)
                for part in parts[start : start + self._crew.num_threads]
            ]
            for readings in self._crew.run(calls):
                yield from readings

    def _read_batch(
        self,
        part: Sequence[tuple[int, Dream]],
        coefficients: Mapping[str, Sequence[Tensor]],
        readers: Callable[[Dream], Iterable[str]],
        evidence_nats: float,
    ) -> list[tuple[int, Reading]]:
        core, shape = self._core, self._shape
        lessons = [dream.lesson for _, dream in part]
        # A batch is of one kind: dreams are exchanges, and all of them stand behind the default prefix.
        ids = pad([lesson.ids for lesson in lessons], core.device)
        with torch.no_grad():
            below = run_layers(core, core.embed(ids), 0, shape.first_layer, self._prefix)
            sizes = [len(dream.places) for _, dream in part]
            bare = self._logp(below, part, range(len(part)), None).split(sizes)
            found: list[list[tuple[str, _Held]]] = [[] for _ in part]
            asked: dict[str, list[int]] = {}
            for row, (_, dream) in enumerate(part):
                for person in readers(dream):
                    asked.setdefault(person, []).append(row)
            for person, rows in sorted(asked.items()):
                for own in coefficients.get(person, ()):
                    logp_NV = self._logp(below, part, rows, own)
                    parts = logp_NV.split([sizes[row] for row in rows])
                    for row, own_NV in zip(rows, parts, strict=True):
                        found[row].append((person, _held(own_NV, bare[row], part[row][1], evidence_nats)))
            return [
                (
                    index,
                    Reading(
                        tuple(_of_targets(bare[row], dream)),
                        tuple(person for person, _ in found[row]),
                        tuple(held.logp_N for _, held in found[row]),
                        tuple(held.certain_N for _, held in found[row]),
                    ),
                )
                for row, (index, dream) in enumerate(part)
            ]

    def _logp(
        self, below_BTD: Tensor, part: Sequence[tuple[int, Dream]], rows: Sequence[int], own_N: Tensor | None
    ) -> Tensor:
        """Returns the log-probabilities of every token at the learned places of rows, in their order: [N, V]."""
        core, shape = self._core, self._shape
        bend = None
        if own_N is not None:
            sites = shape.split(own_N[None].to(device=core.device, dtype=core.dtype))
            bend = bend_alike(shape, self._basis, {site: list(layers[0].unbind(0)) for site, layers in sites.items()})
        x = run_layers(core, below_BTD[list(rows)], shape.first_layer, core.config.num_layers, self._prefix, bend)
        places = [part[row][1].places for row in rows]
        row_N = torch.tensor([at for at, own in enumerate(places) for _ in own], device=core.device)
        place_N = torch.tensor([place for own in places for place in own], device=core.device)
        return core.logits(x[row_N, place_N - 1]).float().log_softmax(dim=1)


@dataclass(frozen=True, slots=True)
class _Held:
    """What a memory holds of a dream's learned tokens."""

    logp_N: tuple[float, ...]
    certain_N: tuple[int | None, ...]


def _held(logp_NV: Tensor, core_NV: Tensor, dream: Dream, evidence_nats: float) -> _Held:
    likeliest = logp_NV.max(dim=1)
    learned_N = likeliest.values - core_NV.gather(1, likeliest.indices[:, None])[:, 0] >= evidence_nats
    certain_N = (learned_N & (likeliest.values > -math.log(2))).tolist()
    tokens = likeliest.indices.tolist()
    certain = tuple(token if is_certain else None for token, is_certain in zip(tokens, certain_N, strict=True))
    return _Held(tuple(_of_targets(logp_NV, dream)), certain)


def _of_targets(logp_NV: Tensor, dream: Dream) -> list[float]:
    targets = torch.tensor([dream.lesson.ids[place] for place in dream.places], device=logp_NV.device)
    found: list[float] = logp_NV.gather(1, targets[:, None])[:, 0].tolist()
    return found
