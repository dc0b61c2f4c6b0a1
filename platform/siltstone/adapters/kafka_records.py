"""A journal record as a Kafka record, and back. The format is documented in docs/journal-format.md.

Nothing here raises because of what a record holds: what cannot be understood comes back with its defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from siltstone.adapters.seal_contexts import journal_context, parked_context
from siltstone.errors import Corrupt, KeyMissing
from siltstone.journal.partition import partition_of
from siltstone.ports import Sealer
from siltstone.traceparent import HEADER, read_traceparent
from siltstone.values import (
    NOBODY,
    SCHEMA_VERSION,
    Interaction,
    JournalRecord,
    Parked,
    Parking,
    ParkReason,
    UserKey,
    is_valid_id,
)

SCHEMA: Final = "siltstone-schema"
ID: Final = "siltstone-id"
TENANT: Final = "siltstone-tenant"
ENCODING: Final = "siltstone-encoding"
REASON: Final = "siltstone-reason"
DETAIL: Final = "siltstone-detail"
ORIGIN: Final = "siltstone-origin"

SEALED: Final = b"aes-256-gcm"
PLAIN: Final = b"plain"
_MAX_DETAIL_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record whose frame the client cannot read: all that is known of it is where it is, and what the client said."""

    offset: int
    said: str


def key_of(owner: UserKey) -> bytes:
    """Returns the key of an owner's records."""
    return str(owner).encode()


def headers_of(interaction: Interaction) -> list[tuple[str, bytes]]:
    """Returns the headers of an interaction's record."""
    headers = [
        (SCHEMA, str(interaction.schema_version).encode()),
        (ID, interaction.id.encode()),
        (TENANT, interaction.owner.tenant.encode()),
        (ENCODING, SEALED),
    ]
    return [*headers, (HEADER, interaction.trace.encode())] if interaction.trace else headers


def parked_headers(parked: Parked, topic: str) -> list[tuple[str, bytes]]:
    """Returns the headers of a parked interaction's record in the dead-letter topic."""
    has_owner = parked.owner != NOBODY
    told = {
        REASON: parked.reason.value,
        DETAIL: parked.detail[:_MAX_DETAIL_CHARS],
        ORIGIN: f"{topic}/{parked.partition}/{parked.position}",
        ENCODING: (SEALED if has_owner else PLAIN).decode(),
    }
    if has_owner:
        told |= {ID: parked.interaction_id, TENANT: parked.owner.tenant}
    if parked.trace:
        told[HEADER] = parked.trace
    return [(name, text.encode("utf-8", "replace")) for name, text in told.items()]


def parked_value(parked: Parked, sealer: Sealer) -> bytes:
    """Returns the payload of a parked interaction: sealed under its owner's key, or as it is where nobody owns it."""
    if parked.owner == NOBODY:
        return parked.payload
    return sealer.seal(parked.owner, parked_context(parked.partition, parked.position), parked.payload)


def claimed_id(record: Any) -> tuple[UserKey, str] | None:
    """Returns whose and which interaction a record says it is; None when it does not say."""
    owner, name = _owner(record.key), _text(dict(record.headers).get(ID))
    return None if owner is None or not is_valid_id(name) else (owner, name)


def read_record(partition: int, num_partitions: int, record: Any, sealer: Sealer, accepts_plain: bool) -> JournalRecord:
    """Returns the journal record of a Kafka record; with an empty payload when its user was forgotten since.

    Raises: KeyMissing when the key it is sealed with is not in the vault: then nothing can be said of it, and it is
    not its fault. Unavailable.
    """
    if isinstance(record, Unreadable):
        return JournalRecord(partition, record.offset, NOBODY, "", b"", _defect(f"record: {record.said}"))
    headers = dict(record.headers)
    raw = record.value or b""
    trace = read_traceparent(_text(headers.get(HEADER)))

    def refused(defect: Parking, owner: UserKey = NOBODY, name: str = "") -> JournalRecord:
        return JournalRecord(partition, record.offset, owner, name, raw, defect, trace)

    owner = _owner(record.key)
    if owner is None:
        return refused(_defect("key: expected tenant/user, found something else"))
    if (home := partition_of(owner, num_partitions)) != partition:
        return refused(_defect(f"partition: expected {home} for this key, found {partition}"))
    name = _text(headers.get(ID))
    if not is_valid_id(name):
        return refused(_defect(f"header {ID}: expected 1 to 128 plain characters, found something else"), owner)
    schema = _text(headers.get(SCHEMA))
    if not schema.isdecimal():
        return refused(_defect(f"header {SCHEMA}: expected a whole number, found something else"), owner, name)
    if len(schema) > 9 or not 1 <= int(schema) <= SCHEMA_VERSION:
        found = schema[:9]
        detail = f"header {SCHEMA}: expected 1 to {SCHEMA_VERSION}, found {found}"
        return refused(Parking(ParkReason.UNKNOWN_SCHEMA, detail), owner, name)
    if _text(headers.get(TENANT)) != owner.tenant:
        return refused(_defect(f"header {TENANT}: expected the tenant of the key, found another"), owner, name)
    if not raw:
        return refused(Parking(ParkReason.EMPTY, "value: expected an interaction, found none"), owner, name)
    encoding = headers.get(ENCODING)
    if encoding == PLAIN:
        if not accepts_plain:
            return refused(_defect("value: expected a sealed one, found one in the clear"), owner, name)
        return JournalRecord(partition, record.offset, owner, name, raw, None, trace)
    if encoding != SEALED:
        return refused(_defect(f"header {ENCODING}: expected aes-256-gcm or plain, found another"), owner, name)
    try:
        what = f"record {record.offset} of partition {partition}"
        payload = sealer.open(what, owner, journal_context(name), raw)
    except KeyMissing:
        raise
    except Corrupt:
        return refused(_defect("value: expected what its owner's key has sealed, found something else"), owner, name)
    return JournalRecord(partition, record.offset, owner, name, payload or b"", None, trace)


def _defect(detail: str) -> Parking:
    return Parking(ParkReason.UNDECODABLE, detail)


def _owner(key: bytes | None) -> UserKey | None:
    tenant, _, user = _text(key).partition("/")
    return UserKey(tenant, user) if is_valid_id(tenant) and is_valid_id(user) else None


def _text(data: bytes | None) -> str:
    """Returns plain text, or nothing of what is none."""
    try:
        return (data or b"").decode("ascii")
    except UnicodeDecodeError:
        return ""
