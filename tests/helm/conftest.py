"""Real helm, or a reason why there is none."""

from __future__ import annotations

import pytest
from fetch_helm import binary_path
from rendering import VERSIONS, helm_folder


@pytest.fixture(params=VERSIONS, scope="session")
def helm(request: pytest.FixtureRequest) -> str:
    """A version of helm that can be run."""
    return _there(request.param)


@pytest.fixture(scope="session")
def newest_helm() -> str:
    """The newest version of helm."""
    return _there(VERSIONS[-1])


def _there(version: str) -> str:
    path = binary_path(helm_folder(), version)
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent} (`make chart-tools` puts it there)")
    return version
