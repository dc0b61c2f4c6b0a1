"""Carrying a user's levels from one core to another: by distillation, accepted on the user's own held-out text.

Shapes: N numbers of a user's coefficients, M learned tokens of some lessons, D width, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from siltstone.errors import ConfigInvalid
from siltstone.model.core import Bend, Core, KeyValues, read_prefix
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_alike
from siltstone.model.guard import Guard
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.distil import Expert

_READ_TOGETHER: Final = 8
"""Lessons whose lower layers are read at once."""


@dataclass(frozen=True, slots=True)
class RebaseConfig:
    """How a user's levels are carried to another core."""

    max_lessons: int = 48
    """Statements of the user that are read, at most; of more, some at random."""
    held_out_share: float = 0.25
    """Share of them that only judges: the levels are never fitted to these."""
    good_enough_share: float = 0.02
    """Share of what the levels hold of the held-out statements, below whose loss they are taken over as they are."""
    max_lost_share: float = 0.05
    """Most of it that may be lost; else the user stays with the old core."""
    least_held_nats: float = 0.2
    """What levels that hold less are taken to hold, nats a token: of next to nothing, no share can be asked for."""
    num_steps: int = 12
    """Steps of distillation where the levels are not good enough as they are."""
    batch: int = 8
    """Statements of one step."""
    rate: float = 2e-3
    """Size of a step, of each written number."""

    def __post_init__(self) -> None:
        if min(self.max_lessons, self.num_steps, self.batch) < 1 or not 0 < self.held_out_share < 1:
            raise ConfigInvalid(
                "sleep.rebase", "max_lessons, num_steps, batch: expected at least 1; held_out_share: between 0 and 1"
            )
        if not 0 <= self.good_enough_share <= self.max_lost_share or not min(self.rate, self.least_held_nats) > 0:
            raise ConfigInvalid(
                "sleep.rebase",
                "expected 0 <= good_enough_share <= max_lost_share, rate and least_held_nats above 0",
            )


@dataclass(frozen=True, slots=True)
class Rebased:
    """What came of it. `correction` [N] is to be added to the user's coefficients on the new core.

    `held_nats` is how much likelier the user's levels make the held-out statements on the old core, per token, and
    `lost_nats` how much of it is gone on the new one; None when the user has said nothing to judge by, and the levels
    are taken over as they are.
    """

    accepted: bool
    correction: Tensor
    held_nats: float | None
    lost_nats: float | None
    num_steps: int


