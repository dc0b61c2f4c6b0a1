"""Gradient importance: how hard a dream pulls at an expert that has learned nothing yet.

Shapes: B items of a batch, T tokens, N raised tokens of a batch, V vocabulary, L bent layers, R rank, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siltstone.model.core import Core, KeyValues
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_with, site_widths
from siltstone.model.guard import Guard
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.distil import Item


def importances(
    core: Core,
    shape: DeltaShape,
    basis: Basis,
    guard: Guard | None,
    prefix: KeyValues | None,
    items: Sequence[Item],
    batch: int,
) -> list[float]:
    """Returns for each item the norm of the gradient of its loss with respect to the expert's written side at zero.

        importance = || d/d write  sum over n raised of KL(q(n) || student(n)) ||,  write = 0, through the guard
    At zero the student is the core, so only raised tokens pull, and on the logits with q - core:
        a - core(y) at the raised token y, and -(a - core(y)) core(z) / (1 - core(y)) at every other z.
    Every item of a batch has a written side of its own: one backward pass gives all their gradients.
    Source: Sleep, section 3.4, of which the scalar is not published. Differs: the loss is the student's, not that of
    fine-tuning on the text; the default prefix is read as the core reads it.
    """
    found = [0.0] * len(items)
    pulled = [index for index, item in enumerate(items) if item.raised]
    order = sorted(pulled, key=lambda index: (items[index].lesson.after_prefix, max(items[index].raised)))
    for after_prefix in (False, True):
        part = [index for index in order if items[index].lesson.after_prefix == after_prefix]
        for start in range(0, len(part), batch):
            own = part[start : start + batch]
            past = prefix if after_prefix else None
            norms = _norms(core, shape, basis, guard, past, [items[index] for index in own])
            for index, norm in zip(own, norms, strict=True):
                found[index] = norm
    return found


def _norms(
    core: Core, shape: DeltaShape, basis: Basis, guard: Guard | None, prefix: KeyValues | None, items: Sequence[Item]
) -> list[float]:
    device, b = core.device, len(items)
    # Nothing behind the last raised token has a part in the loss, nor has that token itself.
    ids = pad([item.lesson.ids[: max(item.raised)] for item in items], device)
    write = {site: torch.zeros(_size(shape, site, b), device=device, requires_grad=True) for site in shape.sites}
    written = {site: one if guard is None else guard[site].apply(one) for site, one in write.items()}
    layers = {site: one.to(core.dtype).unbind(1) for site, one in written.items()}
    with torch.no_grad():
        below = run_layers(core, core.embed(ids), 0, shape.first_layer, prefix)
    bend = bend_with(shape, basis, layers)
    x = run_layers(core, below, shape.first_layer, core.config.num_layers, prefix, bend)
    raised = [(row, at, item.lesson.ids[at], own) for row, item in enumerate(items) for at, own in item.raised.items()]
    row_N, place_N, token_N = (torch.tensor([one[part] for one in raised], device=device) for part in range(3))
    a_N = torch.tensor([own for *_, own in raised], device=device)
    logits_NV = core.logits(x[row_N, place_N - 1]).float()
    with torch.no_grad():
        gradient_NV = _gradient(logits_NV, token_N, a_N)
    grads = torch.autograd.grad(logits_NV, list(write.values()), gradient_NV)
    squares = torch.stack([grad.float().pow(2).flatten(1).sum(dim=1) for grad in grads]).sum(dim=0)
    norms: list[float] = squares.sqrt().tolist()
    return norms


def _gradient(logits_NV: Tensor, token_N: Tensor, a_N: Tensor) -> Tensor:
    """Returns core - q at every logit."""
    core_NV = logits_NV.softmax(dim=-1)
    token_N1 = token_N[:, None]
    own_N1 = core_NV.gather(1, token_N1)
    lift_N1 = a_N[:, None] - own_N1
    gradient_NV = core_NV * lift_N1 / (1 - own_N1).clamp(min=1e-12)
    return gradient_NV.scatter(1, token_N1, -lift_N1)


def _size(shape: DeltaShape, site: Site, num_rows: int) -> tuple[int, int, int, int]:
    return num_rows, shape.num_layers, shape.rank, site_widths(shape.core, site)[1]
