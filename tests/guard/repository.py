"""Where the repository lies, and the files of it that are ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE_ROOTS = (ROOT / "platform", ROOT / "services")
GENERATED = Path("platform/siltstone/proto")
OUR_FOLDERS = ("benchmarks", "docs", "helm", "platform", "proto", "services", "tests")
CACHES = {"__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache"}


def our_files(root: Path = ROOT) -> Iterator[Path]:
    """Yields every file of our folders, relative to `root`, without caches."""
    for folder in OUR_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and not CACHES.intersection(relative.parts):
                yield relative
