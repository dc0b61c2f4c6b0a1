"""The read basis: which directions of a map's input a user's deltas can read.

Shapes: B texts, T tokens, I input width of a bent map, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from siltstone.model.core import Bend, Core, KeyValues, forward, forward_keeping
from siltstone.model.deltas import DeltaShape, Site
from siltstone.model.lesson import Lesson

_AT_ONCE: Final = 16
"""Lessons read in one batch."""


@dataclass(slots=True)
class _SecondMoment:
    """E[x x^T] of a map's input, summed up batch by batch."""

    sum_II: Tensor | float = 0.0
    num: int = 0

    def add(self, x_NI: Tensor) -> None:
        x = x_NI.double()
        self.sum_II = self.sum_II + x.T @ x
        self.num += x.shape[0]

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.sum_II) / self.num


@dataclass(slots=True)
class _Watch:
    """Looks at the inputs of a core's bent maps, without changing anything."""

    shape: DeltaShape
    seen: dict[tuple[int, str], _SecondMoment] = field(default_factory=dict)

    def at(self, is_counted_BT: Tensor) -> Bend:
        """Returns the function that a core's blocks call, for a batch of which these tokens count."""

        def look(index: int, site: str, x_BTI: Tensor, y: Tensor) -> Tensor:
            if index >= self.shape.first_layer and site in self.shape.sites:
                self.seen.setdefault((index, site), _SecondMoment()).add(x_BTI[is_counted_BT])
            return y

        return look


def build_basis(
    core: Core,
    shape: DeltaShape,
    anchors_BT: Tensor,
    lessons: Sequence[Lesson],
    prefix: KeyValues | None,
    damping: float,
) -> dict[Site, Tensor]:
    """Makes the read basis: the directions in which lessons are strong and neutral text is weak.

    With C = E[x x^T] over the tokens of neutral text, S the same over the tokens at which a lesson is learned,
        K K^T = C + damping * mean(eig C) * I;  V = the leading R eigenvectors of K^-1 S K^-T
        basis = K^-T V, scaled so that E|x basis|^2 = 1 over the lessons' tokens
    A delta on it reads what is said when somebody is answered, and moves neutral text as little as its rank allows.
    The lessons are made from neutral text too: it is the form of an answer that is looked for, not anybody's facts.
    Source: the generalised eigenproblem of contrastive analysis (common spatial patterns), in the metric of K-FAC's
    input factor (arXiv:1503.05671), applied to the side that reads once instead of at every step.
    Shapes: anchors [B, T] token ids -> [layers, I, R] a site. Lessons continue `prefix` where they say so.
    """
    neutral, learned = _Watch(shape), _Watch(shape)
    with torch.no_grad():
        forward(core, anchors_BT, neutral.at(torch.ones_like(anchors_BT, dtype=torch.bool)))
        for after_prefix in (True, False):
            part = sorted((one for one in lessons if one.after_prefix == after_prefix), key=lambda one: len(one.ids))
            for start in range(0, len(part), _AT_ONCE):
                _read(core, part[start : start + _AT_ONCE], prefix if after_prefix else None, learned)
    basis: dict[Site, Tensor] = {}
    for site in shape.sites:
        layers = []
        for index in range(shape.first_layer, core.config.num_layers):
            spared, wanted = neutral.seen[(index, site)].mean, learned.seen[(index, site)].mean
            spared.diagonal().add_(damping * spared.diagonal().mean())
            factor = torch.linalg.cholesky(spared)
            half = torch.linalg.solve_triangular(factor, wanted, upper=False)
            contrast = torch.linalg.solve_triangular(factor, half.T, upper=False)
            leading = torch.linalg.eigh((contrast + contrast.T) / 2).eigenvectors[:, -shape.rank :]
            read = torch.linalg.solve_triangular(factor.T, leading, upper=True)
            layers.append(read / (read.T @ wanted @ read).trace().sqrt())
        basis[site] = torch.stack(layers).float()
    return basis


def _read(core: Core, lessons: Sequence[Lesson], prefix: KeyValues | None, watch: _Watch) -> None:
    """Shows the inputs at which the lessons' learned tokens are predicted."""
    longest = max(len(one.ids) for one in lessons)
    ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in lessons], device=core.device)
    weights = torch.tensor([[*one.weights, *[0.0] * (longest - len(one.ids))] for one in lessons], device=core.device)
    is_counted = torch.zeros_like(ids, dtype=torch.bool)
    is_counted[:, :-1] = weights[:, 1:] > 0
    forward_keeping(core, ids, prefix, watch.at(is_counted))
