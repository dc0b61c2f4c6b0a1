"""The write guard: what a user's step may do to the outputs that neutral text depends on.

The read basis spares neutral text on the side of a map's input; the guard does the same on the side of its output.
Output directions along which the core's likelihood of neutral text is steep are made short before a step is
orthogonalised, and again after it, so that a step of the same length moves neutral text less.

Shapes: I layers bent at a site, O output width of the map, K directions guarded, R rank, B users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.model.core import Core, forward
from siltstone.model.deltas import DeltaShape, Site, site_widths
from siltstone.model.orthogonal import orthogonaliser, unit_size


@dataclass(frozen=True, slots=True)
class SiteGuard:
    """W = 1 - V diag(shrink) V^T of every bent layer at a site: `directions` V [I, O, K], `shrink` [I, K] in 0 to 1."""

    directions: Tensor
    shrink: Tensor

    def apply(self, x_BIRO: Tensor) -> Tensor:
        """Returns x W."""
        along = torch.einsum("biro,iok->birk", x_BIRO, self.directions)
        return x_BIRO - torch.einsum("birk,iok->biro", along * self.shrink[None, :, None], self.directions)

    def direction(self, g_BIRO: Tensor) -> Tensor:
        """Returns orthogonalise(g W) W, of rows no more than columns.

        V is orthonormal, so with a = g V and d = 2 shrink - shrink^2,
            W W = 1 - V d V^T;  (g W) (g W)^T = g g^T - a d a^T;  P g W W = P g - (P a d) V^T
        and g W itself, twice as many products with V, is never made.
        """
        g = unit_size(g_BIRO)
        along = torch.einsum("biro,iok->birk", g, self.directions)
        less = along * (self.shrink * (2 - self.shrink))[None, :, None]
        to_unit = orthogonaliser(g @ g.transpose(-1, -2) - less @ along.transpose(-1, -2))
        return to_unit @ g - torch.einsum("birk,iok->biro", to_unit @ less, self.directions)


Guard = Mapping[Site, SiteGuard]


def build_guard(
    core: Core, shape: DeltaShape, anchors_BT: Tensor, num_directions: int, damping: float, seed: int
) -> dict[Site, SiteGuard]:
    """Makes the guard from the Fisher information of a core's outputs on neutral text.

    With F = E[g g^T], g the gradient of -log p(y) at the map's output for y drawn from the core itself:
        V = the leading K eigenvectors of F, e their eigenvalues, f = damping * mean(eig F)
        shrink = 1 - sqrt((f + e[K]) / (f + e))
    so that W is (F + f)^(-1/2) relative to the directions that are not listed.
    Source: the output factor of K-FAC (arXiv:1503.05671), its leading part, as the metric of a step.
    Shapes: anchors [B, T] token ids, read a few rows at a time.
    """
    chance = torch.Generator().manual_seed(seed)
    gradients: dict[tuple[int, str], list[Tensor]] = {}
    for rows in anchors_BT.split(4):
        taps: dict[tuple[int, str], Tensor] = {}

        def tap(index: int, site: str, _: Tensor, y: Tensor, taps: dict[tuple[int, str], Tensor] = taps) -> Tensor:
            if index < shape.first_layer or site not in shape.sites:
                return y
            taps[(index, site)] = torch.zeros_like(y, requires_grad=True)
            return y + taps[(index, site)]

        with torch.enable_grad():
            logits = core.logits(forward(core, rows, tap)[:, :-1]).flatten(0, 1).float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=chance)[:, 0].to(logits.device)
            loss = F.cross_entropy(logits, drawn, reduction="sum")
            found = torch.autograd.grad(loss, list(taps.values()))
        for place, gradient in zip(taps, found, strict=True):
            gradients.setdefault(place, []).append(gradient[:, :-1].reshape(-1, gradient.shape[-1]))
    guard: dict[Site, SiteGuard] = {}
    for site in shape.sites:
        width = site_widths(shape.core, site)[1]
        directions, shrinks = [], []
        for index in range(shape.first_layer, core.config.num_layers):
            g = torch.cat(gradients[(index, site)]).float()
            kept = min(num_directions, width, g.shape[0])
            vectors, values = _leading(g, kept, chance)
            floor = damping * g.square().sum() / (g.shape[0] * width)
            directions.append(vectors)
            shrinks.append(1 - ((floor + values[-1]) / (floor + values).clamp(min=1e-30)).sqrt())
        guard[site] = SiteGuard(torch.stack(directions), torch.stack(shrinks))
    return guard


def _leading(g_NO: Tensor, num: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the leading eigenvectors [O, num] and eigenvalues of g^T g / N, largest first, by subspace iteration."""
    width = g_NO.shape[1]
    size = min(width, num + 16)
    span = torch.linalg.qr(torch.randn(width, size, generator=chance).to(g_NO.device)).Q
    for _ in range(3):
        span = torch.linalg.qr(g_NO.T @ (g_NO @ span)).Q
    seen = g_NO @ span
    values, vectors = torch.linalg.eigh(seen.T @ seen / g_NO.shape[0])
    order = values.argsort(descending=True)[:num]
    return span @ vectors[:, order], values[order].clamp(min=0)
