"""The public surface: commands, gRPC interface, configuration. `make surface` records it after a change on purpose."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from siltstone import config
from siltstone.proto import v1
from siltstone_services import cli

RECORDED = Path(__file__).parent / "public_surface.json"
FIELD_TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def describe_command(command: Any, path: str) -> dict[str, list[str]]:
    """Returns the parameters of a click command and of all commands below it, by the words that call it."""
    described = {path: sorted("/".join(p.opts) + ("!" if p.required else "") for p in command.params)}
    for name, child in getattr(command, "commands", {}).items():
        described |= describe_command(child, f"{path} {name}")
    return described


def _field_type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return named.full_name if named else FIELD_TYPES[field.type]


def _describe_message(message: Descriptor) -> dict[str, list[str]]:
    lines = [
        f"{field.number} {field.name}: {'repeated ' if field.is_repeated else ''}{_field_type(field)}"
        for field in message.fields
    ]
    described = {message.full_name: lines}
    for nested in message.nested_types:
        described |= _describe_message(nested)
    for enum in message.enum_types:
        described[enum.full_name] = [f"{value.number} {value.name}" for value in enum.values]
    return described


def describe_proto(file: FileDescriptor) -> dict[str, list[str]]:
    """Returns the methods, fields and enum values that a .proto file declares, by full name."""
    described: dict[str, list[str]] = {}
    for service in file.services_by_name.values():
        described[service.full_name] = [
            f"{method.name}: {'stream ' if method.client_streaming else ''}{method.input_type.full_name}"
            f" -> {'stream ' if method.server_streaming else ''}{method.output_type.full_name}"
            for method in service.methods
        ]
    for message in file.message_types_by_name.values():
        described |= _describe_message(message)
    for enum in file.enum_types_by_name.values():
        described[enum.full_name] = [f"{value.number} {value.name}" for value in enum.values]
    return described


def describe_config(config: type, path: str) -> dict[str, str]:
    """Returns the type and default of every field of a config dataclass and of the configs in it, by dotted name."""
    hints = typing.get_type_hints(config)
    described: dict[str, str] = {}
    for field in dataclasses.fields(config):
        name, hint = f"{path}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            described |= describe_config(hint, f"{name}.")
        else:
            kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            described[name] = kind + default
    return described


def proto_files(package: ModuleType) -> list[FileDescriptor]:
    """Returns the descriptors of all generated message modules of a package."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name.endswith("_pb2"))
    return [importlib.import_module(f"{package.__name__}.{name}").DESCRIPTOR for name in names]


def configs_of(module: ModuleType) -> list[type]:
    """Returns the config dataclasses that a module defines."""
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return [value for value in own if dataclasses.is_dataclass(value)]


def describe() -> dict[str, Any]:
    """Returns the whole public surface of Siltstone as it is now."""
    proto: dict[str, list[str]] = {}
    for file in proto_files(v1):
        proto |= describe_proto(file)
    fields: dict[str, str] = {}
    for owner in configs_of(config):
        fields |= describe_config(owner, f"{owner.__name__}.")
    return {
        "commands": describe_command(typer.main.get_command(cli.app), "siltstone"),
        "proto": proto,
        "config": fields,
    }


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(describe(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
