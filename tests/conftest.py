"""What holds for every test: one thread, no network for models, examples that do not change from run to run."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch and tokenizers are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("siltstone", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("siltstone")


def _data_folder() -> Path:
    return Path(os.environ.get("SILTSTONE_DATA", ROOT.parent / "shared" / "data"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this machine cannot run."""
    if not _data_folder().is_dir():
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=f"no data folder at {_data_folder()} (set SILTSTONE_DATA)"))
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu and not _has_cuda():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def mlflow_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests, each under a name of its own: it takes seconds to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, for tests marked `data`."""
    return _data_folder()
