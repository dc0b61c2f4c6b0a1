"""One user's memory: levels, counters, reservoir; and its one contiguous buffer."""

from __future__ import annotations

import json
import math
import struct
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, SnapshotMismatch
from siltstone.memory import reservoir as reservoirs
from siltstone.memory.reservoir import Reservoir
from siltstone.model.config import CoreConfig
from siltstone.model.deltas import DeltaShape, Site
from siltstone.model.levels import DELTA, LevelConfig, LevelCounters, coefficients
from siltstone.values import LevelCard, MemoryCard, UserKey

_MAGIC: Final = b"SMEM"
BLOB_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sHII")
_ALIGNMENT: Final = 16
NUM_REMEMBERED_IDS: Final = 512
"""Interaction ids a memory remembers having absorbed. The embedded journal refuses a repeat for ever; a journal that
keeps only a window (a broker) relies on this one."""

LEVEL_NAMES: Final = ("fast", "mid")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """The shape of a user's memory and how its levels learn."""

    num_layers: int = 12
    """Layers bent, counted from the last; a core with fewer is bent in all."""
    sites: tuple[Site, ...] = ("gate_up", "down")
    """Maps of an MLP that are bent."""
    rank: int = 32
    """Directions of a map's input that a delta reads; a narrower core takes its width."""
    basis_damping: float = 0.1
    """Share of the mean eigenvalue added when the basis is whitened."""
    guarded_directions: int = 128
    """Output directions of a bent map in which neutral text is spared; 0 guards none."""
    guard_damping: float = 0.1
    """Share of the mean eigenvalue added to the guard's."""
    guard_seed: int = 0
    """Seed of the words drawn from the core to see what its outputs depend on."""
    gate_nats: float = 3.0
    """Negative log-likelihood at which a token counts half as surprising, nats."""
    fast: LevelConfig = field(default_factory=lambda: LevelConfig(period_tokens=16, rate=0.35, retention=0.999))
    """The level that moves first, and lets go of what is not said again."""
    mid: LevelConfig = field(default_factory=lambda: LevelConfig(period_tokens=64, rate=0.6))
    """The level that moves once over several things said, and keeps them."""

    def __post_init__(self) -> None:
        if self.mid.period_tokens % self.fast.period_tokens:
            raise ConfigInvalid("memory", "mid.period_tokens: expected a multiple of fast.period_tokens")
        if not self.gate_nats >= 0 or not self.basis_damping > 0:
            raise ConfigInvalid("memory", "expected gate_nats >= 0 and basis_damping > 0")

    @property
    def levels(self) -> tuple[LevelConfig, ...]:
        """The levels, fastest first."""
        return (self.fast, self.mid)

    def shape_for(self, core: CoreConfig) -> DeltaShape:
        """Returns the shape of a memory over a core."""
        rank = min(self.rank, core.d_model, core.d_mlp)
        has_momentum = any(level.momentum for level in self.levels)
        return DeltaShape(core, min(self.num_layers, core.num_layers), self.sites, rank, has_momentum)


@dataclass(frozen=True, slots=True)
class UserMemory:
    """A user's whole state. A value: absorbing makes a new one, the tensor of an old one is never written to.

    Shapes: `numbers` [L, S, N] float32 on the CPU (delta, open gradient and maybe momentum of each level).
    """

    owner: UserKey
    core: str
    sequence: int
    position_tokens: int
    num_interactions: int
    counters: LevelCounters
    absorbed_ids: tuple[str, ...]
    reservoir: Reservoir
    numbers: Tensor

    @staticmethod
    def empty(owner: UserKey, core: str, shape: DeltaShape) -> UserMemory:
        """Returns the memory of a user never met: exactly the core."""
        levels = len(LEVEL_NAMES)
        numbers = torch.zeros(levels, shape.num_buffers, shape.num_coefficients)
        return UserMemory(owner, core, 0, 0, 0, LevelCounters.zero(levels), (), Reservoir(), numbers)

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory, the reservoir's text left out."""
        return self.numbers.numel() * self.numbers.element_size()

    def coefficients(self) -> Tensor:
        """Returns what is applied to the core: [N]."""
        return coefficients(self.numbers[None])[0]

    def card(self, config: MemoryConfig) -> MemoryCard:
        """Returns what may be told about this memory. A level's drift is the norm of its delta."""
        levels = tuple(
            LevelCard(
                name,
                level.period_tokens,
                self.counters.num_updates[i],
                self.counters.open_tokens[i],
                float(self.numbers[i, DELTA].norm()),
            )
            for i, (name, level) in enumerate(zip(LEVEL_NAMES, config.levels, strict=True))
        )
        return MemoryCard(
            self.owner,
            self.core,
            self.sequence,
            self.position_tokens,
            self.num_interactions,
            self.num_bytes + len(reservoirs.to_bytes(self.reservoir)),
            levels,
            len(self.reservoir.entries),
        )

    def moved(self, core: str, correction: Tensor) -> UserMemory:
        """Returns this memory on another core, its slower level corrected by `correction` [N]."""
        numbers = self.numbers.clone()
        numbers[-1, DELTA] += correction
        return self.next(core=core, sequence=self.sequence + 1, numbers=numbers)

    def next(self, **changes: Any) -> UserMemory:
        """Returns this memory with some fields changed."""
        return replace(self, **changes)


