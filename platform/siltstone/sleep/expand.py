"""Merging an expert into the maps it was trained beside, so that the core does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from siltstone.model.deltas import Basis, DeltaShape, Site


def merge(tensors: dict[str, Tensor], shape: DeltaShape, basis: Basis, write: dict[Site, Tensor]) -> dict[str, Tensor]:
    """Returns a core's tensors with an expert added to its MLPs: as many numbers as before.

        W' = W + (read @ write)^T, for the gate and the up map together, and for the down map
    Shapes: `basis[site]` [layers, I, R], `write[site]` [layers, R, O]; a map is [O, I]. Tensors that do not change are
    the same objects.
    """
    merged = dict(tensors)
    for site in shape.sites:
        for j in range(shape.num_layers):
            at = f"layers.{shape.first_layer + j}.mlp"
            delta_OI = (basis[site][j].double() @ write[site][j].double()).T.to(torch.float32)
            if site == "down":
                merged[f"{at}.down.weight"] = tensors[f"{at}.down.weight"] + delta_OI
            else:
                gate_OI, up_OI = delta_OI.chunk(2)
                merged[f"{at}.gate.weight"] = tensors[f"{at}.gate.weight"] + gate_OI
                merged[f"{at}.up.weight"] = tensors[f"{at}.up.weight"] + up_OI
    return merged
