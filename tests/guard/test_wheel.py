"""What is shipped works: the wheel holds all our files and imports with the sources away."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import CACHES, ROOT, SOURCE_ROOTS

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
wheel, *sources = sys.argv[1:]
sys.path[:] = [wheel] + [entry for entry in sys.path if entry not in sources]
import siltstone, siltstone_services
for package in (siltstone, siltstone_services):
    assert package.__file__.startswith(wheel), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        imported = importlib.import_module(module.name)
        assert imported.__file__.startswith(wheel), imported.__file__
        print(module.name)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("siltstone-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def package_files(root: Path) -> set[str]:
    """Returns the files of our packages below a source root, caches left out."""
    paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {str(path) for path in paths if not CACHES.intersection(path.parts)}


def test_the_wheel_holds_exactly_our_files(unpacked: Path) -> None:
    shipped = {path for path in package_files(unpacked) if not path.split("/")[0].endswith(".dist-info")}
    assert shipped == set().union(*(package_files(root) for root in SOURCE_ROOTS))


def test_the_wheel_holds_types_and_licence(unpacked: Path) -> None:
    assert (unpacked / "siltstone" / "py.typed").is_file()
    assert (unpacked / "siltstone_services" / "py.typed").is_file()
    assert list(unpacked.glob("siltstone-*.dist-info/licenses/LICENSE"))


def test_every_module_of_the_wheel_imports_with_the_sources_away(unpacked: Path) -> None:
    command = [sys.executable, "-I", "-c", IMPORT_EVERYTHING, str(unpacked), *map(str, SOURCE_ROOTS)]
    result = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "siltstone.ports" in result.stdout.split()
