"""The generated protobuf code is what the .proto files say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from repository import GENERATED, ROOT


def generate(proto_root: Path, target: Path) -> dict[str, str]:
    """Generates code for every .proto file and returns it by path below `target`."""
    target.mkdir()
    sources = sorted(str(path) for path in proto_root.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(proto_root), *outputs, *sources]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return read_generated(target)


def read_generated(root: Path) -> dict[str, str]:
    """Returns the generated files below `root`, by path; package files are ours."""
    paths = [path for path in root.rglob("*.py*") if path.suffix in {".py", ".pyi"} and path.name != "__init__.py"]
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


def committed() -> dict[str, str]:
    generated = read_generated(ROOT / GENERATED)
    return {str(GENERATED.relative_to("platform") / path): text for path, text in generated.items()}


def test_the_committed_code_equals_a_new_generation(tmp_path: Path) -> None:
    assert committed() == generate(ROOT / "proto", tmp_path / "generated")


def test_a_proto_file_changed_without_generating_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    changed = next(iter(sorted((tmp_path / "proto").rglob("*.proto"))))
    changed.write_text(changed.read_text() + "\nmessage Planted {\n  string text = 1;\n}\n")
    assert committed() != generate(tmp_path / "proto", tmp_path / "generated")
