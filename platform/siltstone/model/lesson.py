"""Gradients of many users' lessons at once: one forward, one backward, every user their own weights.

A lesson is a stretch of text in its context, with a weight for each token. It is read in pieces that end where the
user's fastest level moves, so that within a piece no weight changes. The layers below the first bent one do not depend
on the user: they are run once for a whole lesson, without gradient. Keys and values of earlier pieces are kept as they
were computed (back-propagation is cut there).

Shapes: B users, T tokens of the longest lesson, P tokens of the shared prefix, W tokens of the widest piece, N tokens
of all pieces together, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.model.core import Core, KeyValues, attention, causal_mask
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_packed


@dataclass(frozen=True, slots=True)
class Lesson:
    """Token ids and the weight of each as a target: positive is learned, zero is context, negative is unlearned.

    `after_prefix` says that the lesson continues the core's default prefix; otherwise it stands at position 0. The
    first token is context always: nothing of the lesson comes before it.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    after_prefix: bool = True


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What one piece gave. `surprise` holds, a user, the sum over learned tokens of a number in 0 to 1."""

    gradient_BN: Tensor
    learned_tokens: list[int]
    surprise: list[float]
    nats: list[float]


def surprise_of(nll: Tensor, gate_nats: float) -> Tensor:
    """Returns how surprising a token of this negative log-likelihood is, 0 to 1: nll^2 / (nll^2 + gate^2)."""
    squared = nll.square()
    return squared / (squared + gate_nats * gate_nats)


def unlikelihood(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Returns -log(1 - p) of each target, p its probability; the gradient is bounded for every p in 0 to 1.

    Source: unlikelihood training, arXiv:1908.04319, Eq. 4.
        log(1 - p) = logsumexp of all other logits - logsumexp of all logits
    Differs: in this form p is never subtracted from one, so that an answer the model is sure of can be unlearned too.
    """
    others = logits_MV.scatter(1, target_M[:, None], float("-inf"))
    return logits_MV.logsumexp(dim=1) - others.logsumexp(dim=1)


