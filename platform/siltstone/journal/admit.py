"""What may enter the journal: an interaction as bytes, and the reasons to refuse one.

The format is documented in docs/journal-format.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from siltstone.errors import InvalidInput
from siltstone.values import (
    SCHEMA_VERSION,
    Consent,
    Interaction,
    InteractionKind,
    Message,
    ParkReason,
    Role,
    UserKey,
    is_valid_id,
)

MAX_OCCURRED_AT_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""

_FIELDS: Final = frozenset(
    {"schema_version", "id", "tenant", "user", "kind", "occurred_at_ms", "messages", "correction", "consent"}
)
_ENDS_WITH_ANSWER: Final = frozenset({InteractionKind.CORRECTION, InteractionKind.THUMB_UP, InteractionKind.THUMB_DOWN})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CANONICAL: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How large an interaction may be."""

    max_text_bytes: int = 65_536
    """UTF-8 bytes of all messages and the correction together."""
    max_messages: int = 64
    """Messages of one interaction."""
    max_payload_bytes: int = 524_288
    """Bytes of the encoded interaction: JSON writes a control character in six bytes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an interaction is not admitted. `detail` says what was expected and found, never a user's text."""

    reason: ParkReason
    detail: str


def encode(interaction: Interaction) -> bytes:
    """Returns the journal's form of an interaction: canonical JSON, so equal interactions give equal bytes.

    Raises: InvalidInput when a text cannot be written as UTF-8.
    """
    fields = {
        "schema_version": interaction.schema_version,
        "id": interaction.id,
        "tenant": interaction.owner.tenant,
        "user": interaction.owner.user,
        "kind": interaction.kind,
        "occurred_at_ms": interaction.occurred_at_ms,
        "messages": [{"role": message.role, "text": message.text} for message in interaction.messages],
        "correction": interaction.correction,
        "consent": {"learn": interaction.consent.learn, "share": interaction.consent.share},
    }
    try:
        return _CANONICAL.encode(fields).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("text", "valid unicode", f"a lone surrogate at character {error.start}") from error


