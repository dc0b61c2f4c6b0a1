"""The repository is laid out as the design says."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository import CACHES, GENERATED, OUR_FOLDERS, ROOT, our_files

MAX_LINES = 500
FORBIDDEN_WORDS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
REQUIRED_FOLDERS = {"docs", "platform", "proto", "services", "tests"}
NOT_OURS = CACHES | {".git", ".venv", ".siltstone", "build", "dist", "runs"}


def layout_offences(root: Path) -> list[str]:
    """Returns a sentence for every file that breaks the layout."""
    offences = []
    seen_tests: dict[str, Path] = {}
    for path in our_files(root):
        if path.name == "__init__.py":
            if path.parent.name == "platform":
                offences.append(f"{path}: shadows Python's own module platform")
            if path.parts[0] == "tests":
                offences.append(f"{path}: tests are not a package")
        for part in path.parts:
            words = part.split(".")[0].lower().replace("-", "_").split("_")
            if FORBIDDEN_WORDS.intersection(words):
                offences.append(f"{path}: a name that says nothing")
        if path.is_relative_to(GENERATED):
            continue
        if path.suffix in {".py", ".proto"}:
            num_lines = len((root / path).read_text(encoding="utf-8").splitlines())
            if num_lines > MAX_LINES:
                offences.append(f"{path}: {num_lines} lines, over {MAX_LINES}")
        if path.suffix == ".py" and path.parts[0] in {"platform", "services"}:
            package = root / path.parent
            if package.parent != root and not (package / "__init__.py").is_file():
                offences.append(f"{path}: its folder has no __init__.py")
        if path.suffix == ".py" and path.parts[0] == "tests" and path.name != "conftest.py":
            first = seen_tests.setdefault(path.name, path)
            if first != path:
                offences.append(f"{path}: same base name as {first}")
    return offences


def test_every_file_is_where_the_design_puts_it() -> None:
    assert layout_offences(ROOT) == []


def test_the_top_folders_are_those_of_the_design() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir()} - NOT_OURS
    visible = {name for name in found if not name.startswith(".")}
    assert visible <= set(OUR_FOLDERS)
    assert visible >= REQUIRED_FOLDERS


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("platform/__init__.py", "", "shadows"),
        ("tests/unit/platform/__init__.py", "", "shadows"),
        ("tests/unit/__init__.py", "", "not a package"),
        ("services/siltstone_services/__init__.py", "\n" * (MAX_LINES + 1), "over 500"),
        ("platform/siltstone/journal/kafka_utils.py", "", "says nothing"),
        ("platform/siltstone/common/levels.py", "", "says nothing"),
        ("platform/siltstone/journal/admit.py", "", "no __init__.py"),
    ],
)
def test_a_misplaced_file_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    assert any(complaint in offence for offence in layout_offences(tmp_path))


def test_two_test_files_of_one_name_are_found(tmp_path: Path) -> None:
    for folder in ("unit", "flow"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / "test_admit.py").touch()
    assert any("same base name" in offence for offence in layout_offences(tmp_path))
