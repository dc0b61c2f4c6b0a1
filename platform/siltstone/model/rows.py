"""Whole texts through some of a core's layers, in rows: what sleep and the gate read with.

Shapes: B rows, T tokens of the longest, P tokens of the prefix, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siltstone.model.core import Bend, Core, KeyValues, WrittenOutAttention, attention, causal_mask


def pad(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Returns token ids as rows, 0 behind the end of each: [B, T]. Causality keeps what fills up from what is read."""
    longest = max(map(len, ids))
    rows = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, own in enumerate(ids):
        rows[row, : len(own)] = torch.tensor(own)
    return rows.to(device)


def run_layers(
    core: Core,
    x_BTD: Tensor,
    start: int,
    end: int,
    prefix: KeyValues | None = None,
    bend: Bend | None = None,
    kept: KeyValues | None = None,
) -> Tensor:
    """Runs the layers `start` to `end` - 1 over rows that all stand behind the prefix, or at position 0 without one.

    The rows' own keys and values are added to `kept`, layer by layer. Where a gradient is wanted on a processor,
    attention is written out: its fused backward is slow there.
    """
    b, t, _ = x_BTD.shape
    num_past = 0 if prefix is None else prefix.keys[0].shape[2]
    device = x_BTD.device
    rotation = core.rotation(torch.arange(num_past, num_past + t, device=device).expand(b, t))
    mask = causal_mask(torch.full((b,), num_past, device=device), t, num_past)
    wants_gradient = torch.is_grad_enabled() and device.type == "cpu"
    written_out = WrittenOutAttention(mask, core.config, core.dtype) if wants_gradient else None

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if kept is not None:
            kept.keys.append(k)
            kept.values.append(v)
        if prefix is not None:
            k = torch.cat([prefix.keys[index].expand(b, -1, -1, -1), k], dim=2)
            v = torch.cat([prefix.values[index].expand(b, -1, -1, -1), v], dim=2)
        return attention(q, k, v, mask) if written_out is None else written_out(q, k, v)

    for index in range(start, end):
        x_BTD = core.block(index, x_BTD, rotation, attend, bend)
    return x_BTD