def decode(payload: bytes) -> Interaction:
    """Returns the interaction that `encode` wrote.

    Raises: InvalidInput, whose `field` tells the reason to park (see `park_reason`).
    """
    try:
        fields = json.loads(payload.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("payload", "an interaction as UTF-8 JSON", type(error).__name__) from error
    fields = _object("payload", fields)
    version = _integer("schema_version", fields.get("schema_version"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise InvalidInput("schema_version", f"1 to {SCHEMA_VERSION}", str(version))
    _same_names("payload", fields, _FIELDS)
    consent = _object("consent", fields["consent"])
    _same_names("consent", consent, frozenset({"learn", "share"}))
    return Interaction(
        id=_text("id", fields["id"]),
        owner=UserKey(_text("tenant", fields["tenant"]), _text("user", fields["user"])),
        kind=_kind(fields["kind"]),
        occurred_at_ms=_integer("occurred_at_ms", fields["occurred_at_ms"]),
        messages=tuple(_messages(fields["messages"])),
        correction=_text("correction", fields["correction"]),
        consent=Consent(
            learn=_boolean("consent.learn", consent["learn"]), share=_boolean("consent.share", consent["share"])
        ),
        schema_version=version,
    )


def park_reason(error: InvalidInput) -> ParkReason:
    """Returns the reason to park a payload that `decode` did not take."""
    match error.field:
        case "schema_version":
            return ParkReason.UNKNOWN_SCHEMA
        case "kind":
            return ParkReason.UNKNOWN_KIND
        case name if name.endswith(".role"):
            return ParkReason.WRONG_ROLES
        case _:
            return ParkReason.UNDECODABLE


def admit(payload: bytes, limits: AdmissionLimits) -> Interaction | Refusal:
    """Returns the interaction in `payload`, or why it may not be absorbed. Takes any bytes and never raises."""
    if len(payload) > limits.max_payload_bytes:
        return _too_large("payload", f"{limits.max_payload_bytes} bytes", f"{len(payload)} bytes")
    try:
        interaction = decode(payload)
    except InvalidInput as error:
        return Refusal(park_reason(error), str(error))
    return check(interaction, limits) or interaction


def check(interaction: Interaction, limits: AdmissionLimits) -> Refusal | None:
    """Returns why an interaction may not be absorbed, or None when it may.

    The form is judged before the content, and consent last: what is refused for consent alone is otherwise sound.
    """
    return (
        _check_form(interaction)
        or _check_size(interaction, limits)
        or _check_text(interaction)
        or _check_roles(interaction)
        or _check_consent(interaction)
    )


def _check_form(interaction: Interaction) -> Refusal | None:
    if not 1 <= interaction.schema_version <= SCHEMA_VERSION:
        found = str(interaction.schema_version)
        return Refusal(ParkReason.UNKNOWN_SCHEMA, f"schema_version: expected 1 to {SCHEMA_VERSION}, found {found}")
    ids = {"id": interaction.id, "tenant": interaction.owner.tenant, "user": interaction.owner.user}
    for name, text in ids.items():
        if not is_valid_id(text):
            found = f"{len(text)} characters, starting {text[:16]!r}"
            return Refusal(ParkReason.UNDECODABLE, f"{name}: expected 1 to 128 plain characters, found {found}")
    if not 0 <= interaction.occurred_at_ms <= MAX_OCCURRED_AT_MS:
        detail = f"expected 0 to {MAX_OCCURRED_AT_MS}, found {interaction.occurred_at_ms}"
        return Refusal(ParkReason.UNDECODABLE, f"occurred_at_ms: {detail}")
    return None


def _check_size(interaction: Interaction, limits: AdmissionLimits) -> Refusal | None:
    if len(interaction.messages) > limits.max_messages:
        return _too_large("messages", str(limits.max_messages), str(len(interaction.messages)))
    num_bytes = sum(_num_bytes(text) for _, text in _texts(interaction))
    if num_bytes > limits.max_text_bytes:
        return _too_large("text", f"{limits.max_text_bytes} bytes", f"{num_bytes} bytes")
    return None


def _check_text(interaction: Interaction) -> Refusal | None:
    if not interaction.messages:
        return Refusal(ParkReason.EMPTY, "messages: expected at least 1, found 0")
    for name, text in _texts(interaction):
        if "\0" in text:
            return Refusal(ParkReason.UNDECODABLE, f"{name}: expected text, found a NUL character")
        if not text.isascii() and _SURROGATE.search(text):
            return Refusal(ParkReason.UNDECODABLE, f"{name}: expected valid unicode, found a lone surrogate")
    for name, text in _texts(interaction):
        if not text.strip() and (name != "correction" or interaction.kind is InteractionKind.CORRECTION):
            return Refusal(ParkReason.EMPTY, f"{name}: expected text, found only white space")
    if interaction.correction and interaction.kind is not InteractionKind.CORRECTION:
        detail = f"expected none with kind {interaction.kind}, found {len(interaction.correction)} characters"
        return Refusal(ParkReason.UNDECODABLE, f"correction: {detail}")
    return None


def _check_roles(interaction: Interaction) -> Refusal | None:
    roles = [message.role for message in interaction.messages]
    if interaction.kind is InteractionKind.DOCUMENT:
        return None if len(roles) == 1 else _wrong_roles("one message for a document", f"{len(roles)} messages")
    if Role.SYSTEM in roles[1:]:
        return _wrong_roles("the system message first", f"one at message {roles.index(Role.SYSTEM, 1)}")
    if roles == [Role.SYSTEM]:
        return _wrong_roles("a user or assistant message", "a system message only")
    if interaction.kind in _ENDS_WITH_ANSWER and roles[-1] is not Role.ASSISTANT:
        return _wrong_roles(f"an assistant message last for kind {interaction.kind}", f"{roles[-1]}")
    return None


def _check_consent(interaction: Interaction) -> Refusal | None:
    if not interaction.consent.learn:
        return Refusal(ParkReason.NO_CONSENT, "consent.learn: expected true, found false")
    return None


def _texts(interaction: Interaction) -> Iterator[tuple[str, str]]:
    for index, message in enumerate(interaction.messages):
        yield f"messages[{index}].text", message.text
    yield "correction", interaction.correction


def _num_bytes(text: str) -> int:
    # Text knows by itself whether it is ASCII. A surrogate is counted here and refused by the check of the text.
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _too_large(name: str, limit: str, found: str) -> Refusal:
    return Refusal(ParkReason.TOO_LARGE, f"{name}: expected at most {limit}, found {found}")


def _wrong_roles(expected: str, found: str) -> Refusal:
    return Refusal(ParkReason.WRONG_ROLES, f"messages: expected {expected}, found {found}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(name, "an object", type(value).__name__)
    return value


def _same_names(where: str, fields: dict[str, Any], names: frozenset[str]) -> None:
    if missing := sorted(names - fields.keys()):
        raise InvalidInput(where, f"the field {missing[0]}", "none")
    if unknown := sorted(fields.keys() - names):
        raise InvalidInput(where, "known fields", f"{unknown[0][:32]!r}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(name, "a string", type(value).__name__)
    return value


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInput(name, "a whole number", type(value).__name__)
    return value


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(name, "true or false", type(value).__name__)
    return value


def _kind(value: object) -> InteractionKind:
    text = _text("kind", value)
    try:
        return InteractionKind(text)
    except ValueError as error:
        raise InvalidInput("kind", "one of " + ", ".join(InteractionKind), f"{text[:32]!r}") from error


def _messages(value: object) -> Iterator[Message]:
    if not isinstance(value, list):
        raise InvalidInput("messages", "a list", type(value).__name__)
    for index, item in enumerate(value):
        name = f"messages[{index}]"
        fields = _object(name, item)
        _same_names(name, fields, frozenset({"role", "text"}))
        text = _text(f"{name}.role", fields["role"])
        try:
            role = Role(text)
        except ValueError as error:
            raise InvalidInput(f"{name}.role", "one of " + ", ".join(Role), f"{text[:32]!r}") from error
        yield Message(role, _text(f"{name}.text", fields["text"]))