class LessonBatch:
    """Lessons of distinct users, one each, read in lockstep. All continue the prefix, or none does."""

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, lessons: Sequence[Lesson], prefix: KeyValues | None
    ) -> None:
        self.core, self.shape, self.basis = core, shape, basis
        self._lessons = lessons
        device = core.device
        size, longest = len(lessons), max(len(lesson.ids) for lesson in lessons) - 1
        ids = torch.zeros(size, longest + 1, dtype=torch.long)
        weights = torch.zeros(size, longest + 1)
        for row, lesson in enumerate(lessons):
            ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
            weights[row, 1 : len(lesson.ids)] = torch.tensor(lesson.weights)[1:]
        self._targets_BT = ids[:, 1:].to(device)
        self._weights_BT = weights[:, 1:].to(device)
        self._num_prefix = prefix.keys[0].shape[2] if prefix is not None else 0
        self._at = [0] * size
        positions = torch.arange(self._num_prefix, self._num_prefix + longest, device=device).expand(size, longest)
        self._rotation = core.rotation(positions)
        mask = causal_mask(torch.full((size,), self._num_prefix, device=device), longest, self._num_prefix)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if prefix is not None:
                k = torch.cat([prefix.keys[index].expand(size, -1, -1, -1), k], dim=2)
                v = torch.cat([prefix.values[index].expand(size, -1, -1, -1), v], dim=2)
            return attention(q, k, v, mask)

        with torch.no_grad():
            x = core.embed(ids[:, :-1].to(device))
            for index in range(shape.first_layer):
                x = core.block(index, x, self._rotation, attend)
            self._hidden_BTD = x
            shape_kv = (size, core.config.num_kv_heads, self._num_prefix + longest, core.config.head_dim)
            self._keys = [torch.zeros(shape_kv, device=device, dtype=core.dtype) for _ in range(shape.num_layers)]
            self._values = [torch.zeros_like(keys) for keys in self._keys]
            if prefix is not None:
                for j in range(shape.num_layers):
                    self._keys[j][:, :, : self._num_prefix] = prefix.keys[shape.first_layer + j]
                    self._values[j][:, :, : self._num_prefix] = prefix.values[shape.first_layer + j]

    @property
    def is_done(self) -> bool:
        """Whether every lesson has been read to its end."""
        return all(at >= len(lesson.ids) - 1 for at, lesson in zip(self._at, self._lessons, strict=True))

    def _ends(self, room: Sequence[int]) -> list[int]:
        """Returns where the next piece of each lesson ends: behind its `room`-th learned token, or at the end."""
        ends = []
        for lesson, at, left in zip(self._lessons, self._at, room, strict=True):
            end = at
            while end < len(lesson.ids) - 1:
                end += 1
                if lesson.weights[end]:
                    left -= 1
                    if left == 0:
                        break
            ends.append(end)
        return ends

    def read_piece(self, coefficients_BN: Tensor, room: Sequence[int], gate_nats: float) -> PieceResult:
        """Reads every lesson up to `room` learned tokens further, under the users' coefficients.

        The gradient is of the sum over tokens of weight * surprise * nll (for negative weights of
        |weight| * -log(1 - p), whose step is bounded as p falls).
        """
        size, device = len(self._lessons), self.core.device
        starts, ends = self._at, self._ends(room)
        width = max(end - start for start, end in zip(starts, ends, strict=True))
        start_B = torch.tensor(starts, device=device)
        is_real_BW = torch.arange(width, device=device) < torch.tensor(ends, device=device)[:, None] - start_B[:, None]
        # On a processor the tokens are packed: what only fills rows up would cost as much as what is learned. A GPU has
        # more use for few large products than for few tokens.
        is_held_BW = is_real_BW if device.type == "cpu" else torch.ones_like(is_real_BW)
        row_N, column_N = is_held_BW.nonzero(as_tuple=True)
        at_N = (start_B[row_N] + column_N).clamp(max=self._targets_BT.shape[1] - 1)
        is_real_N = is_real_BW[row_N, column_N]
        x = self._hidden_BTD[row_N, at_N][None]
        cos, sin = self._rotation
        rotation = (cos[row_N, 0, at_N][None, None], sin[row_N, 0, at_N][None, None])
        # Behind what the farthest lesson has read, no key is set yet.
        num_past = self._num_prefix + max(starts)
        mask = causal_mask(start_B + self._num_prefix, width, num_past)
        leaves: dict[Site, list[Tensor]] = {
            site: [layer.detach().requires_grad_() for layer in layers.unbind(1)]
            for site, layers in self.shape.split(coefficients_BN.to(self.core.dtype)).items()
        }
        kept_row_N, place_N = row_N[is_real_N], at_N[is_real_N] + self._num_prefix

        def unpack(packed_1HNC: Tensor) -> Tensor:
            _, heads, _, channels = packed_1HNC.shape
            filled = packed_1HNC.new_zeros(size, width, heads, channels)
            return filled.index_put((row_N, column_N), packed_1HNC[0].transpose(0, 1)).transpose(1, 2)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            j = index - self.shape.first_layer
            keys, values = unpack(k), unpack(v)
            if num_past:
                keys = torch.cat([self._keys[j][:, :, :num_past], keys], dim=2)
                values = torch.cat([self._values[j][:, :, :num_past], values], dim=2)
            mixed = attention(unpack(q), keys, values, mask)
            # Later pieces look for them here; this piece has read what it needs of the past into tensors of its own.
            for kept, new in ((self._keys[j], k), (self._values[j], v)):
                kept[kept_row_N, :, place_N] = new.detach()[0].transpose(0, 1)[is_real_N]
            return mixed.transpose(1, 2)[row_N, column_N].transpose(0, 1)[None]

        weights_N = torch.where(is_real_N, self._weights_BT[row_N, at_N], 0.0)
        is_target_N = weights_N != 0
        bend = bend_packed(self.shape, self.basis, leaves, is_held_BW.sum(dim=1).tolist())
        with torch.enable_grad():
            for index in range(self.shape.first_layer, self.core.config.num_layers):
                x = self.core.block(index, x, rotation, attend, bend)
            logits = self.core.logits(x[0, is_target_N])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            target = self._targets_BT[row_N, at_N][is_target_N]
            nll = F.cross_entropy(logits, target, reduction="none")
            weight = weights_N[is_target_N]
            gate = surprise_of(nll.detach(), gate_nats)
            loss = (weight.clamp(min=0) * gate * nll).sum()
            blamed = weight < 0
            if bool(blamed.any()):
                loss = loss - (weight[blamed] * unlikelihood(logits[blamed], target[blamed])).sum()
            flat_leaves = [leaf for layers in leaves.values() for leaf in layers]
            gradients = (
                torch.autograd.grad(loss, flat_leaves)
                if nll.numel()
                else [torch.zeros_like(leaf) for leaf in flat_leaves]
            )
        gradient_BN = torch.cat([gradient.reshape(size, -1) for gradient in gradients], dim=1).to(coefficients_BN.dtype)
        self._at = ends

        owner = row_N[is_target_N]
        # What is to become less likely surprises by how likely it is.
        felt = torch.where(weight > 0, gate * weight, -weight * torch.exp(-nll.detach()))
        sums = torch.zeros(3, size, device=device, dtype=torch.float64)
        sums[0].index_add_(0, owner, torch.ones_like(felt, dtype=torch.float64))
        sums[1].index_add_(0, owner, felt.double())
        sums[2].index_add_(0, owner, nll.detach().double())
        learned, felt_sum, nats = sums.tolist()
        return PieceResult(gradient_BN, [int(n) for n in learned], felt_sum, nats)
