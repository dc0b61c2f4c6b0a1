"""What learning over a core needs, on disk (safetensors): built once for a core and a shape, then always the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from siltstone.adapters.whole_file import write_whole
from siltstone.errors import Corrupt, Unavailable


class BasisStore:
    """Keeps bases under `<home>/bases`, each named by what it was made from, with its digest beside it."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "bases"

    def get(self, recipe: dict[str, object], build: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], str]:
        """Returns the tensors of a recipe and their digest, building and keeping it the first time.

        Raises: Corrupt when the file is not what was written; Unavailable when it cannot be written or read.
        """
        try:
            return self._get(recipe, build)
        except OSError as error:
            raise Unavailable("the read bases", str(error)) from error

    def _get(self, recipe: dict[str, object], build: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], str]:
        name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]
        path, seal = self._folder / f"{name}.safetensors", self._folder / f"{name}.sha256"
        if not seal.exists():
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for left in self._folder.glob(f"{name}.*.part"):
                left.unlink()
            content = save({part: tensor.contiguous().cpu() for part, tensor in build().items()})
            # The seal is written last: a file without one is not there.
            write_whole(path, content)
            write_whole(seal, hashlib.sha256(content).hexdigest().encode())
        mend = f"delete {seal}, and it is built anew"
        expected = seal.read_bytes().decode("ascii", "replace")
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise Corrupt(f"basis {name}", expected, f"no file; {mend}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise Corrupt(f"basis {name}", expected, f"{found}; {mend}")
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise Corrupt(f"basis {name}", "safetensors", f"{error}; {mend}") from error
        return tensors, found
