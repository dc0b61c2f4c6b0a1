"""Imports go the way the contracts in pyproject.toml say, and the contracts cover every module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from repository import CACHES, ROOT

NEED_NO_INFRASTRUCTURE_RULE = {"adapters", "config", "proto", "wire"}
"""Adapters may import infrastructure, wire and proto are protobuf, and config gathers what adapters declare."""


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter over the sources under `root`, with the contracts of the pyproject.toml there."""
    sources = os.pathsep.join(str(root / folder) for folder in ("platform", "services"))
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": sources, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def contracts() -> dict[str, dict[str, list[str]]]:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {contract["id"]: contract for contract in linter["contracts"]}


@pytest.fixture(scope="module")
def top_modules() -> set[str]:
    children = (ROOT / "platform" / "siltstone").iterdir()
    return {path.stem for path in children if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}


def test_imports_keep_every_contract() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_has_a_layer(contracts: dict[str, dict[str, list[str]]], top_modules: set[str]) -> None:
    named = set(re.findall(r"siltstone\.(\w+)", " ".join(contracts["layers"]["layers"])))
    assert top_modules <= named


def test_every_pure_module_is_kept_from_infrastructure(
    contracts: dict[str, dict[str, list[str]]], top_modules: set[str]
) -> None:
    sources = {name.removeprefix("siltstone.") for name in contracts["infrastructure"]["source_modules"]}
    assert top_modules - NEED_NO_INFRASTRUCTURE_RULE == sources


def test_every_stage_is_a_stranger(contracts: dict[str, dict[str, list[str]]], top_modules: set[str]) -> None:
    (stage_layer,) = [layer for layer in contracts["layers"]["layers"] if "siltstone.journal" in layer]
    stages = set(re.findall(r"siltstone\.(\w+)", stage_layer)) & top_modules
    assert {name.removeprefix("siltstone.") for name in contracts["stages"]["modules"]} == stages


@pytest.mark.parametrize(
    ("where", "line", "contract"),
    [
        ("journal", "import sqlite3", "Infrastructure is imported by adapters and services only"),
        ("model", "import safetensors", "Infrastructure is imported by adapters and services only"),
        ("memory", "import siltstone.journal", "Stages are strangers to one another"),
        ("model", "import siltstone.ports", "Imports go one way"),
        ("adapters", "import siltstone_services", "Imports go one way"),
        ("model", "import time", "The model knows no files, no clock"),
        ("gate", "import time", "The gate reads no clock"),
        ("gate", "import siltstone.memory", "Stages are strangers to one another"),
        ("gate", "import mlflow", "Infrastructure is imported by adapters and services only"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, where: str, line: str, contract: str) -> None:
    for folder in ("platform", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(*CACHES))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "platform" / "siltstone" / where / "planted.py").write_text(f"{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    broken = result.stdout.partition("Broken contracts")[2]
    assert contract in broken
    assert f"siltstone.{where}.planted" in broken
