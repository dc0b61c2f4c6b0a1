"""Writes tokenizers that come in other forms as a `tokenizer.json`, the one form the store keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from siltstone.errors import InvalidInput

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_SPLITS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    # A digit is a piece of its own, before byte-level BPE looks at spaces: "  12" is "  ", "1", "2".
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}


def byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[str], special_ids: Sequence[int], literal_ids: Sequence[int], split: str
) -> str:
    """Returns the tokenizer.json of a byte-level BPE: `split` names how text is cut before merging.

    `special_ids` are control tokens; `literal_ids` are tokens found in text as they are, before any merge.
    Raises: InvalidInput for a split that is not known here.
    """
    if split not in _SPLITS:
        raise InvalidInput("tokenizer pre-split", " or ".join(sorted(_SPLITS)), repr(split))
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in merges],
        "byte_fallback": False,
        "ignore_merges": False,
        "fuse_unk": False,
    }
    added = _added(tokens, special_ids, special=True) + _added(tokens, literal_ids, special=False)
    decoder = {**_BYTE_LEVEL, "add_prefix_space": True}
    return _write(model, sorted(added, key=lambda token: token["id"]), None, _SPLITS[split], decoder)


def score_merge_bpe(
    tokens: Sequence[str], scores: Sequence[float], special_ids: Sequence[int], unknown_id: int, space: str
) -> str:
    """Returns the tokenizer.json of a SentencePiece BPE that is given by scores.

    Any two neighbours that make a token merge, the highest score first. A text gets one space in front;
    a character without a token becomes its UTF-8 bytes (`<0x00>` to `<0xFF>`). `space` is how tokens write a space.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise InvalidInput("tokenizer", "each token once", f"{len(tokens) - len(ids)} repeated")
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in ids]:
        raise InvalidInput("tokenizer", "a token for each byte", f"none for {missing[0]}")
    apart = {*special_ids, unknown_id, *(ids[f"<0x{byte:02X}>"] for byte in range(256))}
    mergeable = {token for token, i in ids.items() if i not in apart}
    merges = [
        (-scores[ids[token]], ids[token], cut, [token[:cut], token[cut:]])
        for token in mergeable
        for cut in range(1, len(token))
        if token[:cut] in mergeable and token[cut:] in mergeable
    ]
    model = {
        "type": "BPE",
        "vocab": ids,
        "merges": [pair for *_, pair in sorted(merges, key=lambda merge: merge[:3])],
        "unk_token": tokens[unknown_id],
        "byte_fallback": True,
        "ignore_merges": False,
        "fuse_unk": True,
    }
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": " "}]
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if space != " ":
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": space})
        decoders.insert(0, {"type": "Replace", "pattern": {"String": space}, "content": " "})
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    decoder = {"type": "Sequence", "decoders": decoders}
    return _write(model, _added(tokens, sorted(special_ids), special=True), normalizer, None, decoder)


def _added(tokens: Sequence[str], ids: Sequence[int], special: bool) -> list[dict[str, Any]]:
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": i, "content": tokens[i], **how} for i in ids]


def _write(
    model: dict[str, Any],
    added: list[dict[str, Any]],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> str:
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        },
        ensure_ascii=False,
    )
