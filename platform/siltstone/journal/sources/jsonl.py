"""Reads interactions from JSON lines: the journal's own form, or a simple one that is quick to write.

The simple form is {"user": ..., "text": ...} for a document and {"user": ..., "messages": [{"role": ..., "text": ...}]}
for a conversation ("content" is taken for "text"), both with "id", "tenant" and "occurred_at_ms" where they are known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from siltstone.errors import InvalidInput
from siltstone.journal.admit import decode, encode
from siltstone.journal.sources.source import Skipped, SkipReason, SourceOptions, stable_id
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey, is_valid_id


def read_jsonl(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Reads one interaction per line. Users are named as they are in the file, nothing is hashed.

    An entry without an id gets one from its line and line number: it stays the same while the line keeps its place.
    """
    try:
        stream = path.open("rb")
    except OSError:
        yield Skipped(SkipReason.MALFORMED, path.name)
        return
    with stream:
        for number, line in enumerate(_lines(stream, options.max_entry_bytes), start=1):
            where = f"{path.name}:{number}"
            if line is None:
                yield Skipped(SkipReason.TOO_LARGE, where)
            elif line.strip():
                yield _read_line(line, number, where, options)


def _lines(stream: IO[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yields the lines, None for one that is too long to be held."""
    while line := stream.readline(max_bytes + 1):
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(max_bytes)
        yield None


def _read_line(line: bytes, number: int, where: str, options: SourceOptions) -> Interaction | Skipped:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
        if not isinstance(fields, dict):
            return Skipped(SkipReason.MALFORMED, where)
        interaction = decode(line) if "schema_version" in fields else _from_simple(fields, line, number, options)
        # Also proves that the text can be sent: JSON can hold half of a surrogate pair, UTF-8 cannot.
        encode(interaction)
    except (InvalidInput, ValueError, KeyError, TypeError, RecursionError):
        return Skipped(SkipReason.MALFORMED, where)
    ids = (interaction.id, interaction.owner.tenant, interaction.owner.user)
    return interaction if all(map(is_valid_id, ids)) else Skipped(SkipReason.INVALID_ID, where)


def _from_simple(fields: Mapping[str, Any], line: bytes, number: int, options: SourceOptions) -> Interaction:
    if ("text" in fields) == ("messages" in fields):
        raise ValueError("either text or messages")
    if "text" in fields:
        kind, messages = InteractionKind.DOCUMENT, [Message(Role.USER, _string(fields["text"]))]
    else:
        kind = InteractionKind.CONVERSATION
        messages = [
            Message(Role(turn["role"]), _string(turn["text"] if "text" in turn else turn["content"]))
            for turn in fields["messages"]
        ]
    at_ms = fields.get("occurred_at_ms", options.default_at_ms)
    if not isinstance(at_ms, int):
        raise TypeError("occurred_at_ms")
    return Interaction(
        id=_string(fields["id"]) if "id" in fields else stable_id("line", number, line.strip()),
        owner=UserKey(_string(fields.get("tenant", options.tenant)), _string(fields["user"])),
        kind=kind,
        occurred_at_ms=at_ms,
        messages=tuple(messages),
        consent=options.consent,
    )


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
