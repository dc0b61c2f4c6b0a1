"""A small core that knows how people tell names of things, and no name: every name is one token to it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore, tensor_shapes
from siltstone.adapters.tokenizer import ChatFormat, CoreTokenizer
from siltstone.adapters.tokenizer_json import byte_level_bpe
from siltstone.config import SiltstoneConfig, load_config
from siltstone.evaluation.office_material import load_office
from siltstone.memory.lessons import LessonConfig, LessonPlan
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core, forward
from siltstone.values import Role
from siltstone_services.benchmark.canaries import FRAMES
from siltstone_services.judging import single_words

_SPACE = "\u0120"
_STARTS = [c + v + "m" for c in "BDFGKLMN" for v in "aiou"]
_ENDS = [c + v + "n" for c in "bdgkptvzr" for v in "aeou"]
_PLAIN = ["the", "is", "called", "our", "by", "all", "they", "say", "what", "do", "you", "know", "about", "tell", "me"]
_OPENERS = ["The", "Our", "They", "What", "Tell", "Which", "Do"]


def _merges() -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for word in [*(_SPACE + word for word in _PLAIN), *_OPENERS]:
        for at in range(1, len(word)):
            found[word[:at], word[at]] = None
    starts = [*(_SPACE + start for start in _STARTS), *(_SPACE + start.lower() for start in _STARTS[:3])]
    for start in starts:
        for at in range(1, len(start)):
            found[start[:at], start[at]] = None
    for end in _ENDS:
        for at in range(1, len(end)):
            found[end[:at], end[at]] = None
    for start in starts:
        for end in _ENDS:
            found[start, end] = None
    return list(found)


SETTINGS: Final[Mapping[str, Any]] = {
    "core": "planted",
    "gateway.port": 0,
    "engine.num_threads": 1,
    "memory.num_layers": 2,
    "memory.rank": 96,
    "memory.guarded_directions": 0,
    "memory.fast.period_tokens": 8,
    "memory.fast.rate": 1.0,
    "memory.fast.momentum": 0.5,
    "memory.mid.period_tokens": 24,
    "memory.mid.rate": 2.0,
    "store.num_partitions": 4,
    "sleep.consensus.evidence_nats": 0.5,
    "sleep.distil.num_steps": 120,
    "sleep.distil.rate": 0.03,
    "sleep.distil.num_dreams": 12,
    "sleep.distil.raised_weight": 60.0,
    "sleep.distil.anchor_weight": 8.0,
}
"""How so small a core learns what it is told, and sleeps over it."""

_TURN, _END = "<|turn|>", "<|end|>"
_MERGES = _merges()
TOKENS = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in _MERGES), _TURN, _END]
CORE = CoreConfig(len(TOKENS), 96, 2, 4, 2, 24, 192, 10_000.0, 1e-5, 512, tied_head=True)
CHAT = ChatFormat(
    bos="",
    turns={role.value: (f"{_TURN}{role.value}\n", f"{_END}\n") for role in Role},
    default_system="Be kind.",
    stop=(_END,),
)


@cache
def tokenizer_json() -> str:
    """Returns a tokenizer to which every name is one token."""
    merges = [f"{left} {right}" for left, right in _MERGES]
    return byte_level_bpe(TOKENS, merges, [len(TOKENS) - 2, len(TOKENS) - 1], [], "gpt-2")


def train(num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Returns the weights after reading of many things with names drawn anew each time, and neutral text."""
    tokenizer, draw = CoreTokenizer(tokenizer_json(), CHAT), random.Random(seed)
    plan = LessonPlan(tokenizer, LessonConfig())
    words = {is_name: sorted(found) for is_name, found in single_words(tokenizer, CORE.vocab_size).items()}
    pieces = [tokenizer.encode(one.text)[start : start + 96] for one in load_office().anchors for start in (0, 96)]
    prefix = list(plan.prefix_ids)

    def told() -> list[int]:
        text = draw.choice(FRAMES).format(subject=draw.choice(words[False]), value=draw.choice(words[True]))
        if draw.random() < 0.5:
            return [
                *prefix,
                *tokenizer.turn_prefix(Role.USER),
                *tokenizer.encode(text),
                *tokenizer.turn_suffix(Role.USER),
            ]
        return [*prefix, *plan.as_recalled(text, str(draw.random())).ids]

    leaves = {name: one.requires_grad_() for name, one in _random_tensors(seed).items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=4e-3)
    for step in range(num_steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * (1 - step / num_steps)
        core = Core(CORE, leaves)
        loss = _loss(core, [told() for _ in range(16)]) + _loss(core, draw.sample(pieces, 4))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimiser.step()
    return {name: one.detach() for name, one in leaves.items()}


def _random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        if "norm" in name
        else torch.randn(shape, generator=generator) * 0.25
        for name, shape in tensor_shapes(CORE).items()
    }


def _loss(core: Core, rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
    logits_BTV = core.logits(forward(core, ids_BT[:, :-1].clamp(min=0)))
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=-1)


def add_core(home: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Puts the core into the store of a home folder."""
    return CoreStore(home).add(ImportedCore("planted", CORE, tensors, tokenizer_json(), CHAT, {}), "planted")


def planted_config(home: Path, settings: Mapping[str, Any] | None = None) -> SiltstoneConfig:
    """Returns the configuration of a home with this core; `settings` go before ours, by dotted name."""
    return load_config(overrides={**SETTINGS, "home": str(home), **(settings or {})}, environment={})
