"""An expert is made as small as text asks that it was not trained on, and no smaller."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import DistilConfig, Expert, Item, Student, anchor_item
from siltstone.sleep.trust_region import fit, mean_kl, split_anchors

WORLD = tiny.world()
CREW = Crew()


def ids(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


ANCHORS = [anchor_item(Lesson(ids(seed, 8 + seed), (0.0,) * (8 + seed), seed % 2 == 0)) for seed in range(12)]
DREAMS = [Item(Lesson(ids(50 + n, 9), (1.0,) * 9), (4, 5), {5: 0.9}, "ada") for n in range(3)]


def student(size: float) -> Student:
    made = Student(WORLD.core, Expert(WORLD.shape, WORLD.basis), WORLD.plan.prefix_ids, DistilConfig())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for write in made.expert.parameters():
            write.copy_(size * torch.randn(write.shape, generator=generator))
    made.prepare(ANCHORS)
    return made


def norm(made: Student) -> float:
    return math.sqrt(sum(float(write.detach().square().sum()) for write in made.expert.parameters()))


def test_an_expert_that_moves_little_is_left_as_it_is() -> None:
    made = student(0.1)
    moved, before = mean_kl(made, ANCHORS, CREW), norm(made)

    assert moved > 0
    assert fit(made, ANCHORS, 2 * moved, CREW) == 1.0
    assert norm(made) == before


def test_an_expert_that_moves_too_much_is_made_smaller_until_it_holds() -> None:
    made = student(1.0)
    moved, before = mean_kl(made, ANCHORS, CREW), norm(made)
    bound = moved / 9

    share = fit(made, ANCHORS, bound, CREW)

    assert mean_kl(made, ANCHORS, CREW) <= bound
    assert norm(made) == pytest.approx(share * before, rel=1e-4)
    # No smaller than it need be: a quarter more of it would be too much.
    assert 0.1 < share < 0.9
    with torch.no_grad():
        for write in made.expert.parameters():
            write.mul_(1.25)
    assert mean_kl(made, ANCHORS, CREW) > bound


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_is_left_of_an_expert_that_no_share_suits(broken: bool) -> None:
    made = student(1.0)
    if broken:
        with torch.no_grad():
            next(made.expert.parameters()).fill_(math.nan)

    assert fit(made, ANCHORS, 1e-12, CREW) == 0.0
    assert norm(made) == 0.0


def test_a_bound_and_something_to_measure_are_asked_for() -> None:
    with pytest.raises(InvalidInput):
        fit(student(1.0), ANCHORS, 0.0, CREW)
    with pytest.raises(InvalidInput):
        fit(student(1.0), [], 1.0, CREW)


def test_of_both_kinds_of_anchors_some_are_kept_back_and_no_dreams() -> None:
    trained, kept_back = split_anchors([*DREAMS, *ANCHORS], every=3)

    assert len(kept_back) == 4
    assert {item.lesson.after_prefix for item in kept_back} == {False, True}
    assert all(not item.owner for item in kept_back)
    assert len(trained) + len(kept_back) == len(DREAMS) + len(ANCHORS)
    assert all(item in trained for item in DREAMS)
