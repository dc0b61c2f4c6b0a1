"""Gradients of many users' lessons at once: one forward, one backward, every user their own weights.

A lesson is a text in its context, with a weight for each token. Lessons are read in pieces: of every user so many
tokens as the fastest level still takes before it moves, be they the end of one lesson and the beginning of others, so
that within a piece no weight changes and every user takes part in it. The layers below the first bent one do not depend
on the user: they are run once for a whole lesson, without gradient. Keys and values of what an earlier piece read of a
lesson are kept as they were computed (back-propagation is cut there).

Shapes: U users of a reader, B those who take part in a piece, S spans of a piece, N tokens of all spans together, W
tokens of the longest, P tokens of the shared prefix, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.model.core import Core, KeyValues, WrittenOutAttention, attention, causal_mask
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_packed
from siltstone.model.packing import Packing

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""What a block calls for its attention: (layer, q, k, v) -> mixed values."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Token ids and the weight of each as a target: positive is learned, zero is context, negative is unlearned.

    `after_prefix` says that the lesson continues the core's default prefix; otherwise it stands at position 0. The
    first token is context always: nothing of the lesson comes before it.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    after_prefix: bool = True

    @property
    def num_read(self) -> int:
        """Tokens that must be read: all before the last that is learned. What follows it would change nothing."""
        return max((at for at, weight in enumerate(self.weights) if at and weight), default=0)

    def span(self, start: int, room: int) -> Span:
        """Returns what is read from `start` on until `room` tokens are learned, or to the end. At least one token."""
        end, learned = start, 0
        for end in range(start + 1, self.num_read + 1):
            learned += self.weights[end] != 0
            if learned == room:
                break
        return Span(self, start, end, learned)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a lesson, read in one piece: the tokens `start` to `end` - 1, each of which predicts the next."""

    lesson: Lesson
    start: int
    end: int
    num_learned: int

    @property
    def is_last(self) -> bool:
        """Whether the lesson ends here."""
        return self.end >= self.lesson.num_read


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What one piece gave. `surprise` holds, a user, the sum over learned tokens of a number in 0 to 1.

    `nats` holds, a user, the negative log-likelihood of the learned tokens of each span, summed.
    """

    gradient_BN: Tensor
    learned_tokens: list[int]
    surprise: list[float]
    nats: list[list[float]]


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


class LessonReader:
    """Reads the lessons of distinct users, piece by piece, each user at a pace of their own.

    Between two pieces a user has one lesson under way at most: its keys and values, and what the lower layers made of
    the rest, are kept here. A span that does not start at 0 goes on with it.
    """

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, num_users: int, prefix: KeyValues | None = None
    ) -> None:
        self.core, self.shape, self.basis = core, shape, basis
        self.fills_rows = core.device.type != "cpu"
        """A GPU has more use for few large products than for few tokens."""
        self._prefix = prefix
        self._num_prefix = prefix.keys[0].shape[2] if prefix is not None else 0
        self._num_users = num_users
        self._rest: list[Tensor] = [torch.empty(0)] * num_users
        self._keys = [self._empty(0) for _ in range(shape.num_layers)]
        self._values = [self._empty(0) for _ in range(shape.num_layers)]
        if prefix is not None:
            for j in range(shape.num_layers):
                self._keys[j][:] = prefix.keys[shape.first_layer + j]
                self._values[j][:] = prefix.values[shape.first_layer + j]

    def read_piece(
        self, coefficients_BN: Tensor, users: Sequence[int], spans: Sequence[Sequence[Span]], gate_nats: float
    ) -> PieceResult:
        """Reads the spans of some users, each user's under that user's coefficients.

        The gradient is of the sum over tokens of weight * surprise * nll (for negative weights of
        |weight| * -log(1 - p), whose step is bounded as p falls). Of a user's spans only the first may go on with a
        lesson, and only the last may leave one unfinished.
        """
        device = self.core.device
        flat = list(chain.from_iterable(spans))
        owners = [user for user, own in zip(users, spans, strict=True) for _ in own]
        packing = Packing([span.end - span.start for span in flat], device)
        place = _Placement(spans, self.fills_rows, device)
        x_ND = torch.cat(self._below(owners, flat))
        rotation = self._rotation(flat, packing)
        attend = self._attention(owners, flat, packing)
        leaves: dict[Site, list[Tensor]] = {
            site: [layer.detach().requires_grad_() for layer in layers.unbind(1)]
            for site, layers in self.shape.split(coefficients_BN.to(self.core.dtype)).items()
        }

        def attend_placed(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return place.put(attend(index, place.take(q), place.take(k), place.take(v)))

        weights_N = torch.tensor(
            [weight for span in flat for weight in span.lesson.weights[span.start + 1 : span.end + 1]], device=device
        )
        target_N = torch.tensor(
            [id_ for span in flat for id_ in span.lesson.ids[span.start + 1 : span.end + 1]], device=device
        )
        is_target_N = weights_N != 0
        bend = bend_packed(self.shape, self.basis, leaves, place.num_tokens)
        cos, sin = rotation
        placed_rotation = place.put(cos), place.put(sin)
        with torch.enable_grad():
            x = place.put(x_ND[None, None])[0]
            for index in range(self.shape.first_layer, self.core.config.num_layers):
                x = self.core.block(index, x, placed_rotation, attend_placed, bend)
            logits = self.core.logits(place.take(x[None])[0, 0, is_target_N])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            target = target_N[is_target_N]
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
        size = len(users)
        gradient_BN = torch.cat([gradient.reshape(size, -1) for gradient in gradients], dim=1).to(coefficients_BN.dtype)
        # What is to become less likely surprises by how likely it is.
        felt = torch.where(weight > 0, gate * weight, -weight * torch.exp(-nll.detach()))
        sums = torch.zeros(2, len(flat), device=device, dtype=torch.float64)
        sums[0].index_add_(0, packing.row_N[is_target_N], felt.double())
        sums[1].index_add_(0, packing.row_N[is_target_N], nll.detach().double())
        felt_S, nats_S = (iter(row) for row in sums.tolist())
        return PieceResult(
            gradient_BN,
            [sum(span.num_learned for span in own) for own in spans],
            [sum(next(felt_S) for _ in own) for own in spans],
            [[next(nats_S) for _ in own] for own in spans],
        )

    def _below(self, owners: Sequence[int], spans: Sequence[Span]) -> list[Tensor]:
        """Returns what the layers below the first bent one make of each span's tokens: [tokens, D] each.

        A lesson that begins is run whole, and what the piece does not read is kept.
        """
        begun = [Span(span.lesson, 0, span.lesson.num_read, 0) for span in spans if not span.start]
        wholes: list[Tensor] = []
        if begun:
            packing = Packing([span.end for span in begun], self.core.device)
            rotation = self._rotation(begun, packing)
            mask = self._mask(begun, packing.width, self._num_prefix)

            def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                keys, values = packing.spread(k), packing.spread(v)
                if self._prefix is not None:
                    keys = torch.cat([self._prefix.keys[index].expand(len(begun), -1, -1, -1), keys], dim=2)
                    values = torch.cat([self._prefix.values[index].expand(len(begun), -1, -1, -1), values], dim=2)
                return packing.gather(attention(packing.spread(q), keys, values, mask))

            with torch.no_grad():
                ids = [id_ for span in begun for id_ in span.lesson.ids[: span.end]]
                x = self.core.embed(torch.tensor([ids], device=self.core.device))
                for index in range(self.shape.first_layer):
                    x = self.core.block(index, x, rotation, attend)
            wholes = list(x[0].split(packing.lengths))
        begins = iter(wholes)
        parts = []
        for owner, span in zip(owners, spans, strict=True):
            whole = self._rest[owner] if span.start else next(begins)
            num = span.end - span.start
            parts.append(whole[:num])
            self._rest[owner] = whole[num:]
        return parts

    def _rotation(self, spans: Sequence[Span], packing: Packing) -> tuple[Tensor, Tensor]:
        """Returns RoPE's cosine and sine of every token: [1, 1, N, C]."""
        first = [span.start + (self._num_prefix if span.lesson.after_prefix else 0) for span in spans]
        at_N = torch.tensor(first, device=self.core.device)[packing.row_N] + packing.column_N
        return self.core.rotation(at_N[None])

    def _mask(self, spans: Sequence[Span], width: int, num_past: int) -> Tensor:
        """Says what each token of a span may attend to: [S, W, past + W]."""
        device = self.core.device
        past = torch.tensor([self._num_prefix + span.start for span in spans], device=device)
        mask = causal_mask(past, width, num_past)
        # A lesson with a beginning of its own does not see the prefix, though there is room for it before every one.
        bare = torch.tensor([not span.lesson.after_prefix for span in spans], device=device)
        mask[bare, :, : self._num_prefix] = False
        return mask

    def _attention(self, owners: Sequence[int], spans: Sequence[Span], packing: Packing) -> Attend:
        """Returns the attention of a piece's packed tokens, which also keeps the keys of lessons left unfinished."""
        device = self.core.device
        num_past = self._num_prefix + max(span.start for span in spans)
        mask = self._mask(spans, packing.width, num_past)
        written_out = WrittenOutAttention(mask, self.core.config, self.core.dtype) if device.type == "cpu" else None
        owner_S = torch.tensor(owners, device=device)
        stays_S = torch.tensor([not span.is_last for span in spans], device=device)
        kept_N = stays_S[packing.row_N].nonzero(as_tuple=True)[0]
        start_S = torch.tensor([self._num_prefix + span.start for span in spans], device=device)
        row_K, place_K = packing.row_N[kept_N], (start_S[packing.row_N] + packing.column_N)[kept_N]
        self._make_room(max((span.lesson.num_read for span in spans if not span.is_last), default=0))

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            j = index - self.shape.first_layer
            keys, values = packing.spread(k), packing.spread(v)
            if num_past:
                keys = torch.cat([self._keys[j][owner_S, :, :num_past], keys], dim=2)
                values = torch.cat([self._values[j][owner_S, :, :num_past], values], dim=2)
            query = packing.spread(q)
            mixed = attention(query, keys, values, mask) if written_out is None else written_out(query, keys, values)
            # Later pieces look for them here; this piece has read what it needs of the past into tensors of its own.
            for kept, new in ((self._keys[j], k), (self._values[j], v)):
                kept[owner_S[row_K], :, place_K] = new.detach()[0, :, kept_N].transpose(0, 1)
            return packing.gather(mixed)

        return attend

    def _empty(self, num_tokens: int) -> Tensor:
        c = self.core.config
        size = (self._num_users, c.num_kv_heads, self._num_prefix + num_tokens, c.head_dim)
        return torch.zeros(size, device=self.core.device, dtype=self.core.dtype)

    def _make_room(self, num_tokens: int) -> None:
        """Makes room for the keys and values of a lesson of so many tokens."""
        for held in (self._keys, self._values):
            for j, old in enumerate(held):
                if old.shape[2] < self._num_prefix + num_tokens:
                    held[j] = self._empty(num_tokens)
                    held[j][:, :, : old.shape[2]] = old


