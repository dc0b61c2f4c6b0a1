"""The shape of a core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The shape of a Llama-family core, as its weights fix it."""

    vocab_size: int
    """Rows of the embedding, in tokens."""
    d_model: int
    """Width of the residual stream, in numbers."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Query heads of a block."""
    num_kv_heads: int
    """Key and value heads of a block; divides `num_heads`."""
    head_dim: int
    """Width of one head, in numbers; even."""
    d_mlp: int
    """Inner width of the MLP, in numbers."""
    rope_base: float
    """Base of the rotary angles."""
    norm_eps: float
    """What RMSNorm adds to the mean square."""
    max_context: int
    """Longest sequence the core was trained for, in tokens."""
    tied_head: bool
    """Says whether the output head is the embedding."""
