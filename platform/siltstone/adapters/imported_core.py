"""A core as an importer hands it to the store, and what every core must satisfy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from siltstone.adapters.tokenizer import ChatFormat
from siltstone.errors import InvalidInput
from siltstone.model.config import CoreConfig

# Far above any real core; a damaged header must not make us count to its number.
_LIMITS: Final = {
    "vocab_size": 1 << 24,
    "d_model": 1 << 20,
    "num_layers": 1 << 12,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "d_mlp": 1 << 22,
    "max_context": 1 << 24,
}


@dataclass(frozen=True, slots=True)
class ImportedCore:
    """A core read from elsewhere, in our tensor names, float32, RoPE in the half-split order.

    `extras` are further files that travel with the core, by file name.
    """

    source: str
    config: CoreConfig
    tensors: dict[str, torch.Tensor]
    tokenizer_json: str
    chat: ChatFormat
    extras: dict[str, bytes] = field(default_factory=dict)


def tensor_shapes(config: CoreConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every tensor a core of this config has; matrices are [out, in]."""
    d, q, kv = config.d_model, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, d)}
    for i in range(config.num_layers):
        at = f"layers.{i}"
        shapes |= {
            f"{at}.attn_norm.weight": (d,),
            f"{at}.attn.q.weight": (q, d),
            f"{at}.attn.k.weight": (kv, d),
            f"{at}.attn.v.weight": (kv, d),
            f"{at}.attn.o.weight": (d, q),
            f"{at}.mlp_norm.weight": (d,),
            f"{at}.mlp.gate.weight": (config.d_mlp, d),
            f"{at}.mlp.up.weight": (config.d_mlp, d),
            f"{at}.mlp.down.weight": (d, config.d_mlp),
        }
    shapes["norm.weight"] = (d,)
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab_size, d)
    return shapes


def check_config(config: CoreConfig) -> None:
    """Refuses a config no core can have.

    Raises: InvalidInput.
    """
    for name, limit in _LIMITS.items():
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= limit:
            raise InvalidInput(f"core config {name}", f"a whole number from 1 to {limit}", repr(value))
    for name in ("rope_base", "norm_eps"):
        value = getattr(config, name)
        if type(value) is not float or not math.isfinite(value) or value <= 0:
            raise InvalidInput(f"core config {name}", "a positive number", repr(value))
    if type(config.tied_head) is not bool:
        raise InvalidInput("core config tied_head", "true or false", repr(config.tied_head))
    if config.num_heads % config.num_kv_heads:
        raise InvalidInput("core config num_kv_heads", f"a divisor of {config.num_heads}", str(config.num_kv_heads))
    if config.head_dim % 2:
        raise InvalidInput("core config head_dim", "an even number, for RoPE", str(config.head_dim))


def check_tensors(config: CoreConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors that are not exactly those of the config, float32 and finite.

    Raises: InvalidInput.
    """
    shapes = tensor_shapes(config)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise InvalidInput("core tensors", f"{len(shapes)} tensors", f"{len(missing)} missing, first {missing[0]}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise InvalidInput("core tensors", f"{len(shapes)} tensors", f"{len(unknown)} unknown, first {unknown[0]}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise InvalidInput(f"core tensor {name}", f"shape {list(shape)}", f"shape {list(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise InvalidInput(f"core tensor {name}", "torch.float32", str(tensor.dtype))
        # One pass without a mask the size of the tensor: a finite sum has only finite terms.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise InvalidInput(f"core tensor {name}", "finite numbers", "NaN or infinity")


def split_rope_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders the rows of a query or key matrix from interleaved RoPE pairs to half-split ones.

    Interleaved, a head's rows 2j and 2j+1 turn together; half-split, rows j and j + head_dim/2 do.
    """
    out_dim, in_dim = weight.shape
    pairs = weight.reshape(num_heads, out_dim // num_heads // 2, 2, in_dim)
    return pairs.transpose(1, 2).reshape(out_dim, in_dim).contiguous()
