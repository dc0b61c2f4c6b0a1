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
BLOB_VERSION: Final = 2
_OLDEST_VERSION: Final = 1
"""Memories of version 1 know no sleep. They are read as they are, and written anew with what is learned next."""
_HEAD: Final = struct.Struct("<4sHII")
_ALIGNMENT: Final = 16
NUM_REMEMBERED_IDS: Final = 512
"""Interaction ids a memory remembers having absorbed. The embedded journal refuses a repeat for ever; a journal that
keeps only a window (a broker) relies on this one."""

LEVEL_NAMES: Final = ("fast", "mid")
SLOW: Final = "slow"
"""The name of what a memory's levels are consolidated into at last: the user's own expert beside the core."""


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
    fast: LevelConfig = field(
        default_factory=lambda: LevelConfig(period_tokens=16, rate=0.35, retention=0.999, sleep_tokens=512)
    )
    """The level that moves first, and lets go of what is not said again."""
    mid: LevelConfig = field(default_factory=lambda: LevelConfig(period_tokens=64, rate=0.6, sleep_tokens=1024))
    """The level that moves once over several things said, and keeps them."""
    slow_max_norm: float = 90.0
    """Bound on the Frobenius norm of what sleep puts beside the core."""

    def __post_init__(self) -> None:
        if self.mid.period_tokens % self.fast.period_tokens:
            raise ConfigInvalid("memory", "mid.period_tokens: expected a multiple of fast.period_tokens")
        if self.mid.sleep_tokens < self.fast.sleep_tokens:
            raise ConfigInvalid("memory", "mid.sleep_tokens: expected at least fast.sleep_tokens")
        if not self.slow_max_norm > 0:
            raise ConfigInvalid("memory", f"slow_max_norm: expected above 0, found {self.slow_max_norm}")
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
class Sleeps:
    """What became of a memory's levels in its sleeps, one entry a level."""

    counts: tuple[int, ...] = (0,) * len(LEVEL_NAMES)
    """Sleeps that emptied the level."""
    at_tokens: tuple[int, ...] = (0,) * len(LEVEL_NAMES)
    """Where in the user's own tokens the last of them was."""


