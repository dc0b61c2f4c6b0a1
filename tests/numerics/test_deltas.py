"""A delta is an ordinary low-rank change of the core's weights, read through a basis that spares neutral text."""

from __future__ import annotations

import pytest
import tiny
import torch

from siltstone.errors import ConfigInvalid
from siltstone.model.basis import build_basis
from siltstone.model.core import Core, forward, forward_keeping
from siltstone.model.deltas import Basis, DeltaShape, bend_with
from siltstone.model.lesson import Lesson

SHAPE = tiny.TINY_MEMORY.shape_for(tiny.TINY_CORE)


def random_ids(seed: int, batch: int = 2, length: int = 63) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_coefficients(users: int) -> torch.Tensor:
    return torch.randn(users, SHAPE.num_coefficients, generator=torch.Generator().manual_seed(4)) * 0.2


def with_delta_in_its_weights(basis: Basis, coefficients_N: torch.Tensor) -> Core:
    tensors = tiny.random_tensors(tiny.TINY_CORE, seed=7)
    for site, parts in SHAPE.split(coefficients_N[None]).items():
        for j in range(SHAPE.num_layers):
            at, delta_OI = f"layers.{SHAPE.first_layer + j}.mlp", (basis[site][j] @ parts[0, j]).T
            names = ["gate", "up"] if site == "gate_up" else ["down"]
            for name, part in zip(names, delta_OI.chunk(len(names)), strict=True):
                tensors[f"{at}.{name}.weight"] = tensors[f"{at}.{name}.weight"] + part
    return Core(tiny.TINY_CORE, tensors)


def test_each_row_of_a_batch_is_bent_as_if_the_delta_were_in_the_weights() -> None:
    world, ids, coefficients = tiny.world(), random_ids(1, batch=3), random_coefficients(3)
    layers = {site: list(part.unbind(1)) for site, part in SHAPE.split(coefficients).items()}

    found = forward(world.core, ids, bend_with(SHAPE, world.basis, layers))

    bare = forward(world.core, ids)
    for row in range(3):
        expected = forward(with_delta_in_its_weights(world.basis, coefficients[row]), ids[row : row + 1])[0]
        assert (expected - bare[row]).abs().max() > 0.1
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_the_parts_of_flat_coefficients_cover_them_once() -> None:
    flat = torch.arange(2 * SHAPE.num_coefficients).view(2, -1)

    parts = SHAPE.split(flat)

    assert torch.equal(torch.cat([part.reshape(2, -1) for part in parts.values()], dim=1), flat)
    assert {part.data_ptr() for part in parts.values()} >= {flat.data_ptr()}


def read_power(
    world: tiny.World, basis: Basis, ids: torch.Tensor, at: list[int] | slice = slice(None)
) -> dict[str, list[float]]:
    """Returns the mean square of what each bent map's basis reads at some places of a text, a number a layer."""
    power: dict[str, list[float]] = {site: [] for site in SHAPE.sites}

    def watch(index: int, site: str, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor | None:
        if index >= SHAPE.first_layer:
            read = x[:, at] @ basis[site][index - SHAPE.first_layer]  # type: ignore[index]
            power[site].append(float(read.square().sum(dim=-1).mean()))
        return y

    forward(world.core, ids, watch)
    return power


def test_every_basis_reads_its_lessons_equally_strongly_and_anchors_less_and_is_the_same_every_time() -> None:
    world, anchors = tiny.world(), random_ids(9, batch=4)
    lessons = tiny.neutral_lessons(world.plan)

    basis, again = (build_basis(world.core, SHAPE, anchors, lessons, None, 0.1) for _ in range(2))

    for site in SHAPE.sites:
        assert torch.equal(basis[site], again[site])
        read = torch.zeros(SHAPE.num_layers)
        for lesson in lessons:
            learned = [at - 1 for at, weight in enumerate(lesson.weights) if at and weight > 0]
            read += torch.tensor(read_power(world, basis, torch.tensor([lesson.ids]), learned)[site]) * len(learned)
        num_learned = sum(sum(weight > 0 for weight in lesson.weights[1:]) for lesson in lessons)
        assert (read / num_learned).tolist() == pytest.approx([1.0] * SHAPE.num_layers, rel=1e-3)
        assert max(read_power(world, basis, anchors)[site]) < 1


def test_lessons_behind_a_prefix_are_read_behind_it() -> None:
    world, anchors = tiny.world(), random_ids(9, batch=4)
    behind = tiny.neutral_lessons(world.plan)
    apart = [Lesson(lesson.ids, lesson.weights, after_prefix=False) for lesson in behind]
    with torch.no_grad():
        _, prefix = forward_keeping(world.core, random_ids(7, batch=1))

    found = build_basis(world.core, SHAPE, anchors, behind, prefix, 0.1)
    bare = build_basis(world.core, SHAPE, anchors, behind, None, 0.1)
    none = build_basis(world.core, SHAPE, anchors, apart, prefix, 0.1)

    assert not torch.allclose(found["down"].abs(), bare["down"].abs(), atol=1e-2)
    torch.testing.assert_close(none["down"], bare["down"])


def test_directions_in_which_neutral_text_is_strong_are_read_weakly() -> None:
    world, anchors = tiny.world(), random_ids(9, batch=4)
    seen: dict[int, torch.Tensor] = {}

    def watch(index: int, site: str, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor | None:
        if site == "gate_up":
            seen[index] = x.reshape(-1, x.shape[-1]).double()
        return y

    forward(world.core, anchors, watch)
    shape = DeltaShape(tiny.TINY_CORE, 2, ("gate_up",), 32)
    # With as many directions as there are, only how strongly each is read is left to choose.
    basis = build_basis(world.core, shape, anchors, tiny.neutral_lessons(world.plan), None, 0.01)["gate_up"].double()

    for layer in (1, 2):
        x = seen[layer]
        vectors = torch.linalg.eigh(x.T @ x).eigenvectors
        read = (vectors.T @ basis[layer - 1]).norm(dim=1)
        assert read[0] > 2 * read[-1]


@pytest.mark.parametrize(
    ("layers", "sites", "rank"),
    [(0, ("down",), 4), (4, ("down",), 4), (2, (), 4), (2, ("up",), 4), (2, ("down",), 0), (2, ("down",), 33)],
)
def test_a_shape_that_does_not_fit_the_core_is_refused(layers: int, sites: tuple[str, ...], rank: int) -> None:
    with pytest.raises(ConfigInvalid):
        DeltaShape(tiny.TINY_CORE, layers, sites, rank)  # type: ignore[arg-type]