def to_blob(memory: UserMemory) -> bytes:
    """Writes a memory as one buffer: equal memories give equal bytes.

    Layout: magic, version, length of the header and of the reservoir; header (JSON, filled up with spaces so that the
    numbers begin at a multiple of 16 bytes); reservoir; numbers (float32, little endian).
    Raises: InvalidInput when a number is not finite: such a memory must never be kept.
    """
    if not is_finite(memory.numbers):
        raise InvalidInput(f"memory of {memory.owner}", "finite numbers", "NaN or infinity")
    header = json.dumps(
        {
            "tenant": memory.owner.tenant,
            "user": memory.owner.user,
            "core": memory.core,
            "sequence": memory.sequence,
            "position_tokens": memory.position_tokens,
            "num_interactions": memory.num_interactions,
            "num_updates": memory.counters.num_updates,
            "open_tokens": memory.counters.open_tokens,
            "open_surprise": memory.counters.open_surprise,
            "absorbed_ids": memory.absorbed_ids,
            "shape": list(memory.numbers.shape),
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    kept = reservoirs.to_bytes(memory.reservoir)
    # Spaces, which JSON does not mind, put the numbers where they can be used without moving them.
    header += b" " * (-(_HEAD.size + len(header) + len(kept)) % _ALIGNMENT)
    numbers = memory.numbers.contiguous().numpy().astype("<f4", copy=False).tobytes()
    return _HEAD.pack(_MAGIC, BLOB_VERSION, len(header), len(kept)) + header + kept + numbers


def from_blob(owner: UserKey, blob: bytes, core: str, shape: DeltaShape) -> UserMemory:
    """Reads what `to_blob` wrote, for a core and shape.

    Raises: Corrupt when the bytes are not a whole memory, are of a newer version, or hold a number that is not finite;
    SnapshotMismatch when it is another user's, or was learned under another core or shape.
    """
    what = f"memory of {owner}"
    if len(blob) < _HEAD.size:
        raise Corrupt(what, f"at least {_HEAD.size} bytes", f"{len(blob)} bytes")
    magic, version, header_bytes, reservoir_bytes = _HEAD.unpack_from(blob)
    if magic != _MAGIC or version != BLOB_VERSION:
        raise Corrupt(what, f"{_MAGIC!r} version {BLOB_VERSION}", f"{magic!r} version {version}")
    at = _HEAD.size
    try:
        header = json.loads(blob[at : at + header_bytes])
        at += header_bytes
        found_owner = UserKey(header["tenant"], header["user"])
        counters = _read_counters(header)
        kept = reservoirs.from_bytes(blob[at : at + reservoir_bytes])
        expected = [len(LEVEL_NAMES), shape.num_buffers, shape.num_coefficients]
        if found_owner != owner:
            raise SnapshotMismatch(str(owner), str(owner), str(found_owner))
        if header["core"] != core:
            raise SnapshotMismatch(str(owner), f"core {core}", f"core {header['core']}")
        if header["shape"] != expected:
            raise SnapshotMismatch(str(owner), f"shape {expected}", f"shape {header['shape']}")
        at += reservoir_bytes
        num_numbers = expected[0] * expected[1] * expected[2]
        if len(blob) - at != 4 * num_numbers:
            raise Corrupt(what, f"{4 * num_numbers} bytes of numbers", f"{len(blob) - at} bytes")
        numbers = _numbers_in(blob, at).view(expected)
        memory = UserMemory(
            owner,
            core,
            _read_count(header["sequence"]),
            _read_count(header["position_tokens"]),
            _read_count(header["num_interactions"]),
            counters,
            _read_ids(header["absorbed_ids"]),
            kept,
            numbers,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Corrupt(what, "a header of a memory", f"{type(error).__name__}: {error}") from error
    if not is_finite(numbers):
        raise Corrupt(what, "finite numbers", "NaN or infinity")
    return memory


def _numbers_in(blob: bytes, start: int) -> Tensor:
    """Returns the numbers that a blob holds from `start` on.

    They stay where they are, since nobody writes to a memory's numbers; unless somebody could write to the buffer.
    """
    if start % _ALIGNMENT or not isinstance(blob, bytes):
        return torch.frombuffer(bytearray(memoryview(blob)[start:]), dtype=torch.float32)
    return torch.frombuffer(blob, dtype=torch.float32, offset=start)


def _silence_torch_about_buffers() -> None:
    """Lets torch say once, unheard, that a buffer may not be written to: it says so of the first one of a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.frombuffer(bytes(4), dtype=torch.float32)


_silence_torch_about_buffers()


def is_finite(numbers: Tensor) -> bool:
    """Says whether every number is finite."""
    # The sum is the quick question: only when it is not finite itself are the numbers looked at one by one.
    return bool(torch.isfinite(numbers.sum())) or bool(torch.isfinite(numbers).all())


def _read_count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a count, found {value!r}")
    return value


def _read_ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > NUM_REMEMBERED_IDS or not all(isinstance(id_, str) for id_ in value):
        raise ValueError(f"expected at most {NUM_REMEMBERED_IDS} ids, found something else")
    return tuple(value)


def _read_counters(header: dict[str, Any]) -> LevelCounters:
    counters = LevelCounters(
        [_read_count(value) for value in header["num_updates"]],
        [_read_count(value) for value in header["open_tokens"]],
        [float(value) for value in header["open_surprise"]],
    )
    sizes = {len(counters.num_updates), len(counters.open_tokens), len(counters.open_surprise)}
    if sizes != {len(LEVEL_NAMES)} or not all(0 <= value < math.inf for value in counters.open_surprise):
        raise ValueError(f"expected counters of {len(LEVEL_NAMES)} levels, found {counters}")
    return counters
