"""Options that several commands share."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from siltstone.errors import ConfigInvalid

MAX_NUMBER: Final = (1 << 63) - 1
"""The largest number that a request can carry."""


MAX_SHARDS: Final = (1 << 31) - 1
"""The largest number of shards that a request can carry."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the configuration comes from, and what of it was set on the command line."""

    config: Path | None
    home: Path | None
    values: tuple[str, ...] = ()

    def overrides(self, **more: Any) -> dict[str, Any]:
        """Returns what was set, by dotted name, with `more` (`__` for the dot) where it is not None.

        Raises: ConfigInvalid for a --set without a name and a value.
        """
        found: dict[str, Any] = {} if self.home is None else {"home": str(self.home)}
        for text in self.values:
            name, equals, value = text.partition("=")
            if not equals or not name.strip():
                raise ConfigInvalid("--set", f"expected NAME=VALUE, found {text!r}")
            found[name.strip()] = _value(value)
        return found | {name.replace("__", "."): value for name, value in more.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Reach:
    """How a command finds its server."""

    settings: Settings
    address: str | None
    is_embedded: bool


class Recall(StrEnum):
    """What an answer may draw on."""

    WEIGHTS = "weights"
    TEXT = "text"
    BOTH = "both"


class Format(StrEnum):
    """How a command prints what it found."""

    TEXT = "text"
    JSON = "json"


UserOption = Annotated[str, typer.Option("--user", "-u", envvar="SILTSTONE_USER", help="The user.")]
TenantOption = Annotated[str, typer.Option(envvar="SILTSTONE_TENANT", help="The tenant of the user.")]
AddressOption = Annotated[
    str | None, typer.Option(envvar="SILTSTONE_ADDRESS", help="Server (default: the one that runs on the home).")
]
EmbeddedOption = Annotated[bool, typer.Option("--embedded", help="Run a server in this process, for this command.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is absorbed.")]
ShareOption = Annotated[bool, typer.Option("--share", help="A later sleep may consolidate it into the shared core.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Print it for people, or as JSON for programs.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Minutes at most.")]


def _value(text: str) -> Any:
    """Reads a value as TOML; what is no TOML is a text, so that quotes may be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
