"""What commands print on."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import unicodedata
from collections.abc import Mapping
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

_PIPED_WIDTH: Final = 240


def out() -> Console:
    """Returns the console of results. What is piped on is not cut to the width of a screen that is not there."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def err() -> Console:
    """Returns the console of what is said beside the results, so that these can be piped on."""
    return Console(stderr=True, highlight=False)


def table(*columns: str, title: str | None = None) -> Table:
    """Returns a plain table; columns that start with # are numbers."""
    made = Table(box=None, title=title, title_justify="left", pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.removeprefix("#"), justify="right" if column.startswith("#") else "left", overflow="fold"
        )
    return made


def print_json(value: object) -> None:
    """Prints what a command found as JSON, for a program: fields under their names, what is no number as null."""
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: object) -> object:
    match value:
        case enum.Enum():
            return value.value
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(name): _plain(part) for name, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def visible(text: str) -> str:
    """Returns a text that cannot move the cursor or change the terminal: control characters are taken out."""
    return "".join(
        character for character in text if character in "\n\t" or not unicodedata.category(character).startswith("C")
    )


def counted(number: int, noun: str) -> str:
    """Returns a number of things as people say it."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def size_text(num_bytes: int) -> str:
    """Returns a number of bytes as people read it."""
    size, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
