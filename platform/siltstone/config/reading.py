"""A tree of plain values as a frozen dataclass: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from siltstone.errors import ConfigInvalid

T = TypeVar("T")


def put(tree: dict[str, Any], dotted_name: str, value: Any) -> None:
    """Sets one value of a tree by its dotted name, tables made where there are none.

    Raises: ConfigInvalid when the way there leads through something that is no table.
    """
    *tables, last = dotted_name.split(".")
    for name in tables:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigInvalid(dotted_name, f"{name} is a value, not a table")
    tree[last] = value


def read_config(kind: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Returns the dataclass `kind` with the values of `tree`, defaults elsewhere. `where` is the name of the tree.

    Raises: ConfigInvalid.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigInvalid(_at(where, name), f"unknown key{meant}; known are {', '.join(known)}")
    values = {name: _read(hints[name], value, _at(where, name)) for name, value in tree.items()}
    required = [field.name for field in fields if _is_required(field) and field.name not in values]
    if required:
        raise ConfigInvalid(where, f"missing: {', '.join(required)}")
    try:
        return kind(**values)
    except ConfigInvalid as error:
        # A part knows its own name; only we know where it stands.
        raise ConfigInvalid(where or error.where, error.reason) from error


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise _wrong(where, "a table", value)
        return read_config(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _wrong(where, "one of " + ", ".join(map(repr, arguments)), value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(items) != len(value):
            raise _wrong(where, f"{len(items)} values", value)
        return tuple(_read(items[i], part, f"{where}[{i}]") for i, part in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "a table", value)
        return {name: _read(arguments[1], part, _at(where, name)) for name, part in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [member.value for member in hint]:
            raise _wrong(where, "one of " + ", ".join(repr(member.value) for member in hint), value)
        return hint(value)
    return _read_scalar(hint, value, where)


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise _wrong(where, "a finite number", value)
        return float(value)
    # bool is an int to Python, and not to people.
    if hint in _NAMES and type(value) is hint:
        return value
    raise _wrong(where, _NAMES.get(hint, str(hint)), value)


_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _read_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for argument in arguments:
        if argument is types.NoneType:
            if value is None:
                return None
            continue
        try:
            return _read(argument, value, where)
        except ConfigInvalid as error:
            problems.append(error)
    raise problems[0]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, expected: str, found: Any) -> ConfigInvalid:
    return ConfigInvalid(where, f"expected {expected}, found {str(found)[:80]!r} ({type(found).__name__})")
