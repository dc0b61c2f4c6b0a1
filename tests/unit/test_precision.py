"""The core computes in what was asked for, and in bfloat16 by itself only where that is faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siltstone_services.precision import dtype_for


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512f avx512_bf16", torch.bfloat16), ("fpu amx_bf16", torch.bfloat16), ("fpu avx2", torch.float32)],
)
def test_auto_goes_by_what_the_processor_says(tmp_path: Path, flags: str, expected: torch.dtype) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: some\nflags\t\t: {flags}\n\nflags\t: other\n")

    assert dtype_for("auto", "cpu", tmp_path / "cpuinfo") is expected


def test_a_processor_that_says_nothing_computes_in_float32(tmp_path: Path) -> None:
    assert dtype_for("auto", "cpu", tmp_path / "none") is torch.float32


def test_what_is_asked_for_is_taken_whatever_the_processor_says(tmp_path: Path) -> None:
    assert dtype_for("bfloat16", "cpu", tmp_path / "none") is torch.bfloat16
    assert dtype_for("float32", "cpu", tmp_path / "none") is torch.float32
