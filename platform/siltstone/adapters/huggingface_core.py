"""Imports a core from a Hugging Face model folder (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from siltstone.adapters.chat_template import derive_chat_format
from siltstone.adapters.imported_core import ImportedCore, check_config, check_tensors
from siltstone.adapters.tokenizer import ChatFormat, plain_chat
from siltstone.errors import InvalidInput
from siltstone.model.config import CoreConfig

_LAYER_NAMES: Final = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn.q.weight",
    "self_attn.k_proj.weight": "attn.k.weight",
    "self_attn.v_proj.weight": "attn.v.weight",
    "self_attn.o_proj.weight": "attn.o.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
}
_WHOLE_NAMES: Final = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
# What a Llama config may say, where anything else would change the arithmetic.
_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
}


def import_huggingface(folder: Path) -> ImportedCore:
    """Reads `config.json`, the safetensors files, `tokenizer.json` and the chat template of a Llama-family folder.

    Raises: InvalidInput when a file is missing or damaged, or the model is not of a kind we serve.
    """
    config = _read_config(_read_json(folder / "config.json"))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _read_tensors(folder):
        if ours := _our_name(name, config):
            tensors[ours] = tensor
    check_tensors(config, tensors)
    tokenizer_json = _read_text(folder / "tokenizer.json")
    return ImportedCore(folder.name, config, tensors, tokenizer_json, read_chat(folder, tokenizer_json))


def read_chat(folder: Path, tokenizer_json: str) -> ChatFormat:
    """Reads the chat template of a folder, or takes the plain format where there is none.

    Raises: InvalidInput.
    """
    path = folder / "tokenizer_config.json"
    content = _read_json(path) if path.exists() else {}
    bos, eos = _token_text(content.get("bos_token")), _token_text(content.get("eos_token"))
    try:
        tokenizer = json.loads(tokenizer_json)
        special = [token["content"] for token in tokenizer.get("added_tokens", []) if token["special"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("tokenizer.json", "a tokenizer", str(error)) from error
    template = content.get("chat_template")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if template is None and (folder / "chat_template.jinja").exists():
        template = _read_text(folder / "chat_template.jinja")
    if isinstance(template, str) and template:
        return derive_chat_format(template, bos, eos, special)
    return plain_chat(bos if content.get("add_bos_token", bos in _opening(tokenizer)) else "", (eos,) if eos else ())


def _read_config(content: Mapping[str, Any]) -> CoreConfig:
    # Newer folders keep the rotary base in a group of its own.
    rope = content.get("rope_parameters") or {}
    flat: dict[str, Any] = {"hidden_act": "silu", **content}
    for key, allowed in _ONLY.items():
        if flat.get(key) not in allowed:
            raise InvalidInput(f"config.json {key}", " or ".join(map(repr, allowed)), repr(flat.get(key)))
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise InvalidInput("config.json rope_parameters", "the default RoPE, without scaling", repr(rope))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InvalidInput("config.json partial_rotary_factor", "1.0", repr(rope["partial_rotary_factor"]))

    def number(key: str, default: int | None = None) -> int:
        value = flat.get(key)
        value = default if value is None else value
        if type(value) is not int:
            raise InvalidInput(f"config.json {key}", "a whole number", repr(value))
        return value

    def real(key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidInput(f"config.json {key}", "a number", repr(value))
        return float(value)

    heads, d_model = number("num_attention_heads"), number("hidden_size")
    config = CoreConfig(
        vocab_size=number("vocab_size"),
        d_model=d_model,
        num_layers=number("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", d_model // max(heads, 1)),
        d_mlp=number("intermediate_size"),
        rope_base=real("rope_theta", rope.get("rope_theta", flat.get("rope_theta", 10000.0))),
        norm_eps=real("rms_norm_eps", flat.get("rms_norm_eps", 1e-6)),
        max_context=number("max_position_embeddings", 2048),
        tied_head=bool(flat.get("tie_word_embeddings", False)),
    )
    check_config(config)
    return config


def _read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        placed = _read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise InvalidInput(index.name, "a weight_map", repr(placed)[:100])
    else:
        placed = None
    for name in sorted(set(placed.values())) if placed else ["model.safetensors"]:
        if Path(str(name)).name != name:
            raise InvalidInput(index.name, "file names without folders", repr(name))
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    tensor = file.get_tensor(key)
                    if tensor.dtype not in _FLOATS:
                        raise InvalidInput(f"{name} {key}", "float32, float16 or bfloat16", str(tensor.dtype))
                    # A copy: the file is mapped and may change under us.
                    yield key, tensor.to(torch.float32, copy=True)
        except (OSError, SafetensorError) as error:
            raise InvalidInput(name, "a readable safetensors file", str(error)) from error


def _our_name(name: str, config: CoreConfig) -> str:
    """Returns our name of a tensor, or "" for one that says nothing new."""
    if (name == "lm_head.weight" and config.tied_head) or name.endswith("rotary_emb.inv_freq"):
        return ""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    if not name.startswith("model.layers.") or not layer.isdecimal() or rest not in _LAYER_NAMES:
        raise InvalidInput("safetensors tensor", "a tensor of a plain Llama (no biases, no experts)", name)
    return f"layers.{int(layer)}.{_LAYER_NAMES[rest]}"


def _token_text(value: object) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _opening(tokenizer: Mapping[str, Any]) -> set[str]:
    """Returns the special tokens the tokenizer itself puts in front of a text."""
    processor = tokenizer.get("post_processor") or {}
    parts = processor.get("processors", [processor])
    return {
        step["SpecialToken"]["id"]
        for part in parts
        if isinstance(part, dict)
        for step in part.get("single", [])[:1]
        if "SpecialToken" in step
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("model folder", f"a readable {path.name}", str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise InvalidInput(path.name, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise InvalidInput(path.name, "a JSON object", type(content).__name__)
    return content
