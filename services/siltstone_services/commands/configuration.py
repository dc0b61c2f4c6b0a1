"""Loads and shows the configuration."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

import typer

from siltstone.config import SiltstoneConfig, config_schema, load_config
from siltstone_services.cli.options import Settings


def load(settings: Settings) -> SiltstoneConfig:
    """Returns the configuration that holds for a command.

    Raises: ConfigInvalid.
    """
    return load_config(settings.config, settings.overrides())


def show(settings: Settings) -> None:
    """Prints the configuration as TOML."""
    typer.echo(to_toml(load(settings)), nl=False)


def show_schema() -> None:
    """Prints the JSON schema."""
    typer.echo(json.dumps(config_schema(), indent=2))


def to_toml(config: Any, path: str = "") -> str:
    """Writes a config dataclass as TOML: values first, then a table for every part. None has no form in it."""
    values, tables = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            name = f"{path}{field.name}"
            tables.append(f"\n[{name}]\n{to_toml(value, f'{name}.')}")
        elif value is not None:
            values.append(f"{field.name} = {_inline(value)}\n")
    return "".join(values + tables)


def _inline(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _inline({name: part for name, part in told.items() if part is not None})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_inline(part)}" for name, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value.value if isinstance(value, enum.Enum) else value)
