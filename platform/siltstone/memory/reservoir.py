"""A user's replay reservoir: the lines they wrote that are worth keeping, few enough to search and to carry along."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput
from siltstone.values import Interaction, InteractionKind, Role

_MAGIC: Final = b"SRSV"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sHI")
_ENTRY: Final = struct.Struct("<HqdI")
_LINE: Final = struct.Struct("<I")
_MAX_ID_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class ReservoirLimits:
    """How much of a user is kept word for word."""

    max_entries: int = 256
    """Entries, one for each interaction."""
    max_bytes: int = 65_536
    """Bytes of the whole reservoir as `to_bytes` writes it."""
    max_entry_bytes: int = 8_192
    """Bytes of one entry; of a longer text the beginning is kept, so that no document pushes everything else out."""
    max_line_chars: int = 400
    """Characters of one line; a longer one is broken at a space."""

    def __post_init__(self) -> None:
        if self.max_entries < 1 or self.max_line_chars < 1:
            raise ConfigInvalid("reservoir", "max_entries and max_line_chars must be at least 1")
        if not _ENTRY.size + _MAX_ID_BYTES <= self.max_entry_bytes <= self.max_bytes - _HEADER.size:
            raise ConfigInvalid(
                "reservoir",
                f"max_entry_bytes must be {_ENTRY.size + _MAX_ID_BYTES} to max_bytes - {_HEADER.size}, "
                f"not {self.max_entry_bytes}",
            )


@dataclass(frozen=True, slots=True)
class ReservoirEntry:
    """What a user wrote in one interaction, and how little the model had expected it."""

    interaction_id: str
    lines: tuple[str, ...]
    time_ms: int
    surprise: float


@dataclass(frozen=True, slots=True)
class Reservoir:
    """The entries, in the order they came."""

    entries: tuple[ReservoirEntry, ...] = ()

    def lines(self) -> list[str]:
        """Returns every line kept, oldest first."""
        return [line for entry in self.entries for line in entry.lines]


def entry_of(interaction: Interaction, surprise: float, limits: ReservoirLimits) -> ReservoirEntry:
    """Makes the entry of an interaction: the user's own words, and the correction of an answer with what was asked.

    A thumb has no lines: the exchange it is about was an interaction of its own. Nor have a model's answers: what is
    searched later is what the user said, not what a model made of it.
    """
    texts: list[str] = []
    if interaction.kind is InteractionKind.CORRECTION:
        texts += [message.text for message in interaction.messages if message.role is Role.USER][-1:]
        texts.append(interaction.correction)
    elif interaction.kind is InteractionKind.DOCUMENT:
        texts += [message.text for message in interaction.messages]
    elif interaction.kind is InteractionKind.CONVERSATION:
        texts += [message.text for message in interaction.messages if message.role is Role.USER]
    lines = tuple(line for text in texts for line in _split(text, limits.max_line_chars))
    return ReservoirEntry(interaction.id, lines, interaction.occurred_at_ms, surprise)


def add(reservoir: Reservoir, entry: ReservoirEntry, limits: ReservoirLimits) -> Reservoir:
    """Returns the reservoir with `entry` as its newest, within `limits`.

    Over a limit, the least surprising entry of the older half goes, the oldest of equals first: what is new has its
    time, what the model has long expected needs no keeping. An entry without lines changes nothing; one with the id of
    an older entry takes its place as the newest.

    Raises: InvalidInput when the surprise is not finite or the id too long to write.
    """
    if not math.isfinite(entry.surprise):
        raise InvalidInput("surprise", "a finite number", str(entry.surprise))
    if len(_encode(entry.interaction_id)) > _MAX_ID_BYTES:
        raise InvalidInput("interaction_id", f"at most {_MAX_ID_BYTES} bytes", str(len(_encode(entry.interaction_id))))
    entry = _cut(entry, limits.max_entry_bytes)
    if not entry.lines:
        return reservoir
    entries = [*forget_interaction(reservoir, entry.interaction_id).entries, entry]
    sizes = [_num_bytes(kept) for kept in entries]
    num_bytes = _HEADER.size + sum(sizes)
    while len(entries) > limits.max_entries or num_bytes > limits.max_bytes:
        leaver = min(range(max(1, len(entries) // 2)), key=lambda index: (entries[index].surprise, index))
        num_bytes -= sizes.pop(leaver)
        del entries[leaver]
    return Reservoir(tuple(entries))


def forget_interaction(reservoir: Reservoir, interaction_id: str) -> Reservoir:
    """Returns the reservoir without what came from one interaction."""
    return Reservoir(tuple(entry for entry in reservoir.entries if entry.interaction_id != interaction_id))


def to_bytes(reservoir: Reservoir) -> bytes:
    """Writes a reservoir: equal reservoirs give equal bytes."""
    parts = [_HEADER.pack(_MAGIC, _VERSION, len(reservoir.entries))]
    for entry in reservoir.entries:
        name = _encode(entry.interaction_id)
        parts += [_ENTRY.pack(len(name), entry.time_ms, entry.surprise, len(entry.lines)), name]
        for line in entry.lines:
            data = _encode(line)
            parts += [_LINE.pack(len(data)), data]
    return b"".join(parts)


def from_bytes(data: bytes) -> Reservoir:
    """Reads what `to_bytes` wrote.

    Raises: Corrupt when it is anything else.
    """
    reader = _Reader(data)
    magic, version, num_entries = _HEADER.unpack(reader.take(_HEADER.size))
    if magic != _MAGIC or version != _VERSION:
        raise Corrupt("reservoir", f"{_MAGIC!r} version {_VERSION}", f"{magic!r} version {version}")
    entries = []
    for _ in range(num_entries):
        name_bytes, time_ms, surprise, num_lines = _ENTRY.unpack(reader.take(_ENTRY.size))
        name = reader.take_text(name_bytes)
        lines = tuple(reader.take_text(_LINE.unpack(reader.take(_LINE.size))[0]) for _ in range(num_lines))
        if not math.isfinite(surprise):
            raise Corrupt("reservoir", "a finite surprise", str(surprise))
        entries.append(ReservoirEntry(name, lines, time_ms, surprise))
    if reader.position != len(data):
        raise Corrupt("reservoir", f"{reader.position} bytes", f"{len(data)} bytes")
    return Reservoir(tuple(entries))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        taken = self._data[self.position : self.position + num_bytes]
        if len(taken) != num_bytes:
            raise Corrupt("reservoir", f"{num_bytes} bytes at {self.position}", f"{len(taken)} bytes")
        self.position += num_bytes
        return taken

    def take_text(self, num_bytes: int) -> str:
        try:
            return self.take(num_bytes).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise Corrupt("reservoir", f"UTF-8 text before {self.position}", error.reason) from error


def _encode(text: str) -> bytes:
    # Half a surrogate pair is kept as it is: whether a text is fit to be learned was decided at admission.
    return text.encode("utf-8", "surrogatepass")


def _num_bytes(entry: ReservoirEntry) -> int:
    return (
        _ENTRY.size + len(_encode(entry.interaction_id)) + sum(_LINE.size + len(_encode(line)) for line in entry.lines)
    )


def _cut(entry: ReservoirEntry, max_bytes: int) -> ReservoirEntry:
    """Returns the entry with as many of its first lines as `max_bytes` holds."""
    room = max_bytes - _ENTRY.size - len(_encode(entry.interaction_id))
    kept: list[str] = []
    for line in entry.lines:
        room -= _LINE.size + len(_encode(line))
        if room < 0:
            break
        kept.append(line)
    return ReservoirEntry(entry.interaction_id, tuple(kept), entry.time_ms, entry.surprise)


def _split(text: str, max_chars: int) -> Iterator[str]:
    for line in text.splitlines():
        rest = line.strip()
        while len(rest) > max_chars:
            # A break before the middle would leave scraps; a word that long is cut.
            at = rest.rfind(" ", max_chars // 2, max_chars + 1)
            at = at if at > 0 else max_chars
            yield rest[:at].rstrip()
            rest = rest[at:].lstrip()
        if rest:
            yield rest