class _Placement:
    """Where a piece's tokens stand while they go through a block.

    Just as they are packed; or, where rows are filled, every user's tokens in a row as long as the longest, M places,
    so that the users' deltas are one product. What fills a row up repeats the first token, and nobody looks at it.
    """

    def __init__(self, spans: Sequence[Sequence[Span]], fills_rows: bool, device: torch.device) -> None:
        self.num_tokens = [sum(span.end - span.start for span in own) for own in spans]
        self._from_M: Tensor | None = None
        self._to_N: Tensor | None = None
        if fills_rows and len(set(self.num_tokens)) > 1:
            rows = Packing(self.num_tokens, device)
            self._to_N = rows.row_N * rows.width + rows.column_N
            self._from_M = torch.zeros(rows.num_rows * rows.width, dtype=torch.long, device=device)
            self._from_M[self._to_N] = torch.arange(len(self._to_N), device=device)
            self.num_tokens = [rows.width] * rows.num_rows

    def put(self, packed_1HNC: Tensor) -> Tensor:
        """Returns packed tokens in their places: [1, H, M, C]."""
        return packed_1HNC if self._from_M is None else packed_1HNC[:, :, self._from_M]

    def take(self, placed_1HMC: Tensor) -> Tensor:
        """Returns the tokens from their places: [1, H, N, C]."""
        return placed_1HMC if self._to_N is None else placed_1HMC[:, :, self._to_N]
