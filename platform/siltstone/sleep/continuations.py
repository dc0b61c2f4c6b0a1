"""Text that a model goes on with: how a sleep dreams.

Shapes: B prompts, T tokens of the longest, P tokens of the prefix, K places for keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from siltstone.model.core import Bend, Core, KeyValues, attention, forward_keeping
from siltstone.model.rows import pad


def continue_prompts(
    core: Core,
    prefix: KeyValues | None,
    prompts: Sequence[Sequence[int]],
    bend: Bend | None,
    max_tokens: int,
    stop_ids: frozenset[int],
    chance: torch.Generator,
) -> Generator[int, None, list[list[int]]]:
    """Samples, at temperature 1, what a model says behind each prompt, all of which stand behind the prefix.

    A stop token is the last of its continuation. No gradient flows through it.

    Yields after each reading, so that others can have their turn, how many tokens it read; returns the continuations.
    """
    device, b = core.device, len(prompts)
    num_past = 0 if prefix is None else prefix.keys[0].shape[2]
    said: list[list[int]] = [[] for _ in prompts]
    lengths = torch.tensor([num_past + len(prompt) for prompt in prompts], device=device)
    with torch.no_grad():
        x_BTD, past = forward_keeping(core, pad(prompts, device), prefix, bend)
    last_BD = x_BTD[torch.arange(b, device=device), lengths - num_past - 1]
    keys, values = ([_with_room(part, max_tokens) for part in parts] for parts in (past.keys, past.values))
    under_way = set(range(b))
    num_read = sum(map(len, prompts))
    while True:
        # Whoever is let in between two readings must find torch as they left it.
        yield num_read
        with torch.no_grad():
            # Where a model gives no numbers anything is as likely: what it is worth, its reading will show.
            chances_BV = core.logits(last_BD).float().nan_to_num().softmax(-1).cpu()
            tokens = torch.multinomial(chances_BV, 1, generator=chance)[:, 0]
            for at in sorted(under_way):
                said[at].append(int(tokens[at]))
                if said[at][-1] in stop_ids or len(said[at]) == max_tokens:
                    under_way.remove(at)
            if not under_way:
                return said
            mask = (torch.arange(int(lengths.max()) + 1, device=device) <= lengths[:, None])[:, None, :]
            last_BD = _read_token(core, tokens.to(device), lengths, mask, keys, values, bend)
        lengths, num_read = lengths + 1, b


def _with_room(part_BHKC: Tensor, num_tokens: int) -> Tensor:
    b, heads, _, channels = part_BHKC.shape
    return torch.cat([part_BHKC, part_BHKC.new_zeros(b, heads, num_tokens, channels)], dim=2)


def _read_token(
    core: Core,
    tokens_B: Tensor,
    lengths_B: Tensor,
    mask_B1K: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    bend: Bend | None,
) -> Tensor:
    """Reads one token of every row, at place `lengths` of its keys, and returns what the last block makes of it."""
    row, num_keys = torch.arange(len(tokens_B), device=core.device), mask_B1K.shape[2]

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[index][row, :, lengths_B] = k[:, :, 0]
        values[index][row, :, lengths_B] = v[:, :, 0]
        return attention(q, keys[index][:, :, :num_keys], values[index][:, :, :num_keys], mask_B1K)

    x = core.embed(tokens_B[:, None])
    rotation = core.rotation(lengths_B[:, None])
    for index in range(core.config.num_layers):
        x = core.block(index, x, rotation, attend, bend)
    return x[:, 0]
