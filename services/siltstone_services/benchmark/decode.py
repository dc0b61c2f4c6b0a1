"""Decoding for many users at once, against the same batch on the bare core."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from siltstone.inference.rows import Answer, Rows
from siltstone.model.core import Bend, KeyValues, forward, forward_keeping
from siltstone.model.deltas import bend_with
from siltstone.values import Sampling
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_most, ratio_readings
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.world import World

CONTEXT_TOKENS: Final = 64
"""Tokens every answer has behind it when it is timed."""
TARGETS: Final = {64: at_most(1.25, "x"), 8: at_most(1.10, "x")}
_ROOM_TOKENS: Final = 127
_GATE_USERS: Final = 5
_GATE_STEPS: Final = 3


class SteadyBatch:
    """A batch of answers some way into their conversations, from which it can start again."""

    def __init__(self, world: World, coefficients: Sequence[Tensor | None], rows: type[Rows] = Rows) -> None:
        self._world, self._coefficients, self._rows_type = world, coefficients, rows
        c = world.core.config
        size = (len(coefficients), c.num_kv_heads, CONTEXT_TOKENS, c.head_dim)
        layers = range(c.num_layers)
        # Random keys and values: to a decode step it is all the same who computed them.
        self._past = KeyValues([world.draw(*size) for _ in layers], [world.draw(*size) for _ in layers])
        self.start_again()

    def start_again(self) -> None:
        """Goes back to the first step."""
        self.rows = self._rows_type(self._world.core, self._world.deltas, self._world.basis)
        for row, own in enumerate(self._coefficients):
            answer = Answer((0,) * CONTEXT_TOKENS, own, Sampling(), tokens=[2 + row])
            self.rows.join(answer, self._past, row, CONTEXT_TOKENS)
        self._num_tokens = CONTEXT_TOKENS

    def make_room(self, num_steps: int) -> None:
        """Goes back to the first step when so many more would need more room than there is."""
        if self._num_tokens + num_steps > _ROOM_TOKENS:
            self.start_again()

    def step(self) -> Tensor:
        """Decodes one token of every answer and returns the logits."""
        self._num_tokens += 1
        return self.rows.decode()


def check_decode(world: World, rows: type[Rows] = Rows, tolerance: float = 2e-4) -> str:
    """Says what is wrong with decoding a batch, or nothing.

    Every user's logits must be those of the user alone, without a batch and without kept keys; those of a user without
    deltas must be the core's; and users must differ. `tolerance` is relative to the largest logit.
    """
    owned: list[Tensor | None] = [*world.coefficients(_GATE_USERS - 1), None]
    ids = world.ids(_GATE_USERS, CONTEXT_TOKENS // 4)
    with torch.no_grad():
        past = _read(world, ids, owned)
        batch = rows(world.core, world.deltas, world.basis)
        for row, own in enumerate(owned):
            batch.join(Answer(tuple(ids[row].tolist()), own, Sampling(), tokens=[2]), past, row, ids.shape[1])
        for step in range(_GATE_STEPS):
            ids = torch.cat([ids, torch.full_like(ids[:, :1], 2)], dim=1)
            found = batch.decode()
            alone = torch.cat([_logits_alone(world, ids[row : row + 1], own) for row, own in enumerate(owned)])
            bare = _logits_alone(world, ids, None)
            largest = float(alone.abs().max())
            error = float((found - alone).abs().max()) / largest
            if not error <= tolerance:
                return f"step {step}: logits differ from a user's alone by {error:.1e}, allowed {tolerance:.1e}"
            if not float((found[-1] - bare[-1]).abs().max()) / largest <= tolerance:
                return f"step {step}: a user without deltas is not answered by the core"
            apart = (alone[:-1] - bare[:-1]).abs().amax(dim=1)
            if not float(apart.min()) / largest > 3 * tolerance:
                return f"step {step}: a user's deltas hardly bend the core, so that nothing was checked"
    return ""


def _read(world: World, ids_BT: Tensor, owned: Sequence[Tensor | None]) -> KeyValues:
    """Reads each prompt by itself, under its own deltas."""
    kept = [
        forward_keeping(world.core, ids_BT[row : row + 1], None, _bend(world, own))[1] for row, own in enumerate(owned)
    ]
    layers = range(world.core.config.num_layers)
    return KeyValues(
        [torch.cat([one.keys[i] for one in kept]) for i in layers],
        [torch.cat([one.values[i] for one in kept]) for i in layers],
    )


def _bend(world: World, own: Tensor | None) -> Bend | None:
    if own is None:
        return None
    sites = world.deltas.split(own[None])
    return bend_with(world.deltas, world.basis, {site: list(part.unbind(1)) for site, part in sites.items()})


def _logits_alone(world: World, ids_BT: Tensor, own: Tensor | None) -> Tensor:
    return world.core.logits(forward(world.core, ids_BT, _bend(world, own))[:, -1])


def run_decode(
    world: World,
    users: Sequence[int],
    rounds: int,
    steps: int,
    say: Say,
    rows: type[Rows] = Rows,
    tolerance: float = 2e-4,
) -> Outcome:
    """Times decode steps of batches of distinct users against the same batches on the bare core, in turns."""
    case = f"decode, {world.name}"
    if complaint := check_decode(world, rows, tolerance):
        return Outcome(case, refusal=complaint)
    readings: list[Reading] = []
    for num_users in users:
        say(f"{case}: {num_users} users")
        bent = SteadyBatch(world, world.coefficients(num_users), rows)
        bare = SteadyBatch(world, [None] * num_users, rows)
        turns = {
            name: Turn(batch.step, partial(batch.make_room, steps + 1), steps)
            for name, batch in (("bent", bent), ("bare", bare))
        }
        seconds = take_turns(turns, rounds, world.device)
        name = f"{case}, {num_users} users"
        readings += ratio_readings(f"{name} / bare core", seconds["bent"], seconds["bare"], TARGETS.get(num_users))
        readings.append(Reading(f"{name}", tuple(num_users / one for one in seconds["bent"]), "tokens/s"))
        readings.append(Reading(f"{name}, bare core", tuple(num_users / one for one in seconds["bare"]), "tokens/s"))
    return Outcome(case, tuple(readings))
