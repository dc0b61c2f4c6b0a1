"""Readers of other people's data: lazy, in bounded memory, never stopped half way by a damaged entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from siltstone.errors import InvalidInput, NotFound
from siltstone.journal.sources.chatgpt_export import read_chatgpt_export
from siltstone.journal.sources.irc import read_irc
from siltstone.journal.sources.jsonl import read_jsonl
from siltstone.journal.sources.mbox import read_mbox
from siltstone.journal.sources.source import Skipped, SkipReason, SourceOptions
from siltstone.values import Interaction

__all__ = ["SOURCES", "SkipReason", "Skipped", "SourceOptions", "open_source"]

SOURCES: Final[Mapping[str, Callable[[Path, SourceOptions], Iterator[Interaction | Skipped]]]] = MappingProxyType(
    {"jsonl": read_jsonl, "irc": read_irc, "mbox": read_mbox, "chatgpt-export": read_chatgpt_export}
)
"""The reader of each kind of source, by the name it is asked for."""


def open_source(kind: str, path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Returns the interactions in `path` one by one, and a `Skipped` for each piece that gave none.

    Promises: what cannot be used is checked here; the iterator itself raises nothing, whatever the data. Reading the
    same data twice gives the same ids.
    Raises: InvalidInput for an unknown kind or unusable options. NotFound when there is nothing at `path`.
    """
    if kind not in SOURCES:
        raise InvalidInput("kind", "one of " + ", ".join(SOURCES), kind[:40])
    if not path.exists():
        raise NotFound("file", str(path))
    return SOURCES[kind](path, options)
