"""A step goes equally far in every direction its gradient names."""

from __future__ import annotations

import pytest
import torch

from siltstone.model.orthogonal import orthogonalise, orthogonalise_slowly

SPREAD = 0.035
"""How far a singular value of the fast form may be from one, for directions of at least 1 % of the norm."""


def with_singular_values(values: list[float], columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = len(values)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64)).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.T


def nearest(g_BRO: torch.Tensor) -> torch.Tensor:
    return torch.stack([orthogonalise_slowly(g.double()) for g in g_BRO])


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (3, 4, 33), (2, 8, 8), (1, 64, 100), (2, 33, 4)])
def test_the_fast_form_is_near_the_one_by_singular_values_at_any_size(shape: tuple[int, ...], size: float) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if shape[1] == shape[2] and shape[1] > 1:
        # A random square matrix may have a direction it hardly names.
        g = torch.stack([with_singular_values([0.1 * (i + 1) for i in range(shape[1])], shape[2], s) for s in (1, 2)])
    g = g * size

    found = orthogonalise(g.float())

    assert (torch.linalg.matrix_norm(found.double() - nearest(g), ord=2) <= SPREAD).all()


def test_strong_and_weak_directions_are_followed_equally_far() -> None:
    g = with_singular_values([1.0, 0.3, 0.05, 0.015], 40)

    found = torch.linalg.svdvals(orthogonalise(g[None].float())[0])

    assert (found - 1).abs().max() <= SPREAD


def test_what_is_only_rounding_is_not_blown_up_to_a_direction() -> None:
    found = torch.linalg.svdvals(orthogonalise(with_singular_values([1.0, 1e-7], 40)[None].float())[0])

    assert found[1] < 1e-3


def test_zero_stays_zero_beside_others() -> None:
    g = torch.stack([torch.zeros(4, 9), torch.ones(4, 9), torch.zeros(4, 9)])

    found = orthogonalise(g)

    assert torch.equal(found[[0, 2]], torch.zeros(2, 4, 9))
    assert found[1].norm() > 0.9


def test_double_comes_back_double() -> None:
    assert orthogonalise(torch.ones(1, 2, 3, dtype=torch.float64)).dtype == torch.float64
