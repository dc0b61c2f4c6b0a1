"""Low-rank deltas: what a user's levels add to the core's MLPs, batched over users.

A level's weights are theta_0 + delta, delta = (basis @ coefficients)^T. The basis [I, R] of each bent map belongs to
the core and is the same for everybody; the coefficients [R, O] belong to a user. So the product with the basis is
shared by all users of a batch, a user's levels add up before they are applied, and an update is linear in what is
learned.

Shapes: U users, N numbers of one user's coefficients, R rank, I input and O output width of a bent map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from siltstone.errors import ConfigInvalid
from siltstone.model.config import CoreConfig
from siltstone.model.core import Bend, Core, forward

Site = Literal["gate_up", "down"]
SITES: Final[tuple[Site, ...]] = ("gate_up", "down")


def site_widths(config: CoreConfig, site: Site) -> tuple[int, int]:
    """Returns (input, output) width of a site's linear map."""
    if site == "gate_up":
        return config.d_model, 2 * config.d_mlp
    return config.d_mlp, config.d_model


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """Which maps of a core a user bends, and at what rank: the last `num_layers` layers, at `sites`."""

    core: CoreConfig
    num_layers: int
    sites: tuple[Site, ...]
    rank: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= self.core.num_layers:
            raise ConfigInvalid("memory.num_layers", f"expected 1 to {self.core.num_layers}, found {self.num_layers}")
        if not self.sites or any(site not in SITES for site in self.sites):
            raise ConfigInvalid("memory.sites", f"expected some of {SITES}, found {self.sites}")
        narrowest = min(self.core.d_model, self.core.d_mlp)
        if not 1 <= self.rank <= narrowest:
            raise ConfigInvalid("memory.rank", f"expected 1 to {narrowest}, found {self.rank}")

    @property
    def first_layer(self) -> int:
        """The first layer that is bent; every layer below it is the core's alone."""
        return self.core.num_layers - self.num_layers

    @property
    def num_coefficients(self) -> int:
        """N: numbers of one user's coefficients in one level."""
        return sum(self.num_layers * self.rank * site_widths(self.core, site)[1] for site in self.sites)

    def split(self, flat_UN: Tensor) -> dict[Site, Tensor]:
        """Returns views of flat coefficients, one a site: [U, layers, R, O]."""
        views: dict[Site, Tensor] = {}
        at = 0
        for site in self.sites:
            out = site_widths(self.core, site)[1]
            size = self.num_layers * self.rank * out
            views[site] = flat_UN[:, at : at + size].view(-1, self.num_layers, self.rank, out)
            at += size
        return views


Basis = Mapping[Site, Tensor]
"""The read basis of every bent layer, one tensor a site: [layers, I, R]."""


def bend_with(shape: DeltaShape, basis: Basis, layers: Mapping[Site, Sequence[Tensor]]) -> Bend:
    """Returns the deltas of a batch of users as the function a core's blocks call.

    Row u of a block's input is bent by user u. Shapes: `layers[site][j]` is [U, R, O] for bent layer j.
    """
    first = shape.first_layer
    pairs = {str(site): list(zip(basis[site].unbind(0), own, strict=True)) for site, own in layers.items()}

    def bend(index: int, site: str, x_UTI: Tensor, y_UTO: Tensor) -> Tensor:
        if index < first or site not in pairs:
            return y_UTO
        basis_IR, own_URO = pairs[site][index - first]
        # Added where the output is: one pass less over it, and nothing to allocate.
        return y_UTO.baddbmm_(x_UTI @ basis_IR, own_URO)

    return bend


def build_basis(core: Core, shape: DeltaShape, anchors_BT: Tensor, damping: float, seed: int) -> dict[Site, Tensor]:
    """Makes the read basis from what a core's MLPs see in neutral text.

    A random projection of the whitened input: with C = E[x x^T] over the anchor tokens,
        basis = K^(-T) @ Q,  K K^T = C + damping * mean(eig C) * I,  Q random orthonormal,
    scaled so that E[|x basis|^2] = 1. Directions in which neutral text is strong are read weakly, so that a delta
    written for a user's words changes neutral text as little as its rank allows.
    Shapes: anchors [B, T] token ids -> [layers, I, R] a site.
    Source: input-side natural gradient (K-FAC, arXiv:1503.05671, the A factor only), applied to the read side once.
    """
    seen: dict[tuple[int, str], Tensor] = {}

    def watch(index: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        if index >= shape.first_layer and site in shape.sites:
            seen[(index, site)] = x.reshape(-1, x.shape[-1]).double()
        return y

    with torch.no_grad():
        forward(core, anchors_BT, watch)
    generator = torch.Generator().manual_seed(seed)
    basis: dict[Site, Tensor] = {}
    for site in shape.sites:
        layers = []
        for index in range(shape.first_layer, core.config.num_layers):
            x = seen[(index, site)]
            width = x.shape[1]
            second = x.T @ x / x.shape[0]
            second.diagonal().add_(damping * second.diagonal().mean())
            factor = torch.linalg.cholesky(second)
            noise = torch.randn(width, shape.rank, generator=generator, dtype=torch.float64).to(x.device)
            read = torch.linalg.solve_triangular(factor.T, torch.linalg.qr(noise).Q, upper=True)
            layers.append(read / (x @ read).square().sum(dim=1).mean().sqrt())
        basis[site] = torch.stack(layers).to(core.dtype)
    return basis
