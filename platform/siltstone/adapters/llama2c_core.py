"""Imports a core from the binary files of llama2.c: weights and tokenizer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
import torch

from siltstone.adapters.imported_core import ImportedCore, check_config, check_tensors, split_rope_halves
from siltstone.adapters.tokenizer import plain_chat
from siltstone.adapters.tokenizer_json import score_merge_bpe
from siltstone.errors import InvalidInput
from siltstone.model.config import CoreConfig

_HEADER: Final = struct.Struct("<7i")
_MAGIC_OF_LATER_VERSIONS: Final = 0x616B3432
_SPECIAL: Final = ("<unk>", "<s>", "</s>")
_ROPE_BASE: Final = 10000.0
_NORM_EPS: Final = 1e-5


def import_llama2c(weights: Path, tokenizer: Path) -> ImportedCore:
    """Reads a llama2.c checkpoint (version 0, float32) and its tokenizer file.

    Raises: InvalidInput when a file cannot be read or is not what the format says.
    """
    raw = _read(weights)
    config = _read_config(raw)
    tensors = _read_tensors(raw, config)
    check_tensors(config, tensors)
    tokens, scores = _read_tokens(_read(tokenizer), config.vocab_size)
    tokenizer_json = score_merge_bpe(tokens, scores, special_ids=(0, 1, 2), unknown_id=0, space=" ")
    # llama2.c ends an answer at the token that begins a text, too.
    chat = plain_chat("<s>", ("</s>", "<s>"))
    return ImportedCore(weights.name, config, tensors, tokenizer_json, chat)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput("llama2.c file", "a readable file", f"{path.name}: {error.strerror}") from error


def _read_config(raw: bytes) -> CoreConfig:
    if len(raw) < _HEADER.size:
        raise InvalidInput("llama2.c checkpoint", f"a header of {_HEADER.size} bytes", f"{len(raw)} bytes")
    dim, hidden, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(raw)
    if dim == _MAGIC_OF_LATER_VERSIONS:
        raise InvalidInput("llama2.c checkpoint", "version 0 (float32)", "a later version")
    config = CoreConfig(
        vocab_size=abs(vocab),
        d_model=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads if heads else 0,
        d_mlp=hidden,
        rope_base=_ROPE_BASE,
        norm_eps=_NORM_EPS,
        max_context=context,
        tied_head=vocab > 0,
    )
    check_config(config)
    return config


def _read_tensors(raw: bytes, config: CoreConfig) -> dict[str, torch.Tensor]:
    """Reads the weights in file order: each kind for all layers, then the next kind."""
    d, n, f, v = config.d_model, config.num_layers, config.d_mlp, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rope = config.max_context * config.head_dim // 2
    sections: list[tuple[str, tuple[int, ...]]] = [
        ("embed", (v, d)),
        ("attn_norm", (n, d)),
        ("attn.q", (n, q, d)),
        ("attn.k", (n, kv, d)),
        ("attn.v", (n, kv, d)),
        ("attn.o", (n, d, q)),
        ("mlp_norm", (n, d)),
        ("mlp.gate", (n, f, d)),
        ("mlp.down", (n, d, f)),
        ("mlp.up", (n, f, d)),
        ("norm", (d,)),
        ("rope cosines", (rope,)),
        ("rope sines", (rope,)),
        *([] if config.tied_head else [("head", (v, d))]),
    ]
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for _, shape in sections)
    if len(raw) != expected:
        raise InvalidInput("llama2.c checkpoint", f"{expected} bytes", f"{len(raw)} bytes")
    values, at = np.frombuffer(raw, dtype="<f4", offset=_HEADER.size), 0
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in sections:
        size = int(np.prod(shape))
        part, at = values[at : at + size].reshape(shape), at + size
        if name in ("embed", "norm", "head"):
            tensors[f"{name}.weight"] = torch.from_numpy(part.copy())
        elif not name.startswith("rope"):
            for i in range(n):
                tensors[f"layers.{i}.{name}.weight"] = torch.from_numpy(part[i].copy())
    for i in range(n):
        for name, num_heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            key = f"layers.{i}.attn.{name}.weight"
            tensors[key] = split_rope_halves(tensors[key], num_heads)
    return tensors


def _read_tokens(raw: bytes, vocab_size: int) -> tuple[list[str], list[float]]:
    tokens: list[str] = []
    scores: list[float] = []
    at = 4  # the longest token's length, which we do not need
    try:
        for i in range(vocab_size):
            score, length = struct.unpack_from("<fi", raw, at)
            at += 8
            if not 0 <= length <= len(raw) - at:
                raise InvalidInput("llama2.c tokenizer", f"token {i} within the file", f"a length of {length} bytes")
            tokens.append(raw[at : at + length].decode())
            scores.append(score)
            at += length
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidInput("llama2.c tokenizer", f"{vocab_size} tokens", f"{len(tokens)}, then: {error}") from error
    if at != len(raw):
        raise InvalidInput("llama2.c tokenizer", f"{vocab_size} tokens in {at} bytes", f"{len(raw)} bytes")
    # The file writes the marks with newlines around them, for printing.
    return [*_SPECIAL, *tokens[len(_SPECIAL) :]], scores
