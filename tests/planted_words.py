"""A small core that knows how people tell names of things, and no name: every name is one token to it."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch
from tiny import random_tensors
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.tokenizer import ChatFormat, CoreTokenizer
from siltstone.adapters.tokenizer_json import byte_level_bpe
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

    leaves = {name: one.requires_grad_() for name, one in random_tensors(CORE, seed).items()}
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


def _loss(core: Core, rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
    logits_BTV = core.logits(forward(core, ids_BT[:, :-1].clamp(min=0)))
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=-1)


def add_core(home: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Puts the core into the store of a home folder."""
    return CoreStore(home).add(ImportedCore("test", CORE, tensors, tokenizer_json(), CHAT, {}), "tiny")
