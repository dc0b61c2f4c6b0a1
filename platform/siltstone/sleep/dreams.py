"""Dreams: what is asked of the memories, and how each of them reads it.

Shapes: B dreams of a batch, T tokens, D width, U memories, N learned tokens of a dream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Reading:
    """How the core and some memories read a dream's learned tokens, as log-probabilities, nats."""

    core_logp_N: tuple[float, ...]
    people: tuple[str, ...]
    memory_logp_UN: tuple[tuple[float, ...], ...]


class DreamReader:
    """Reads dreams under the core and under users' memories. What lies below the first bent layer is read once."""

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, prefix: KeyValues | None, crew: Crew | None = None
    ) -> None:
        self._core, self._shape, self._basis, self._prefix = core, shape, basis, prefix
        self._crew = crew or Crew()

    def read(
        self, dreams: Sequence[Dream], coefficients: Mapping[str, Sequence[Tensor]], k_min: int, batch: int
    ) -> Iterator[tuple[int, Reading]]:
        """Yields the reading of every dream, with its index, under the memories of the people who may be evidence.

        `coefficients` holds the memories of each person's accounts, [N] each.
        """
        order = sorted(range(len(dreams)), key=lambda index: len(dreams[index].lesson.ids))
        parts = [
            [(index, dreams[index]) for index in order[start : start + batch]] for start in range(0, len(order), batch)
        ]
        # As many batches side by side as there are threads; a batch is read alike whichever thread has it.
        for start in range(0, len(parts), self._crew.num_threads):
            calls = [
                partial(self._read_batch, part, coefficients, k_min)
                for part in parts[start : start + self._crew.num_threads]
            ]
            for readings in self._crew.run(calls):
                yield from readings

    def _read_batch(
        self, part: Sequence[tuple[int, Dream]], coefficients: Mapping[str, Sequence[Tensor]], k_min: int
    ) -> list[tuple[int, Reading]]:
        core, shape = self._core, self._shape
        lessons = [dream.lesson for _, dream in part]
        # A batch is of one kind: dreams are exchanges, and all of them stand behind the default prefix.
        ids = pad([lesson.ids for lesson in lessons], core.device)
        with torch.no_grad():
            below = run_layers(core, core.embed(ids), 0, shape.first_layer, self._prefix)
            everyone = range(len(part))
            bare = self._logp(below, part, everyone, None)
            found: list[list[tuple[str, tuple[float, ...]]]] = [[] for _ in part]
            asked: dict[str, list[int]] = {}
            for row, (_, dream) in enumerate(part):
                for person in sorted(dream.people(k_min)):
                    asked.setdefault(person, []).append(row)
            for person, rows in sorted(asked.items()):
                for own in coefficients.get(person, ()):
                    for row, logp in zip(rows, self._logp(below, part, rows, own), strict=True):
                        found[row].append((person, logp))
        return [
            (
                index,
                Reading(bare[row], tuple(person for person, _ in found[row]), tuple(logp for _, logp in found[row])),
            )
            for row, (index, _) in enumerate(part)
        ]

    def _logp(
        self, below_BTD: Tensor, part: Sequence[tuple[int, Dream]], rows: Sequence[int], own_N: Tensor | None
    ) -> list[tuple[float, ...]]:
        core, shape = self._core, self._shape
        bend = None
        if own_N is not None:
            sites = shape.split(own_N[None].to(device=core.device, dtype=core.dtype))
            bend = bend_alike(shape, self._basis, {site: list(layers[0].unbind(0)) for site, layers in sites.items()})
        x = run_layers(core, below_BTD[list(rows)], shape.first_layer, core.config.num_layers, self._prefix, bend)
        places = [part[row][1].places for row in rows]
        row_N = torch.tensor([at for at, own in enumerate(places) for _ in own], device=core.device)
        place_N = torch.tensor([place for own in places for place in own], device=core.device)
        target_N = torch.tensor(
            [part[row][1].lesson.ids[place] for row, own in zip(rows, places, strict=True) for place in own],
            device=core.device,
        )
        logits = core.logits(x[row_N, place_N - 1]).float()
        logp = (logits.gather(1, target_N[:, None])[:, 0] - logits.logsumexp(dim=1)).tolist()
        parts, at = [], 0
        for own in places:
            parts.append(tuple(logp[at : at + len(own)]))
            at += len(own)
        return parts
