"""A read basis is built once, kept whole, and never believed when it is not what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from siltstone.adapters.basis_store import BasisStore
from siltstone.errors import Corrupt, Unavailable
from siltstone.model.deltas import Site

RECIPE: dict[str, object] = {"core": "abc", "rank": 4}


def build() -> dict[Site, Tensor]:
    return {"gate_up": torch.arange(24.0).view(2, 3, 4), "down": torch.ones(2, 5, 4)}


def never() -> dict[Site, Tensor]:
    raise AssertionError("built a second time")


def test_a_basis_is_built_once_and_read_ever_after(tmp_path: Path) -> None:
    first, digest = BasisStore(tmp_path).get(RECIPE, build)
    again, same = BasisStore(tmp_path).get(RECIPE, never)
    assert digest == same
    assert all(torch.equal(again[site], tensor) for site, tensor in build().items())
    assert first.keys() == again.keys()


def test_another_recipe_is_another_basis(tmp_path: Path) -> None:
    store = BasisStore(tmp_path)
    _, digest = store.get(RECIPE, build)
    _, other = store.get({**RECIPE, "rank": 5}, lambda: {"down": torch.zeros(1, 2, 5)})
    assert digest != other
    assert store.get(RECIPE, never)[1] == digest


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    BasisStore(tmp_path).get(RECIPE, build)
    for path in (tmp_path / "bases").iterdir():
        content = path.read_bytes()
        for at in range(0, len(content), 7):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x91]) + content[at + 1 :])
            with pytest.raises(Corrupt):
                BasisStore(tmp_path).get(RECIPE, never)
        path.write_bytes(content)
    BasisStore(tmp_path).get(RECIPE, never)


def test_a_builder_that_died_before_the_seal_leaves_nothing_that_counts(tmp_path: Path) -> None:
    _, digest = BasisStore(tmp_path).get(RECIPE, build)
    (seal,) = (tmp_path / "bases").glob("*.sha256")
    (kept,) = (tmp_path / "bases").glob("*.safetensors")
    seal.unlink()
    kept.write_bytes(b"half")
    left = kept.with_name(f"{kept.name}.123.part")
    left.write_bytes(b"less than half")
    assert BasisStore(tmp_path).get(RECIPE, build)[1] == digest
    assert not left.exists()
    kept.unlink()
    with pytest.raises(Corrupt, match="no file"):
        BasisStore(tmp_path).get(RECIPE, never)


def test_damage_names_the_file_to_delete_and_deleting_it_mends_it(tmp_path: Path) -> None:
    _, digest = BasisStore(tmp_path).get(RECIPE, build)
    (kept,) = (tmp_path / "bases").glob("*.safetensors")
    (seal,) = (tmp_path / "bases").glob("*.sha256")
    kept.write_bytes(b"half")
    with pytest.raises(Corrupt, match=f"delete {seal}, and it is built anew"):
        BasisStore(tmp_path).get(RECIPE, never)
    seal.unlink()
    assert BasisStore(tmp_path).get(RECIPE, build)[1] == digest


def test_what_is_kept_is_for_this_user_only(tmp_path: Path) -> None:
    BasisStore(tmp_path / "home").get(RECIPE, build)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "bases").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "bases").write_text("a file in its place")
    with pytest.raises(Unavailable, match="the read bases"):
        BasisStore(tmp_path).get(RECIPE, build)