def rebase(
    old: Core,
    new: Core,
    shape: DeltaShape,
    basis: Basis,
    guard: Guard | None,
    prefix_ids: Sequence[int],
    coefficients_N: Tensor,
    lessons: Sequence[Lesson],
    config: RebaseConfig,
    seed: str,
) -> Iterator[Rebased | None]:
    """Fits a user's levels to another core of the same family. Yields None after every small step, the outcome at last.

        delta' = delta + argmin_c E_x KL( old + delta || new + delta + c )(x),  over the learned tokens of x
        held = nats(old)(x) - nats(old + delta)(x);  lost = nats(new + delta')(x) - nats(old + delta)(x)
    accepted where of the user's held-out statements no more than `max_lost_share` of `held` is lost.
    Source: reference algorithms, section 10.4. Differs: the levels are tried unchanged first, which mostly is enough,
    since both cores read through one basis and differ by what a gate found small; the correction starts at zero and
    takes few steps, in place of a weight on its size; it is written through the guard, as everything is.
    """
    lessons = [lesson for lesson in lessons if any(weight > 0 for weight in lesson.weights[1:])]
    nothing = torch.zeros(shape.num_coefficients)
    if not lessons:
        yield Rebased(True, nothing, None, None, 0)
        return
    chance = random.Random(f"{seed}/rebase")
    chosen = chance.sample(lessons, min(config.max_lessons, len(lessons)))
    num_held = max(1, round(config.held_out_share * len(chosen)))
    own = {site: part[0] for site, part in shape.split(coefficients_N[None].to(new.device)).items()}
    teacher, student = (_Reader(core, shape, basis, prefix_ids, chosen) for core in (old, new))
    held_out, seen = list(range(num_held)), list(range(num_held, len(chosen)))
    yield from teacher.read(held_out)
    before = teacher.nats(held_out, own)
    yield None
    held = teacher.nats(held_out, {site: torch.zeros_like(part) for site, part in own.items()}) - before
    yield None
    yield from student.read(held_out)
    lost = student.nats(held_out, own) - before
    yield None
    of_it = max(held, config.least_held_nats)
    if lost <= config.good_enough_share * of_it or not seen:
        yield Rebased(lost <= config.max_lost_share * of_it, nothing, held, lost, 0)
        return
    yield from teacher.read(seen)
    yield from student.read(seen)
    expert = Expert(shape, basis, guard).to(new.device)
    optimiser = torch.optim.AdamW(expert.parameters(), lr=config.rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(config.num_steps):
        optimiser.param_groups[0]["lr"] = config.rate * (1 - step / config.num_steps)
        part = chance.sample(seen, min(config.batch, len(seen)))
        with torch.no_grad():
            wanted_MV = teacher.logits(part, own).softmax(dim=-1)
        found_MV = student.logits(part, _sum(own, expert)).log_softmax(dim=-1)
        loss = (torch.special.xlogy(wanted_MV, wanted_MV) - wanted_MV * found_MV).sum(dim=-1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        yield None
    after = student.nats(held_out, _sum(own, expert)) - before
    with torch.no_grad():
        written = torch.cat([expert.written(site).reshape(-1) for site in shape.sites]).cpu()
    # A fit that helps nothing is not worth a change.
    lost, correction = (after, written) if after < lost else (lost, nothing)
    yield Rebased(lost <= config.max_lost_share * of_it, correction, held, lost, config.num_steps)


def _sum(own: dict[Site, Tensor], expert: Expert) -> dict[Site, Tensor]:
    return {site: part + expert.written(site) for site, part in own.items()}


class _Reader:
    """Reads lessons on one core under some deltas. What lies below them is read once, by `read`."""

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, prefix_ids: Sequence[int], lessons: Sequence[Lesson]
    ) -> None:
        self._core, self._shape, self._basis, self._lessons = core, shape, basis, lessons
        self._prefix = read_prefix(core, prefix_ids)
        self._below: dict[int, Tensor] = {}

    def read(self, indexes: Sequence[int]) -> Iterator[None]:
        """Reads what lies below the deltas in some lessons, a few at a time: [T, D] each."""
        core = self._core
        for kind in (False, True):
            rows = [index for index in indexes if self._lessons[index].after_prefix == kind]
            for start in range(0, len(rows), _READ_TOGETHER):
                part = rows[start : start + _READ_TOGETHER]
                ids = [self._lessons[index].ids for index in part]
                with torch.no_grad():
                    x = core.embed(pad(ids, core.device))
                    x = run_layers(core, x, 0, self._shape.first_layer, self._prefix if kind else None)
                for row, index in enumerate(part):
                    self._below[index] = x[row, : len(ids[row])].clone()
                yield None

    def logits(self, indexes: Sequence[int], own: dict[Site, Tensor]) -> Tensor:
        """Returns what is predicted at every learned token, lesson by lesson: [M, V]."""
        layers = {site: list(part.to(self._core.dtype).unbind(0)) for site, part in own.items()}
        bend = bend_alike(self._shape, self._basis, layers)
        found: dict[int, Tensor] = {}
        for kind in (False, True):
            rows = [index for index in indexes if self._lessons[index].after_prefix == kind]
            if rows:
                found.update(zip(rows, self._above(rows, bend, self._prefix if kind else None), strict=True))
        return torch.cat([found[index] for index in indexes]).float()

    def _above(self, rows: Sequence[int], bend: Bend, prefix: KeyValues | None) -> list[Tensor]:
        core, first = self._core, self._shape.first_layer
        x = pad_sequence([self._below[index] for index in rows], batch_first=True)
        x = run_layers(core, x, first, core.config.num_layers, prefix, bend)
        return [
            core.logits(x[row, [at - 1 for at in _learned(self._lessons[index])]]) for row, index in enumerate(rows)
        ]

    def nats(self, indexes: Sequence[int], own: dict[Site, Tensor]) -> float:
        """Returns the mean negative log-likelihood of the learned tokens, nats."""
        lessons = [self._lessons[index] for index in indexes]
        targets = torch.tensor([lesson.ids[at] for lesson in lessons for at in _learned(lesson)])
        with torch.no_grad():
            logits_MV = self.logits(indexes, own)
            return float(F.cross_entropy(logits_MV, targets.to(logits_MV.device)))


def _learned(lesson: Lesson) -> list[int]:
    return [at for at, weight in enumerate(lesson.weights) if at and weight > 0]
