"""Learning: users' updates per second, against what the processor's matrix products allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.user_memory import UserMemory
from siltstone.model.core import forward
from siltstone.model.deltas import bend_with
from siltstone.model.lesson import Lesson, LessonReader
from siltstone.model.levels import DELTA
from siltstone.values import Interaction
from siltstone_services.benchmark.products import Product, ProductLimit, head_product, layer_products
from siltstone_services.benchmark.readings import Outcome, Reading, Say, Target, at_least, ratio_readings
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.world import World

LEARNED_TOKENS: Final = 32
"""Tokens a user learns in one update that is timed: two updates of a fast level of 16."""
OF_LIMIT: Final = at_least(0.6, "x")
_PEER_UPDATES: Final = 4
"""Users who learn at a peer in one of its turns."""

Work = list[tuple[UserMemory, list[Interaction]]]
Peer = Callable[[], float]
"""Runs one user's update at a peer and returns its seconds."""


def course(world: World, num_users: int, num_tokens: int = LEARNED_TOKENS) -> Work:
    """Returns distinct users who have each said something of a known length."""
    memories = [world.memory_of(number) for number in range(num_users)]
    return [(memory, [world.said(memory.owner, "said", num_tokens)]) for memory in memories]


def absorb(absorber: Absorber, work: Sequence[tuple[UserMemory, Sequence[Interaction]]]) -> list[UserMemory]:
    """Absorbs to the end."""
    *_, done = absorber.absorb(work)
    if isinstance(done, Step):
        raise TypeError("an absorber ends with the new memories")
    return done


def check_update(world: World, reader: type[LessonReader] = LessonReader, tolerance: float = 2e-3) -> str:
    """Says what is wrong with learning in a batch, or nothing.

    The gradient of every user must be the slope of that user's own loss, as plain forward passes measure it; and a
    user's new memory must be the one of the user alone.
    """
    users, own = 3, torch.stack(world.coefficients(3))
    ids = world.ids(users, 14)
    weights = (0.0, *[1.0] * (ids.shape[1] - 1))
    taught = [Lesson(tuple(row), weights, after_prefix=False) for row in ids.tolist()]
    lessons = reader(world.core, world.deltas, world.basis, users)
    # With a gate of zero nats every token counts in full, so that the loss is the plain one.
    piece = lessons.read_piece(own, range(users), [[lesson.span(0, ids.shape[1])] for lesson in taught], 0.0)
    gradient = piece.gradient_BN.double()
    towards = gradient / gradient.norm(dim=1, keepdim=True)
    width = 0.02
    step = (width * towards).to(own.dtype)
    slope = (_losses(world, ids, own + step) - _losses(world, ids, own - step)) / (2 * width)
    error = ((slope - gradient.norm(dim=1)) / gradient.norm(dim=1)).abs().max()
    if not float(error) <= 10 * tolerance:
        return f"gradients differ from the measured slope by {float(error):.1e}, allowed {10 * tolerance:.1e}"
    work = course(world, users, 20)
    absorber = world.absorber()
    together = absorb(absorber, work)
    for one, before in zip(together, work, strict=True):
        (alone,) = absorb(absorber, [before])
        moved = float((alone.numbers[:, DELTA] - before[0].numbers[:, DELTA]).norm())
        apart = float((one.numbers[:, DELTA] - alone.numbers[:, DELTA]).norm())
        if not moved > 0:
            return "an update moved nothing, so that nothing was checked"
        if not apart <= tolerance * moved:
            return f"a user's update depends on the batch: {apart / moved:.1e} of it, allowed {tolerance:.1e}"
    return ""


def _losses(world: World, ids_BT: Tensor, coefficients_BN: Tensor) -> Tensor:
    sites = world.deltas.split(coefficients_BN.to(world.dtype))
    bend = bend_with(world.deltas, world.basis, {site: list(part.unbind(1)) for site, part in sites.items()})
    with torch.no_grad():
        logits = world.core.logits(forward(world.core, ids_BT[:, :-1], bend)).double()
        return F.cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none").sum(dim=1)


def update_products(world: World, num_tokens: int) -> list[Product]:
    """Returns the products that an update cannot do without.

    Of a core of P numbers in L layers, H more in its head, the last k layers bent, for T tokens to learn:
        FLOP = 2 T (P (1 + k / L) + 2 H)
    Forward through all layers; back to the inputs, the weights being frozen, through the bent ones; the head both ways.
    """
    c = world.core.config
    layer, head = layer_products(c, num_tokens), head_product(c, num_tokens)
    return [*layer * c.num_layers, head, head.back, *[one.back for one in layer] * world.deltas.num_layers]


def run_update(
    world: World,
    num_users: int,
    rounds: int,
    say: Say,
    *,
    peers: dict[str, tuple[Peer, Target | None]] | None = None,
    reader: type[LessonReader] = LessonReader,
    tolerance: float = 2e-3,
) -> Outcome:
    """Times one update of every user, in turns with the matrix products alone and with the peers."""
    case = f"update, {world.name}, {num_users} users x {LEARNED_TOKENS} tokens"
    if complaint := check_update(world, reader, tolerance):
        return Outcome(case, refusal=complaint)
    say(case)
    absorber, work = world.absorber(), course(world, num_users)
    limit = ProductLimit(world, update_products(world, num_users * LEARNED_TOKENS))
    turns = {"ours": Turn(partial(absorb, absorber, work), warm=False), "limit": Turn(limit.run)}
    absorb(absorber, work)
    told: dict[str, list[float]] = {name: [] for name in peers or {}}
    for name, (peer, _) in (peers or {}).items():
        turns[name] = Turn(partial(_note, peer, told[name]), warm=False)
    with torch.no_grad():
        seconds = take_turns(turns, rounds, world.device)
    ours, bound = seconds["ours"], seconds["limit"]
    readings = [
        *ratio_readings(f"{case}, of the matrix products' limit", bound, ours, OF_LIMIT),
        Reading(case, tuple(num_users / one for one in ours), "users/s"),
        Reading(f"{case}, limit", tuple(num_users / one for one in bound), "users/s"),
        Reading(f"{case}, matrix products", tuple(limit.num_flop / one / 1e9 for one in bound), "GFLOP/s"),
    ]
    for name, (_, target) in (peers or {}).items():
        each = [one / num_users for one in ours]
        readings += ratio_readings(f"{case} / {name}", told[name], each, target)
        readings.append(Reading(f"{name}, sequential", tuple(1 / one for one in told[name]), "users/s"))
    return Outcome(case, tuple(readings))


def _note(peer: Peer, told: list[float]) -> None:
    told.append(sum(peer() for _ in range(_PEER_UPDATES)) / _PEER_UPDATES)
