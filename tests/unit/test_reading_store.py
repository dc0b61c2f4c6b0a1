"""What a core has said is kept as it was said, or not taken for it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from siltstone.adapters.reading_store import ReadingStore
from siltstone.errors import InvalidInput, Unavailable

CORE, OTHER, QUESTION = "a" * 64, "b" * 64, "c" * 64
NUMBERS = (0.1, -1 / 3, 1e-17, 5.0)


def test_what_was_said_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    ReadingStore(tmp_path).put(CORE, QUESTION, NUMBERS)
    store = ReadingStore(tmp_path)
    assert store.get(CORE, QUESTION) == NUMBERS
    assert store.get(OTHER, QUESTION) is None
    assert store.get(CORE, "d" * 64) is None
    store.put(CORE, QUESTION, (math.nan,))
    found = store.get(CORE, QUESTION)
    assert found is not None
    assert math.isnan(found[0])


def test_what_is_not_as_it_was_written_is_asked_anew(tmp_path: Path) -> None:
    store = ReadingStore(tmp_path)
    store.put(CORE, QUESTION, NUMBERS)
    path = tmp_path / "readings" / CORE / f"{QUESTION}.json"
    whole = path.read_bytes()
    changed = json.loads(whole)
    changed["sealed"]["numbers"][0] = 9.0
    for damage in (whole[:-5], b"", b"[]", b"\xff", json.dumps(changed).encode(), b"[" * 100_000):
        path.write_bytes(damage)
        assert store.get(CORE, QUESTION) is None
    path.write_bytes(whole)
    assert store.get(CORE, QUESTION) == NUMBERS
    # Another core's words under this one's name.
    (tmp_path / "readings" / OTHER).mkdir()
    (tmp_path / "readings" / OTHER / path.name).write_bytes(whole)
    assert store.get(OTHER, QUESTION) is None


def test_only_the_cores_at_hand_are_kept(tmp_path: Path) -> None:
    store = ReadingStore(tmp_path)
    store.keep_only([CORE])
    for core in (CORE, OTHER):
        store.put(core, QUESTION, NUMBERS)
    store.keep_only([CORE])
    assert store.get(CORE, QUESTION) == NUMBERS
    assert store.get(OTHER, QUESTION) is None


def test_a_name_that_is_no_digest_and_a_folder_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        ReadingStore(tmp_path).get("../" + CORE, QUESTION)
    (tmp_path / "readings").write_text("in the way")
    with pytest.raises(Unavailable):
        ReadingStore(tmp_path).put(CORE, QUESTION, NUMBERS)
    assert ReadingStore(tmp_path).get(CORE, QUESTION) is None
