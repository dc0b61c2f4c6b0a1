"""The write guard's short form is the long one: make steep output directions short, orthogonalise, make them short."""

from __future__ import annotations

import pytest
import torch
from tiny import world

from siltstone.model.guard import SiteGuard, build_guard
from siltstone.model.orthogonal import orthogonalise


def drawn_guard(layers: int, width: int, directions: int, most: float) -> SiteGuard:
    generator = torch.Generator().manual_seed(3)
    spans = torch.linalg.qr(torch.randn(layers, width, directions, generator=generator)).Q
    return SiteGuard(spans, torch.linspace(most, 0.0, directions).expand(layers, directions))


@pytest.mark.parametrize("most", [0.0, 0.4, 0.95])
@pytest.mark.parametrize(("rank", "width", "directions"), [(1, 5, 2), (4, 33, 9), (6, 40, 40)])
def test_a_guarded_direction_is_the_orthogonalised_guarded_gradient_guarded_again(
    rank: int, width: int, directions: int, most: float
) -> None:
    guard = drawn_guard(3, width, directions, most)
    gradient = torch.randn(2, 3, rank, width, generator=torch.Generator().manual_seed(4)) * 1e-3

    slow = guard.apply(orthogonalise(guard.apply(gradient).flatten(0, 1)).view_as(gradient))

    torch.testing.assert_close(guard.direction(gradient), slow, rtol=0, atol=2e-4)


def test_a_gradient_of_zero_goes_nowhere() -> None:
    guard = drawn_guard(2, 12, 5, 0.9)
    assert torch.equal(guard.direction(torch.zeros(1, 2, 3, 12)), torch.zeros(1, 2, 3, 12))


def test_directions_neutral_text_depends_on_are_written_less() -> None:
    tiny = world()
    anchors = torch.randint(0, 97, (4, 48), generator=torch.Generator().manual_seed(8))
    guard = build_guard(tiny.core, tiny.shape, anchors, num_directions=6, damping=0.1, seed=0)

    for site, one in guard.items():
        size = (1, tiny.shape.num_layers, tiny.shape.rank, one.directions.shape[1])
        step = torch.randn(size, generator=torch.Generator().manual_seed(5))
        bare = orthogonalise(step.flatten(0, 1)).view_as(step)
        spared = (one.direction(step) @ one.directions)[..., 0].norm() / (bare @ one.directions)[..., 0].norm()
        assert spared < 0.9, site
        assert (one.shrink.diff(dim=1) <= 1e-6).all(), "the steepest direction is spared most"
