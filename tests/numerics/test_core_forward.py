"""The core gives the logits `transformers` gives, for every shape of the family and every length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from siltstone.adapters.imported_core import ImportedCore
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core, forward, forward_keeping

transformers = pytest.importorskip("transformers")

ATOL = 1e-4
"""Largest difference of two float32 logits that is rounding."""
NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
SHAPES = {
    "grouped": tiny.TINY_CORE,
    "one key head": replace(tiny.TINY_CORE, num_kv_heads=1),
    "a key head each": replace(tiny.TINY_CORE, num_kv_heads=4, num_layers=4),
    "untied": replace(tiny.TINY_CORE, tied_head=False),
    "wide heads": replace(tiny.TINY_CORE, head_dim=14, d_mlp=41),
    "long rope": replace(tiny.TINY_CORE, rope_base=500_000.0, norm_eps=1e-2),
}


def reference_of(config: CoreConfig, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns a Llama of `transformers` with our weights."""
    theirs = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_base,
        tie_word_embeddings=config.tied_head,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(theirs).eval()
    state = {}
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, index, part = name.removesuffix(".weight").split(".", 2)
            state[f"model.layers.{index}.{NAMES[part]}.weight"] = tensor
        else:
            state[f"{NAMES[name.removesuffix('.weight')]}.weight"] = tensor
    if config.tied_head:
        state["lm_head.weight"] = tensors["embed.weight"]
    model.load_state_dict(state)
    return model


def random_ids(vocab_size: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_core_gives_the_logits_of_transformers(shape: str, length: int) -> None:
    config = SHAPES[shape]
    tensors = tiny.random_tensors(config, seed=3)
    core, ids = Core(config, tensors), random_ids(config.vocab_size, 3, length)

    with torch.no_grad():
        expected = reference_of(config, tensors)(ids).logits
        found = core.logits(forward(core, ids))

    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_another_rope_base_would_be_seen() -> None:
    tensors, ids = tiny.random_tensors(tiny.TINY_CORE, seed=3), random_ids(97, 1, 63)
    core = Core(replace(tiny.TINY_CORE, rope_base=20_000.0), tensors)

    with torch.no_grad():
        expected = reference_of(tiny.TINY_CORE, tensors)(ids).logits
        assert (core.logits(forward(core, ids)) - expected).abs().max() > 100 * ATOL


@pytest.fixture(scope="module")
def smollm2_core(smollm2: ImportedCore) -> Core:
    return Core(smollm2.config, smollm2.tensors)


PROMPT = (
    "The quick brown fox jumps over the lazy dog. I was born in Lisbon, in 1984, and my grandmother's boat was called "
    "Estrela do Mar; what would you like to know about it?"
)


def test_smollm2_gives_the_logits_of_transformers_on_a_prompt(
    smollm2_core: Core, smollm2_reference: Any, smollm2_reference_tokenizer: Any
) -> None:
    ids = smollm2_reference_tokenizer(PROMPT, return_tensors="pt").input_ids
    assert 30 <= ids.shape[1] <= 50

    with torch.no_grad():
        expected = smollm2_reference(ids).logits
        found = smollm2_core.logits(forward(smollm2_core, ids))

    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("length", [1, 63, 100])
def test_smollm2_gives_the_logits_of_transformers_at_odd_lengths(
    smollm2_core: Core, smollm2_reference: Any, length: int
) -> None:
    ids = random_ids(smollm2_core.config.vocab_size, 1, length)

    with torch.no_grad():
        expected = smollm2_reference(ids).logits
        found = smollm2_core.logits(forward(smollm2_core, ids))

    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("cuts", [[1, 62, 37], [63, 37], [99, 1]])
def test_a_sequence_read_in_parts_gives_what_it_gives_whole(cuts: list[int]) -> None:
    core, ids = tiny.world().core, random_ids(97, 2, 100)
    with torch.no_grad():
        whole = core.logits(forward(core, ids))
        past, parts = None, []
        for part in ids.split(cuts, dim=1):
            x, past = forward_keeping(core, part, past)
            parts.append(core.logits(x))

    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=ATOL)


def test_padding_on_the_right_changes_nothing_before_it() -> None:
    core, ids = tiny.world().core, random_ids(97, 2, 63)
    with torch.no_grad():
        short = core.logits(forward(core, ids))
        padded = core.logits(forward(core, torch.nn.functional.pad(ids, (0, 37))))

    torch.testing.assert_close(padded[:, :63], short, rtol=0, atol=ATOL)
