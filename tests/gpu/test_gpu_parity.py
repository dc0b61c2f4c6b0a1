"""A GPU gives what the processor gives: the same answers, the same gradients, the same memories."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch

from siltstone.memory.user_memory import UserMemory
from siltstone.model.core import forward
from siltstone.model.deltas import bend_with
from siltstone.model.lesson import Lesson, LessonReader, PieceResult
from siltstone.model.levels import DELTA, GRADIENT, MOMENTUM

pytestmark = pytest.mark.gpu

ATOL = 1e-3
"""Largest difference of two float32 logits that the order of sums explains."""
SHARE = 5e-3
"""Largest share of a gradient's or a memory's length that the order of sums explains."""


@pytest.fixture(scope="module")
def worlds() -> tuple[tiny.World, tiny.World]:
    """The same core on the processor and on the GPU, with one basis."""
    cpu, gpu = tiny.world(), tiny.world(device="cuda")
    basis = {site: part.to("cuda") for site, part in cpu.basis.items()}
    return cpu, tiny.World(gpu.core, gpu.shape, basis, gpu.plan, gpu.config, gpu.limits)


def random_coefficients(world: tiny.World, users: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(users, world.shape.num_coefficients, generator=generator) * 0.1).to(world.core.device)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found.cpu() - expected).norm()) <= SHARE * float(expected.norm())


@pytest.mark.parametrize("length", [1, 63, 100])
def test_bent_and_bare_logits_are_the_same_on_both(worlds: tuple[tiny.World, tiny.World], length: int) -> None:
    ids = torch.randint(0, 97, (3, length), generator=torch.Generator().manual_seed(length))
    results = []
    for world in worlds:
        parts = world.shape.split(random_coefficients(world, 3))
        bend = bend_with(world.shape, world.basis, {site: list(part.unbind(1)) for site, part in parts.items()})
        placed = ids.to(world.core.device)
        with torch.no_grad():
            results.append([world.core.logits(forward(world.core, placed, bent)).cpu() for bent in (None, bend)])

    assert (results[0][0] - results[0][1]).abs().max() > 100 * ATOL
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_an_empty_memory_is_the_core_bit_for_bit_on_the_gpu_too(worlds: tuple[tiny.World, tiny.World]) -> None:
    world = worlds[1]
    ids = torch.randint(0, 97, (4, 63), generator=torch.Generator().manual_seed(3)).to("cuda")
    coefficients = random_coefficients(world, 4)
    coefficients[[0, 2]] = 0
    parts = world.shape.split(coefficients)
    bend = bend_with(world.shape, world.basis, {site: list(part.unbind(1)) for site, part in parts.items()})

    with torch.no_grad():
        bare, bent = forward(world.core, ids), forward(world.core, ids, bend)

    assert torch.equal(bent[[0, 2]], bare[[0, 2]])
    assert not torch.equal(bent[[1, 3]], bare[[1, 3]])


def read(world: tiny.World, lessons: Sequence[Lesson]) -> list[PieceResult]:
    reader = LessonReader(world.core, world.shape, world.basis, len(lessons), world.absorber().prefix)
    at, pieces = [0] * len(lessons), []
    while users := [user for user, lesson in enumerate(lessons) if at[user] < lesson.num_read]:
        spans = [[lessons[user].span(at[user], 8)] for user in users]
        pieces.append(reader.read_piece(random_coefficients(world, len(users)), users, spans, 1.0))
        for user, own in zip(users, spans, strict=True):
            at[user] = own[0].end
    return pieces


def test_pieces_of_lessons_give_the_same_gradients_on_both(worlds: tuple[tiny.World, tiny.World]) -> None:
    generator = torch.Generator().manual_seed(4)
    lessons = []
    for length in (63, 1, 30):
        ids = torch.randint(0, 97, (length + 1,), generator=generator).tolist()
        lessons.append(Lesson(tuple(ids), (*((1.0, 0.5, -1.0, 0.0)[i % 4] for i in range(length)), 1.0)))

    on_cpu, on_gpu = (read(world, lessons) for world in worlds)

    assert len(on_cpu) > 4
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert found.learned_tokens == expected.learned_tokens
        assert found.surprise == pytest.approx(expected.surprise, rel=SHARE)
        for one, other in zip(found.nats, expected.nats, strict=True):
            assert one == pytest.approx(other, rel=SHARE)
        assert_near(found.gradient_BN, expected.gradient_BN)


def test_users_absorbed_together_get_the_same_memories_on_both(worlds: tuple[tiny.World, tiny.World]) -> None:
    said = {
        "ada": [tiny.interaction("1", "My boat is called Estrela."), tiny.interaction("2", "It is blue.", "I see.")],
        "bob": [tiny.interaction("1", "I live in Porto with my two dogs.", user="bob")],
    }

    def learn(world: tiny.World) -> list[UserMemory]:
        return tiny.absorb(world.absorber(), *((world.empty(user), texts) for user, texts in said.items()))

    for expected, found in zip(*(learn(world) for world in worlds), strict=True):
        assert found.numbers.device.type == "cpu"
        assert found.position_tokens == expected.position_tokens
        assert found.counters.num_updates == expected.counters.num_updates
        assert found.counters.open_tokens == expected.counters.open_tokens
        assert expected.numbers[:, DELTA].norm() > 0
        for buffer in (DELTA, GRADIENT, MOMENTUM):
            assert_near(found.numbers[:, buffer], expected.numbers[:, buffer])
