"""A user's levels on another core: taken over, fitted, or refused."""

from __future__ import annotations

from functools import cache

import torch
from tiny import TINY_CORE, World, absorb, interaction, random_tensors, world

from siltstone.model.core import Core
from siltstone.model.deltas import DeltaShape
from siltstone.model.lesson import Lesson
from siltstone.sleep.rebase import RebaseConfig, Rebased, rebase

SAID = ("I was born in Lisbon.", "My dog is Ferro.", "I keep bees.", "I live in Oslo.", "My car is red.", "I sail.")
EAGER = RebaseConfig(good_enough_share=0.0, max_lost_share=10.0, num_steps=40, rate=5e-3)


def other_core(size: float, first_layer: int) -> Core:
    """Returns a core whose bent MLPs differ by noise of a size."""
    chance = torch.Generator().manual_seed(3)
    tensors = random_tensors(TINY_CORE, seed=7)
    for name, tensor in tensors.items():
        if ".mlp." in name and int(name.split(".")[1]) >= first_layer:
            tensor += torch.randn(tensor.shape, generator=chance) * size * tensor.std()
    return Core(TINY_CORE, tensors)


@cache
def taught() -> tuple[World, torch.Tensor, list[Lesson]]:
    here = world()
    # Said often enough that another core has something to lose.
    said = [interaction(f"{time}-{text}", text) for time in range(12) for text in SAID]
    (memory,) = absorb(here.absorber(), (here.empty(), said))
    return here, memory.coefficients(), [here.plan.as_recalled(text, text) for text in SAID]


def carry(new: Core, config: RebaseConfig, lessons: list[Lesson] | None = None, seed: str = "s") -> Rebased:
    here, coefficients, own = taught()
    done = list(
        rebase(
            here.core,
            new,
            here.shape,
            here.basis,
            None,
            here.plan.prefix_ids,
            coefficients,
            own if lessons is None else lessons,
            config,
            seed,
        )
    )
    assert all(one is None for one in done[:-1])
    assert done[-1] is not None
    return done[-1]


def shape() -> DeltaShape:
    return world().shape


def test_on_the_same_core_the_levels_stay_as_they_are() -> None:
    done = carry(world().core, RebaseConfig())
    assert (done.accepted, done.lost_nats, done.num_steps) == (True, 0.0, 0)
    assert not done.correction.any()


def test_fitting_brings_back_part_of_what_another_core_loses() -> None:
    new = other_core(0.6, shape().first_layer)
    as_they_are = carry(new, RebaseConfig(good_enough_share=10.0, max_lost_share=10.0))
    fitted = carry(new, EAGER)
    assert as_they_are.lost_nats is not None
    assert fitted.lost_nats is not None
    assert as_they_are.lost_nats > 0.05
    assert fitted.lost_nats < 0.8 * as_they_are.lost_nats
    assert fitted.correction.any()


def test_a_loss_over_the_limit_is_refused() -> None:
    new = other_core(3.0, shape().first_layer)
    done = carry(new, RebaseConfig(num_steps=2))
    assert not done.accepted
    assert done.lost_nats is not None
    assert done.held_nats is not None
    assert done.lost_nats > RebaseConfig().max_lost_share * done.held_nats > 0


def test_who_has_said_nothing_is_taken_over() -> None:
    done = carry(other_core(3.0, shape().first_layer), RebaseConfig(), lessons=[])
    assert (done.accepted, done.lost_nats) == (True, None)


def test_the_same_seed_gives_the_same_correction_and_no_gradient_mode_leaks() -> None:
    new = other_core(0.6, shape().first_layer)
    first, again = carry(new, EAGER), carry(new, EAGER)
    assert torch.equal(first.correction, again.correction)
    assert torch.is_grad_enabled()
