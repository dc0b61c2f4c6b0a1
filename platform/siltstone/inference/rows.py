"""The running answers as the rows of one batch: their keys, values and deltas, side by side.

Rows in use are the first ones; a row that leaves is filled with the last, so that every tensor a step reads is a prefix
of its storage. Room for rows and for tokens doubles when it is short. Behind a row's own past stand zeros, never what
an earlier answer left there: a masked key weighs nothing, but nothing times NaN is NaN.

Shapes: S rows of storage, K tokens of storage, R rank, O output width of a bent map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from siltstone.model.core import Core, KeyValues, attention
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_with, site_widths
from siltstone.values import Sampling

_FIRST_ROWS = 4
_FIRST_TOKENS = 128


@dataclass(slots=True, eq=False)
class Answer:
    """One answer under way. `coefficients` [N] is the user's pinned state; None is the bare core."""

    prompt: tuple[int, ...]
    coefficients: Tensor | None
    sampling: Sampling
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)


class Rows:
    """The batch of running answers."""

    def __init__(self, core: Core, shape: DeltaShape, basis: Basis) -> None:
        self._core, self._shape, self._basis = core, shape, basis
        self.answers: list[Answer] = []
        self._lengths: list[int] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._deltas: dict[Site, Tensor] = {}
        self._reserve(_FIRST_ROWS, _FIRST_TOKENS)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys, values and deltas, room included."""
        tensors = [*self._keys, *self._values, *self._deltas.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _reserve(self, num_rows: int, num_tokens: int) -> None:
        c, used = self._core.config, len(self.answers)
        old_rows, old_tokens = (self._keys[0].shape[0], self._keys[0].shape[2]) if self._keys else (0, 0)
        num_rows, num_tokens = max(num_rows, old_rows), max(num_tokens, old_tokens)
        if (num_rows, num_tokens) != (old_rows, old_tokens):
            size = (num_rows, c.num_kv_heads, num_tokens, c.head_dim)
            for name in ("_keys", "_values"):
                old = getattr(self, name)
                new = [torch.zeros(size, device=self._core.device, dtype=self._core.dtype) for _ in range(c.num_layers)]
                for from_layer, to_layer in zip(old, new, strict=False):
                    to_layer[:used, :, :old_tokens] = from_layer[:used]
                setattr(self, name, new)
        if num_rows != old_rows:
            for site in self._shape.sites:
                out = site_widths(c, site)[1]
                size = (self._shape.num_layers, num_rows, self._shape.rank, out)
                deltas = torch.zeros(size, device=self._core.device, dtype=self._core.dtype)
                if site in self._deltas:
                    deltas[:, :used] = self._deltas[site][:, :used]
                self._deltas[site] = deltas

    def join(self, answer: Answer, past: KeyValues, row: int, length: int) -> None:
        """Adds an answer whose first `length` tokens have their keys and values in row `row` of `past`."""
        at = len(self.answers)
        rows, tokens = self._keys[0].shape[0], self._keys[0].shape[2]
        self._reserve(rows * 2 if at == rows else rows, max(tokens, 1 << (length + 1).bit_length()))
        for index in range(self._core.config.num_layers):
            for store, brought in ((self._keys, past.keys), (self._values, past.values)):
                store[index][at, :, :length] = brought[index][row, :, :length]
                store[index][at, :, length:] = 0
        if answer.coefficients is None:
            for deltas in self._deltas.values():
                deltas[:, at] = 0
        else:
            for site, layers in self._shape.split(answer.coefficients[None]).items():
                self._deltas[site][:, at] = layers[0]
        self.answers.append(answer)
        self._lengths.append(length)

    def leave(self, row: int) -> None:
        """Takes a row out; the last row takes its place."""
        last = len(self.answers) - 1
        if row != last:
            held = max(self._lengths[row], self._lengths[last])
            for store in (self._keys, self._values):
                for tensor in store:
                    tensor[row, :, :held] = tensor[last, :, :held]
            for deltas in self._deltas.values():
                deltas[:, row] = deltas[:, last]
            self.answers[row], self._lengths[row] = self.answers[last], self._lengths[last]
        del self.answers[last], self._lengths[last]

    def decode(self) -> Tensor:
        """Reads the newest token of every row and returns the logits of the next: [rows, V]."""
        used, device = len(self.answers), self._core.device
        longest = max(self._lengths) + 1
        if longest > self._keys[0].shape[2]:
            self._reserve(used, 2 * self._keys[0].shape[2])
        lengths = torch.tensor(self._lengths, device=device)
        row = torch.arange(used, device=device)
        mask = (torch.arange(longest, device=device)[None, :] <= lengths[:, None])[:, None, :]
        ids = torch.tensor([[answer.tokens[-1]] for answer in self.answers], device=device)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._keys[index], self._values[index]
            keys[row, :, lengths] = k[:, :, 0]
            values[row, :, lengths] = v[:, :, 0]
            return attention(q, keys[:used, :, :longest], values[:used, :, :longest], mask)

        bend = None
        if any(answer.coefficients is not None for answer in self.answers):
            layers = {site: deltas[:, :used].unbind(0) for site, deltas in self._deltas.items()}
            bend = bend_with(self._shape, self._basis, layers)
        with torch.no_grad():
            x = self._core.embed(ids)
            rotation = self._core.rotation(lengths[:, None])
            for index in range(self._core.config.num_layers):
                x = self._core.block(index, x, rotation, attend, bend)
            logits = self._core.logits(x[:, 0])
        self._lengths = [length + 1 for length in self._lengths]
        return logits
