"""What learning over a core needs, on disk (safetensors): built once for a core and a shape, then always the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from siltstone.adapters.whole_file import write_whole
from siltstone.errors import Corrupt, Unavailable


class BasisStore:
    """Keeps bases under `<home>/bases`, each named by its recipe, which lies beside it, as its digest does.

    The recipe's `core` is the digest of the core that the basis is for.
    """

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

    def keep(self, cores: Collection[str]) -> None:
        """Removes the bases of all other cores than these.

        Raises: Unavailable when one cannot be removed.
        """
        try:
            for told in self._folder.glob("*.json"):
                # One that is damaged does not say whose it is: it stays.
                recipe = told.read_bytes()
                if _name(recipe) == told.stem and json.loads(recipe)["core"] not in cores:
                    # The seal first: a file without one is not there.
                    for suffix in (".sha256", ".safetensors", ".json"):
                        told.with_suffix(suffix).unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable("the read bases", str(error)) from error

    def _get(self, recipe: dict[str, object], build: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], str]:
        told = json.dumps(recipe, sort_keys=True).encode()
        name = _name(told)
        path, seal = self._folder / f"{name}.safetensors", self._folder / f"{name}.sha256"
        if not seal.exists():
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for left in self._folder.glob(f"{name}.*.part"):
                left.unlink()
            content = save({part: tensor.contiguous().cpu() for part, tensor in build().items()})
            # The seal is written last: a file without one is not there.
            write_whole(path.with_suffix(".json"), told)
            write_whole(path, content)
            write_whole(seal, hashlib.sha256(content).hexdigest().encode())
        mend = f"delete {seal}, and it is built anew"
        expected = seal.read_bytes().decode("ascii", "replace")
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise Corrupt(f"basis {name}", expected, f"no file; {mend}") from error
        if (beside := path.with_suffix(".json")).exists() and beside.read_bytes() != told:
            raise Corrupt(f"the recipe of basis {name}", told.decode(), f"another; {mend}")
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise Corrupt(f"basis {name}", expected, f"{found}; {mend}")
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise Corrupt(f"basis {name}", "safetensors", f"{error}; {mend}") from error
        return tensors, found


def _name(recipe: bytes) -> str:
    return hashlib.sha256(recipe).hexdigest()[:32]
