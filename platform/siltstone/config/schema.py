"""The JSON schema of config dataclasses: types, defaults, and the sentence under each field."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import itertools
import textwrap
import types
import typing
from typing import Any, Literal

_SCALARS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def describe_schema(kind: type) -> dict[str, Any]:
    """Returns the JSON schema of a config dataclass and of the configs in it; no other keys are allowed."""
    hints, sentences = typing.get_type_hints(kind), _sentences(kind)
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        described = _describe(hints[field.name])
        if field.name in sentences:
            described["description"] = sentences[field.name]
        if field.default is not dataclasses.MISSING:
            described["default"] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            described["default"] = _plain(field.default_factory())
        else:
            required.append(field.name)
        properties[field.name] = described
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"title": kind.__name__, **schema, **({"required": required} if required else {})}


def _describe(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return describe_schema(hint)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [{"type": "null"} if part is types.NoneType else _describe(part) for part in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _describe(arguments[0])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_describe(part) for part in arguments], "items": False}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(arguments[1])}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": _SCALARS[hint]}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.value if isinstance(value, enum.Enum) else value


def _sentences(kind: type) -> dict[str, str]:
    """Returns the docstring under each field; Python keeps it in the source only."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found = {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    for field, after in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(after.value.value)
    return found
