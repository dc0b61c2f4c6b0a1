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
from siltstone.model.core import Bend

Site = Literal["gate_up", "down"]
SITES: Final[tuple[Site, ...]] = ("gate_up", "down")


def site_widths(config: CoreConfig, site: Site) -> tuple[int, int]:
    """Returns (input, output) width of a site's linear map."""
    if site == "gate_up":
        return config.d_model, 2 * config.d_mlp
    return config.d_mlp, config.d_model


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """Which maps of a core a user bends, and at what rank: the last `num_layers` layers, at `sites`.

    `has_momentum` says that a level keeps the momentum of its steps beside its delta and its open gradient.
    """

    core: CoreConfig
    num_layers: int
    sites: tuple[Site, ...]
    rank: int
    has_momentum: bool = False

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
    def num_buffers(self) -> int:
        """S: how many times N numbers a level keeps."""
        return 3 if self.has_momentum else 2

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


def bend_packed(
    shape: DeltaShape, basis: Basis, layers: Mapping[Site, Sequence[Tensor]], num_tokens: Sequence[int]
) -> Bend:
    """Returns the deltas of a batch whose tokens stand one user's behind another's, without padding, in one row.

    The first `num_tokens[0]` are the first user's, and so on. Shapes: as for `bend_with`; inputs are [1, N, I].
    """
    first = shape.first_layer
    pairs = _pairs(basis, layers)
    are_equal = len(set(num_tokens)) == 1

    def bend(index: int, site: str, x_1NI: Tensor, y_1NO: Tensor) -> Tensor:
        if index < first or site not in pairs:
            return y_1NO
        basis_IR, own_URO = pairs[site][index - first]
        read_NR = x_1NI[0] @ basis_IR
        if are_equal:
            read_UTR = read_NR.view(len(num_tokens), num_tokens[0], -1)
            y_1NO.view(len(num_tokens), num_tokens[0], -1).baddbmm_(read_UTR, own_URO)
            return y_1NO
        parts = zip(read_NR.split(list(num_tokens)), own_URO.unbind(0), strict=True)
        return y_1NO.add_(torch.cat([read @ own for read, own in parts]))

    return bend


def bend_with(shape: DeltaShape, basis: Basis, layers: Mapping[Site, Sequence[Tensor]]) -> Bend:
    """Returns the deltas of a batch of users as the function a core's blocks call.

    Row u of a block's input is bent by user u. Shapes: `layers[site][j]` is [U, R, O] for bent layer j.
    """
    first = shape.first_layer
    pairs = _pairs(basis, layers)

    def bend(index: int, site: str, x_UTI: Tensor, y_UTO: Tensor) -> Tensor:
        if index < first or site not in pairs:
            return y_UTO
        basis_IR, own_URO = pairs[site][index - first]
        # Added where the output is: one pass less over it, and nothing to allocate.
        return y_UTO.baddbmm_(x_UTI @ basis_IR, own_URO)

    return bend


def bend_alike(shape: DeltaShape, basis: Basis, layers: Mapping[Site, Sequence[Tensor]]) -> Bend:
    """Returns one set of deltas for every row of a batch. Shapes: `layers[site][j]` is [R, O] for bent layer j."""
    first = shape.first_layer
    pairs = _pairs(basis, layers)

    def bend(index: int, site: str, x_BTI: Tensor, y_BTO: Tensor) -> Tensor:
        if index < first or site not in pairs:
            return y_BTO
        basis_IR, own_RO = pairs[site][index - first]
        return y_BTO + (x_BTI @ basis_IR) @ own_RO

    return bend


def _pairs(basis: Basis, layers: Mapping[Site, Sequence[Tensor]]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Returns the read basis and the users' coefficients of every bent layer, side by side, by site."""
    return {str(site): list(zip(basis[site].unbind(0), own, strict=True)) for site, own in layers.items()}
