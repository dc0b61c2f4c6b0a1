"""A stored memory comes back whole or is refused with what was expected and found."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.errors import Corrupt, InvalidInput, SiltstoneError, SnapshotMismatch
from siltstone.memory.user_memory import BLOB_VERSION, Sleeps, UserMemory, from_blob, to_blob
from siltstone.model.levels import DELTA
from siltstone.values import InteractionKind, UserKey

WORLD = tiny.world(config=replace(tiny.TINY_MEMORY, num_layers=1, rank=1))
HEAD = struct.Struct("<4sHII")


def learned() -> UserMemory:
    said = [
        tiny.interaction("1", "My boat is called Estrela.", "A fine name."),
        tiny.interaction("2", "Where do I live?", "In Porto.", InteractionKind.CORRECTION, correction="In Lisbon."),
    ]
    return tiny.absorb(WORLD.absorber(), (WORLD.empty(), said))[0].next(sequence=3)


MEMORY = learned()
BLOB = to_blob(MEMORY)
NUM_HEADER = HEAD.unpack_from(BLOB)[2]


def read(blob: bytes, owner: UserKey = MEMORY.owner, core: str = tiny.CORE_VERSION) -> UserMemory:
    return from_blob(owner, blob, core, WORLD.shape)


def with_header(**changes: Any) -> bytes:
    """Returns the blob with some fields of its header changed; None leaves a field out."""
    _, _, header_bytes, reservoir_bytes = HEAD.unpack_from(BLOB)
    header = json.loads(BLOB[HEAD.size : HEAD.size + header_bytes]) | changes
    text = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    return HEAD.pack(b"SMEM", BLOB_VERSION, len(text), reservoir_bytes) + text + BLOB[HEAD.size + header_bytes :]


def test_a_memory_comes_back_with_everything_it_had() -> None:
    found = read(BLOB)

    assert to_blob(found) == BLOB
    assert replace(found, numbers=MEMORY.numbers) == MEMORY
    assert torch.equal(found.numbers, MEMORY.numbers)
    assert MEMORY.counters.num_updates[0] > 0
    assert MEMORY.reservoir.entries


VERSION_1 = Path(__file__).with_name("memory_version_1.bin")
"""What `learned` gave when memories knew no sleep, written by the code of that time."""


def test_a_memory_from_before_memories_slept_is_read_and_goes_on() -> None:
    found = read(VERSION_1.read_bytes())

    assert found.slow_N is None
    assert found.sleeps == Sleeps()
    assert found.absorbed_ids == ("1", "2")
    assert found.position_tokens == 108
    assert found.counters.num_updates == [13, 4]
    assert found.reservoir.lines() == ["My boat is called Estrela.", "Where do I live?", "In Lisbon."]
    assert float(found.coefficients().norm()) == pytest.approx(1.5252249240875244)
    written = to_blob(found)
    assert HEAD.unpack_from(written)[1] == BLOB_VERSION
    assert to_blob(read(written)) == written
    assert torch.equal(read(written).numbers, found.numbers)


def test_a_damaged_memory_of_the_old_version_is_refused() -> None:
    old = VERSION_1.read_bytes()

    for damaged in (old[:-4], old + bytes(4), HEAD.pack(b"SMEM", 0, *HEAD.unpack_from(old)[2:]) + old[HEAD.size :]):
        with pytest.raises(Corrupt):
            read(damaged)


SLEPT = MEMORY.next(slow_N=torch.linspace(-1, 1, WORLD.shape.num_coefficients), sleeps=Sleeps((3, 1), (108, 64)))


def test_a_memory_that_has_slept_comes_back_with_its_slow_level() -> None:
    found = read(to_blob(SLEPT))

    assert found.slow_N is not None
    assert SLEPT.slow_N is not None
    assert torch.equal(found.slow_N, SLEPT.slow_N)
    assert found.sleeps == SLEPT.sleeps
    assert to_blob(found) == to_blob(SLEPT)
    torch.testing.assert_close(found.coefficients(), MEMORY.coefficients() + SLEPT.slow_N)
    assert found.num_bytes == MEMORY.num_bytes + 4 * WORLD.shape.num_coefficients


def test_a_memory_that_never_slept_is_hardly_larger_than_before() -> None:
    assert len(BLOB) - len(VERSION_1.read_bytes()) < 128


def test_a_slow_level_that_is_cut_off_or_no_number_is_refused() -> None:
    whole = to_blob(SLEPT)
    for damaged in (whole[:-4], whole[: -4 * WORLD.shape.num_coefficients], whole[:-4] + b"\x00\x00\xc0\x7f"):
        with pytest.raises(Corrupt):
            read(damaged)
    with pytest.raises(InvalidInput):
        to_blob(SLEPT.next(slow_N=torch.full_like(MEMORY.numbers[0, 0], float("inf"))))


@pytest.mark.parametrize("change", [{"sleeps": [1]}, {"slept_at_tokens": [0, -1]}, {"has_slow": 1}, {"sleeps": None}])
def test_a_header_that_tells_no_sleeps_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        read(with_header(**change))


def test_the_card_of_a_memory_that_has_slept_tells_its_slow_level() -> None:
    slow = SLEPT.card(WORLD.config).levels[-1]

    assert [level.name for level in MEMORY.card(WORLD.config).levels] == ["fast", "mid"]
    assert (slow.name, slow.num_updates, slow.open_tokens) == ("slow", 1, 44)
    assert slow.period_tokens == WORLD.config.mid.sleep_tokens
    assert slow.drift == pytest.approx(float(torch.linspace(-1, 1, WORLD.shape.num_coefficients).norm()))


def test_what_was_read_shares_nothing_with_a_buffer_that_can_be_written_to() -> None:
    buffer = bytearray(BLOB)
    found = read(buffer)
    buffer[-4:] = b"\x00\x00\x80\x7f"

    assert torch.equal(found.numbers, MEMORY.numbers)


def test_a_memory_of_another_owner_is_refused() -> None:
    with pytest.raises(SnapshotMismatch, match="office/eve"):
        read(BLOB, owner=UserKey("office", "eve"))


def test_a_memory_learned_under_another_core_is_refused() -> None:
    with pytest.raises(SnapshotMismatch, match="tiny-2"):
        read(BLOB, core="tiny-2")


@pytest.mark.parametrize("change", [{"rank": 2}, {"num_layers": 2}, {"sites": ("down",)}])
def test_a_memory_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotMismatch, match="shape"):
        from_blob(MEMORY.owner, BLOB, tiny.CORE_VERSION, replace(WORLD.shape, **change))


def test_a_memory_of_a_newer_version_is_refused() -> None:
    newer = HEAD.pack(b"SMEM", BLOB_VERSION + 1, *HEAD.unpack_from(BLOB)[2:]) + BLOB[HEAD.size :]

    with pytest.raises(Corrupt, match=f"version {BLOB_VERSION + 1}"):
        read(newer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_neither_read_nor_written(value: float) -> None:
    numbers = MEMORY.numbers.clone()
    numbers[1, DELTA, 5] = value

    with pytest.raises(Corrupt, match="finite"):
        read(BLOB[: -numbers.numel() * 4] + numbers.numpy().tobytes())
    with pytest.raises(InvalidInput, match="finite"):
        to_blob(MEMORY.next(numbers=numbers))


def test_infinities_that_cancel_are_seen() -> None:
    numbers = MEMORY.numbers.clone()
    numbers[0, DELTA, 0], numbers[0, DELTA, 1] = float("inf"), float("-inf")

    with pytest.raises(Corrupt, match="finite"):
        read(BLOB[: -numbers.numel() * 4] + numbers.numpy().tobytes())


def test_what_may_be_written_may_be_read_however_large() -> None:
    large = MEMORY.next(numbers=torch.full_like(MEMORY.numbers, 3e38))

    assert torch.equal(read(to_blob(large)).numbers, large.numbers)


def test_a_truncated_or_lengthened_memory_is_refused_at_every_length() -> None:
    for length in [*range(len(BLOB) - len(MEMORY.numbers.numpy().tobytes()) + 1), len(BLOB) - 4, len(BLOB) - 1]:
        with pytest.raises(Corrupt):
            read(BLOB[:length])
    with pytest.raises(Corrupt):
        read(BLOB + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"num_updates": None},
        {"sequence": None},
        {"num_updates": [1]},
        {"num_updates": [1, 2, 3]},
        {"num_updates": [1.5, 2]},
        {"num_updates": [-1, 2]},
        {"num_updates": 7},
        {"open_tokens": ["1", "2"]},
        {"open_tokens": [True, 2]},
        {"open_surprise": [0.1]},
        {"open_surprise": [float("nan"), 0.0]},
        {"open_surprise": [float("inf"), 0.0]},
        {"open_surprise": [-0.5, 0.0]},
        {"open_surprise": [10**400, 0.0]},
        {"absorbed_ids": "ab"},
        {"absorbed_ids": [1, 2]},
        {"absorbed_ids": ["x"] * 100_000},
        {"sequence": "3"},
        {"sequence": -1},
        {"position_tokens": 1.0},
        {"num_interactions": [2]},
    ],
)
def test_a_header_that_a_memory_could_not_have_is_refused(change: dict[str, Any]) -> None:
    assert to_blob(read(with_header())) == BLOB
    with pytest.raises(Corrupt):
        read(with_header(**change))


def survives(blob: bytes) -> None:
    """A blob is refused with an error of ours, or what it gives can be used."""
    try:
        found = read(blob)
    except SiltstoneError:
        return
    found.card(WORLD.config)
    to_blob(found)
    tiny.absorb(WORLD.absorber(), (found, []))


@settings(max_examples=300)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, HEAD.size + NUM_HEADER + 60), st.integers(0, 7)), min_size=1, max_size=3, unique=True
    )
)
def test_flipped_bits_are_refused_with_an_error_of_ours_or_do_no_harm(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(BLOB)
    for at, bit in flips:
        damaged[at] ^= 1 << bit
    survives(bytes(damaged))


def test_no_single_flipped_bit_of_the_header_gives_another_error() -> None:
    for at in range(HEAD.size + NUM_HEADER):
        for bit in range(8):
            damaged = bytearray(BLOB)
            damaged[at] ^= 1 << bit
            survives(bytes(damaged))


@settings(max_examples=100)
@given(blob=st.binary(max_size=200))
def test_bytes_that_are_no_memory_are_refused(blob: bytes) -> None:
    for data in (blob, BLOB[:4] + blob, BLOB[: HEAD.size] + blob):
        with pytest.raises(SiltstoneError):
            read(data)


def test_a_card_tells_sizes_and_drift_and_no_content() -> None:
    card = MEMORY.card(WORLD.config)

    assert card.position_tokens == MEMORY.position_tokens > 0
    assert [level.period_tokens for level in card.levels] == [8, 24]
    assert card.levels[0].drift == pytest.approx(float(MEMORY.numbers[0, DELTA].norm()))
    assert card.size_bytes == len(BLOB) - HEAD.size - NUM_HEADER
    assert "Estrela" not in repr(card)
