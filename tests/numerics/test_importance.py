"""The importance of a dream is the norm of the gradient that it alone would give a new expert."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import DistilConfig, Expert, Item, Student
from siltstone.sleep.importance import importances

WORLD = tiny.world()


def item(seed: int, length: int, raised: dict[int, float]) -> Item:
    generator = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(2, 95, (length,), generator=generator).tolist())
    return Item(Lesson(ids, (1.0,) * length), tuple(range(1, length)), raised, "ada")


ITEMS = [item(0, 9, {4: 0.9}), item(1, 17, {3: 0.5, 12: 0.98}), item(2, 11, {}), item(3, 5, {4: 0.7})]


def by_autograd(one: Item) -> float:
    """Returns the norm of the gradient of the student's own loss, of one item, summed over its tokens."""
    student = Student(WORLD.core, Expert(WORLD.shape, WORLD.basis), (), DistilConfig(raised_weight=0.0))
    student.prepare([one])
    loss = student([0]) * len(one.places)
    grads = torch.autograd.grad(loss, list(student.expert.parameters()))
    return math.sqrt(sum(float(grad.pow(2).sum()) for grad in grads))


def test_it_is_the_norm_of_each_items_own_gradient_whatever_it_is_batched_with() -> None:
    for batch in (1, 3, 8):
        found = importances(WORLD.core, WORLD.shape, WORLD.basis, None, None, ITEMS, batch)

        assert found == pytest.approx([by_autograd(one) for one in ITEMS], rel=1e-3, abs=1e-4)
    assert found[2] == 0.0
    assert min(found[0], found[1], found[3]) > 0


def test_what_the_core_holds_already_pulls_less() -> None:
    near, far = item(5, 9, {4: 0.05}), item(5, 9, {4: 0.95})

    less, more = importances(WORLD.core, WORLD.shape, WORLD.basis, None, None, [near, far], 2)

    assert less < more