@dataclass(frozen=True, slots=True)
class UserMemory:
    """A user's whole state. A value: absorbing makes a new one, the tensor of an old one is never written to.

    Shapes: `numbers` [L, S, N] float32 on the CPU (delta, open gradient and maybe momentum of each level); `slow_N`
    [N], None until a sleep has put something there.
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
    slow_N: Tensor | None = None
    sleeps: Sleeps = field(default_factory=Sleeps)

    @staticmethod
    def empty(owner: UserKey, core: str, shape: DeltaShape) -> UserMemory:
        """Returns the memory of a user never met: exactly the core."""
        levels = len(LEVEL_NAMES)
        numbers = torch.zeros(levels, shape.num_buffers, shape.num_coefficients)
        return UserMemory(owner, core, 0, 0, 0, LevelCounters.zero(levels), (), Reservoir(), numbers)

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory, the reservoir's text left out."""
        return sum(part.numel() * part.element_size() for part in (self.numbers, self.slow_N) if part is not None)

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return is_finite(self.numbers) and (self.slow_N is None or is_finite(self.slow_N))

    def coefficients(self) -> Tensor:
        """Returns what is applied to the core: [N]."""
        total_N = coefficients(self.numbers[None])[0]
        return total_N if self.slow_N is None else total_N.add_(self.slow_N)

    def card(self, config: MemoryConfig) -> MemoryCard:
        """Returns what may be told about this memory. A level's drift is the norm of its delta.

        The slow level is told of once there is one: it moves when the slowest of the others sleeps.
        """
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
        if self.slow_N is not None:
            since_tokens = self.position_tokens - self.sleeps.at_tokens[-1]
            drift = float(self.slow_N.norm())
            levels += (LevelCard(SLOW, config.mid.sleep_tokens, self.sleeps.counts[-1], since_tokens, drift),)
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
    numbers begin at a multiple of 16 bytes); reservoir; numbers (float32, little endian), the slow level's last, where
    there is one.
    Raises: InvalidInput when a number is not finite: such a memory must never be kept.
    """
    if not memory.is_finite:
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
            "sleeps": memory.sleeps.counts,
            "slept_at_tokens": memory.sleeps.at_tokens,
            "has_slow": memory.slow_N is not None,
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    kept = reservoirs.to_bytes(memory.reservoir)
    # Spaces, which JSON does not mind, put the numbers where they can be used without moving them.
    header += b" " * (-(_HEAD.size + len(header) + len(kept)) % _ALIGNMENT)
    numbers = [part.contiguous().numpy().astype("<f4", copy=False).tobytes() for part in _parts(memory)]
    return b"".join([_HEAD.pack(_MAGIC, BLOB_VERSION, len(header), len(kept)), header, kept, *numbers])


def _parts(memory: UserMemory) -> list[Tensor]:
    return [memory.numbers] if memory.slow_N is None else [memory.numbers, memory.slow_N]


def from_blob(owner: UserKey, blob: bytes, core: str, shape: DeltaShape) -> UserMemory:
    """Reads what `to_blob` wrote, for a core and shape.

    Raises: Corrupt when the bytes are not a whole memory, are of a newer version, or hold a number that is not finite;
    SnapshotMismatch when it is another user's, or was learned under another core or shape.
    """
    what = f"memory of {owner}"
    if len(blob) < _HEAD.size:
        raise Corrupt(what, f"at least {_HEAD.size} bytes", f"{len(blob)} bytes")
    magic, version, header_bytes, reservoir_bytes = _HEAD.unpack_from(blob)
    if magic != _MAGIC or not _OLDEST_VERSION <= version <= BLOB_VERSION:
        expected_version = f"{_MAGIC!r} version {_OLDEST_VERSION} to {BLOB_VERSION}"
        raise Corrupt(what, expected_version, f"{magic!r} version {version}")
    at = _HEAD.size
    try:
        header = json.loads(blob[at : at + header_bytes])
        at += header_bytes
        found_owner = UserKey(header["tenant"], header["user"])
        counters = _read_counters(header)
        sleeps, has_slow = (Sleeps(), False) if version < 2 else _read_sleeps(header)
        kept = reservoirs.from_bytes(blob[at : at + reservoir_bytes])
        expected = [len(LEVEL_NAMES), shape.num_buffers, shape.num_coefficients]
        if found_owner != owner:
            raise SnapshotMismatch(str(owner), str(owner), str(found_owner))
        if header["core"] != core:
            raise SnapshotMismatch(str(owner), f"core {core}", f"core {header['core']}")
        if header["shape"] != expected:
            raise SnapshotMismatch(str(owner), f"shape {expected}", f"shape {header['shape']}")
        at += reservoir_bytes
        num_levels = expected[0] * expected[1] * expected[2]
        num_numbers = num_levels + has_slow * shape.num_coefficients
        if len(blob) - at != 4 * num_numbers:
            raise Corrupt(what, f"{4 * num_numbers} bytes of numbers", f"{len(blob) - at} bytes")
        numbers = _numbers_in(blob, at)
        memory = UserMemory(
            owner,
            core,
            _read_count(header["sequence"]),
            _read_count(header["position_tokens"]),
            _read_count(header["num_interactions"]),
            counters,
            _read_ids(header["absorbed_ids"]),
            kept,
            numbers[:num_levels].view(expected),
            numbers[num_levels:] if has_slow else None,
            sleeps,
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


def _read_sleeps(header: dict[str, Any]) -> tuple[Sleeps, bool]:
    """Returns the sleeps that a header tells of, and whether a slow level follows the others."""
    counts = tuple(_read_count(value) for value in header["sleeps"])
    at_tokens = tuple(_read_count(value) for value in header["slept_at_tokens"])
    if {len(counts), len(at_tokens)} != {len(LEVEL_NAMES)} or type(header["has_slow"]) is not bool:
        raise ValueError(f"expected the sleeps of {len(LEVEL_NAMES)} levels, found {counts}, {at_tokens}")
    return Sleeps(counts, at_tokens), header["has_slow"]


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
