"""The core: a Llama-family language model whose MLPs can carry a user's deltas.

Shapes: B sequences, T new tokens, P past tokens, K = P + T keys, D model width, F MLP width, H query heads,
G query heads to a key head, C channels of a head, V vocabulary, R rank of a delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.model.config import CoreConfig

Bend = Callable[[int, str, Tensor, Tensor], Tensor]
"""Users' deltas: (layer, site, input of that linear map, its output) -> the bent output, maybe the same tensor."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The frozen weights of one block, with the maps that share an input fused."""

    attn_norm_D: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm_D: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class KeyValues:
    """Keys and values of the past, one tensor a layer: [B, H/G, K, C]. A conversation's, disposable."""

    keys: list[Tensor]
    values: list[Tensor]


class Core:
    """The shared language model of one version: immutable weights and the functions that read them."""

    def __init__(
        self,
        config: CoreConfig,
        tensors: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        def take(name: str) -> Tensor:
            return tensors[name].to(device=device, dtype=dtype)

        self.config = config
        self.device = torch.device(device)
        self.dtype = dtype
        self.embed_VD = take("embed.weight")
        self.norm_D = take("norm.weight")
        self.head_VD = self.embed_VD if config.tied_head else take("head.weight")
        self.layers = []
        for i in range(config.num_layers):
            at = f"layers.{i}"
            self.layers.append(
                Layer(
                    attn_norm_D=take(f"{at}.attn_norm.weight"),
                    qkv=torch.cat([take(f"{at}.attn.{name}.weight") for name in ("q", "k", "v")]),
                    out=take(f"{at}.attn.o.weight"),
                    mlp_norm_D=take(f"{at}.mlp_norm.weight"),
                    gate_up=torch.cat([take(f"{at}.mlp.{name}.weight") for name in ("gate", "up")]),
                    down=take(f"{at}.mlp.down.weight"),
                )
            )
        half = config.head_dim // 2
        frequency = config.rope_base ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
        angle = torch.arange(config.max_context, dtype=torch.float64, device=device)[:, None] * frequency
        self._cos = torch.cat([angle.cos(), angle.cos()], dim=-1).to(dtype)
        self._sin = torch.cat([-angle.sin(), angle.sin()], dim=-1).to(dtype)

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights that take part in matrix products for one token."""
        matrices = sum(w.numel() for layer in self.layers for w in (layer.qkv, layer.out, layer.gate_up, layer.down))
        return matrices + self.head_VD.numel()

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Returns the input of the first block: [B, T, D]."""
        return F.embedding(ids_BT, self.embed_VD)

    def rotation(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosine and signed sine of RoPE at the positions, each [B, 1, T, C]."""
        return self._cos[positions_BT].unsqueeze(1), self._sin[positions_BT].unsqueeze(1)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Returns the next-token logits of block outputs: [B, T, V]."""
        return F.linear(F.rms_norm(x_BTD, (self.config.d_model,), self.norm_D, self.config.norm_eps), self.head_VD)

    def block(
        self,
        index: int,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        bend: Bend | None = None,
    ) -> Tensor:
        """Runs one block: attention, then the MLP that is the slowest level, bent by a user's deltas.

        Shapes: `attend(layer, q, k, v)` gets [B, H, T, C], [B, H/G, T, C] twice, RoPE applied, and returns
        [B, H, T, C]. Where keys and values are kept is its affair.
        """
        layer, c = self.layers[index], self.config
        b, t, _ = x_BTD.shape
        h = F.rms_norm(x_BTD, (c.d_model,), layer.attn_norm_D, c.norm_eps)
        qkv = F.linear(h, layer.qkv).view(b, t, c.num_heads + 2 * c.num_kv_heads, c.head_dim).transpose(1, 2)
        qk, v = qkv.split((c.num_heads + c.num_kv_heads, c.num_kv_heads), dim=1)
        cos, sin = rotation
        qk = qk * cos + qk.roll(c.head_dim // 2, dims=-1) * sin
        q, k = qk.split((c.num_heads, c.num_kv_heads), dim=1)
        mixed = attend(index, q, k, v).transpose(1, 2).reshape(b, t, c.num_heads * c.head_dim)
        x_BTD = x_BTD + F.linear(mixed, layer.out)

        h = F.rms_norm(x_BTD, (c.d_model,), layer.mlp_norm_D, c.norm_eps)
        gate_up = F.linear(h, layer.gate_up)
        if bend is not None:
            gate_up = bend(index, "gate_up", h, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        h = F.silu(gate) * up
        y = F.linear(h, layer.down)
        if bend is not None:
            y = bend(index, "down", h, y)
        return x_BTD + y


def attention(q_BHTC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, mask_BTK: Tensor | None) -> Tensor:
    """Softmax attention of grouped queries over keys that are not repeated.

    The queries of a group are laid out as further query rows of their one key head.
    Shapes: [B, H, T, C], [B, H/G, K, C] twice, boolean [B, T, K] (True attends) -> [B, H, T, C].
    """
    b, heads, t, c = q_BHTC.shape
    kv_heads = k_BHKC.shape[1]
    group = heads // kv_heads
    q = q_BHTC.reshape(b, kv_heads, group * t, c)
    mask = None if mask_BTK is None else mask_BTK.unsqueeze(1).repeat(1, 1, group, 1)
    return F.scaled_dot_product_attention(q, k_BHKC, v_BHKC, attn_mask=mask).reshape(b, heads, t, c)


class WrittenOutAttention:
    """The same attention as three plain steps, for one mask: what is back-propagated through on a processor.

    Measured there, the backward of torch's fused attention takes 1.2 (float32) to 7 times (bfloat16) as long.
    """

    def __init__(self, mask_BTK: Tensor, config: CoreConfig, dtype: torch.dtype) -> None:
        self._group, self._kv_heads = config.num_heads // config.num_kv_heads, config.num_kv_heads
        self._scale = config.head_dim**-0.5
        bias = torch.zeros(mask_BTK.shape, dtype=dtype, device=mask_BTK.device).masked_fill(~mask_BTK, float("-inf"))
        self._bias = bias.repeat(1, self._group, 1).repeat_interleave(self._kv_heads, dim=0)

    def __call__(self, q_BHTC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor) -> Tensor:
        """See `attention`."""
        b, heads, t, c = q_BHTC.shape
        q = q_BHTC.reshape(b * self._kv_heads, self._group * t, c)
        k, v = k_BHKC.reshape(b * self._kv_heads, -1, c), v_BHKC.reshape(b * self._kv_heads, -1, c)
        weights = torch.baddbmm(self._bias, q, k.transpose(1, 2), alpha=self._scale).softmax(dim=-1)
        return torch.bmm(weights, v).view(b, heads, t, c)


def num_layers_alike(cores: Sequence[Core]) -> int:
    """Returns how many of their first layers some cores have in common, to the bit: what those give is computed once.

    Cores that sleep made of one another differ in the layers that memories bend. 0 where they are not read alike.
    """
    first, *others = cores
    told = (first.config, first.dtype, first.device)
    if any((one.config, one.dtype, one.device) != told for one in others):
        return 0
    if not all(torch.equal(first.embed_VD, one.embed_VD) for one in others):
        return 0

    def is_alike(index: int) -> bool:
        own = first.layers[index]
        return all(
            torch.equal(getattr(own, field.name), getattr(one.layers[index], field.name))
            for one in others
            for field in fields(Layer)
        )

    return next((at for at in range(first.config.num_layers) if not is_alike(at)), first.config.num_layers)


def causal_mask(past_B: Tensor, num_new: int, num_keys_past: int) -> Tensor:
    """Says which keys each new token may attend to: the valid past of its row, and the new tokens up to itself.

    Keys are laid out as `num_keys_past` past places, of which a row's first `past_B` hold something, then the new.
    Shapes: [B] -> boolean [B, T, K].
    """
    device = past_B.device
    past = torch.arange(num_keys_past, device=device)[None, :] < past_B[:, None]
    new = torch.ones(num_new, num_new, dtype=torch.bool, device=device).tril()
    b = past_B.shape[0]
    return torch.cat([past[:, None, :].expand(b, num_new, num_keys_past), new.expand(b, num_new, num_new)], dim=-1)


def forward(core: Core, ids_BT: Tensor, bend: Bend | None = None) -> Tensor:
    """Runs whole sequences from their start, without keeping keys: [B, T] -> block outputs [B, T, D].

    Sequences shorter than T are padded on the right; causality keeps the padding from what comes before it.
    """
    b, t = ids_BT.shape
    positions = torch.arange(t, device=ids_BT.device).expand(b, t)
    rotation = core.rotation(positions)
    mask = causal_mask(torch.zeros(b, dtype=torch.long, device=ids_BT.device), t, 0)
    x = core.embed(ids_BT)
    for i in range(core.config.num_layers):
        x = core.block(i, x, rotation, lambda _, q, k, v: attention(q, k, v, mask), bend)
    return x


def forward_keeping(
    core: Core,
    ids_BT: Tensor,
    past: KeyValues | None = None,
    bend: Bend | None = None,
    fork_at: int | None = None,
) -> tuple[Tensor, KeyValues]:
    """Runs new tokens behind a past of the same length in every row: ([B, T, D], keys and values of past and new).

    A past of fewer rows serves equally many rows each, in order: one row serves all. With `fork_at`, the rows are there
    twice from that layer on, first bare, then bent, so that what both have in common is computed once: [2B, T, D].
    """
    b, t = ids_BT.shape
    num_past = past.keys[0].shape[2] if past is not None else 0
    device = ids_BT.device
    rotation = core.rotation(torch.arange(num_past, num_past + t, device=device).expand(b, t))
    mask = causal_mask(torch.full((b,), num_past, device=device), t, num_past)
    kept = KeyValues([], [])

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = k.shape[0]
        if past is not None:
            k = torch.cat([_for_rows(past.keys[index], rows), k], dim=2)
            v = torch.cat([_for_rows(past.values[index], rows), v], dim=2)
        kept.keys.append(k)
        kept.values.append(v)
        return attention(q, k, v, mask if rows == b else mask.repeat(rows // b, 1, 1))

    def bend_second_half(index: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        return y if bend is None else torch.cat([y[:b], bend(index, site, x[b:], y[b:])])

    x = core.embed(ids_BT)
    for i in range(core.config.num_layers):
        if i == fork_at:
            x, rotation = torch.cat([x, x]), (rotation[0].repeat(2, 1, 1, 1), rotation[1].repeat(2, 1, 1, 1))
        forked = fork_at is not None and i >= fork_at
        x = core.block(i, x, rotation, attend, bend_second_half if forked else bend)
    return x, kept


def read_prefix(core: Core, prefix_ids: Sequence[int]) -> KeyValues | None:
    """Returns the keys and values of what conversations begin with, as the bare core computes them; None of nothing."""
    if not prefix_ids:
        return None
    with torch.no_grad():
        return forward_keeping(core, torch.tensor([list(prefix_ids)], device=core.device))[1]


def _for_rows(past: Tensor, rows: int) -> Tensor:
    held = past.shape[0]
    return past.expand(rows, -1, -1, -1) if held in (1, rows) else past.repeat_interleave(rows // held, dim=0)
