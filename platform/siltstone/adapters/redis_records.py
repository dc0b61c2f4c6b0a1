"""What a key of the Redis store holds: a snapshot or a parked interaction, as one contiguous, checked record.

A record is: its magic word, a version (2 bytes), the length of its head (4 bytes), the head as JSON, a sha256 over all
before it, and the body. The head names the digest of what is in the body, so no byte goes unchecked. A large snapshot's
body may be an object elsewhere: the head then names the object, its length and its sha256, and the version is 2, so
that code which knows no objects leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from siltstone.adapters.seal_contexts import parked_context, snapshot_context
from siltstone.errors import Corrupt, Unavailable
from siltstone.ports import Sealer
from siltstone.values import Parked, ParkReason, Snapshot, UserKey

RECORD_VERSION: Final = 2
_WHOLE_VERSION: Final = 1
_MAGIC: Final = b"SILTREC\n"
_START: Final = struct.Struct(">8sHI")
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where the sealed body of a snapshot is, and what it must be."""

    name: str
    num_bytes: int
    sha256: str


def seal_snapshot(snapshot: Snapshot, sealer: Sealer) -> bytes:
    """Returns the sealed body of a snapshot's record."""
    return sealer.seal(snapshot.owner, snapshot_context(snapshot.core, snapshot.sequence), snapshot.blob)


def write_snapshot(snapshot: Snapshot, sealer: Sealer) -> bytes:
    """Returns the record of a snapshot, sealed."""
    return _write(_head_of(snapshot), seal_snapshot(snapshot, sealer))


def write_pointer(snapshot: Snapshot, pointer: Pointer) -> bytes:
    """Returns the record of a snapshot whose sealed body is an object."""
    place = {"object": pointer.name, "object_bytes": pointer.num_bytes, "object_sha256": pointer.sha256}
    return _write(_head_of(snapshot) | place, b"", RECORD_VERSION)


def read_pointer(owner: UserKey, record: bytes) -> Pointer | None:
    """Returns the pointer of a record; None of one that has its body with it.

    Raises: as `read_snapshot`.
    """
    what = f"memory of {owner}"
    head, body = _read(what, record)
    if "object" not in head:
        return None
    if body:
        raise Corrupt(what, "a pointer and nothing behind it", f"{len(body)} bytes more")
    try:
        return Pointer(str(head["object"]), int(head["object_bytes"]), str(head["object_sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(what, "the head of a pointer", str(error)[:80]) from error


def read_snapshot(owner: UserKey, record: bytes, sealer: Sealer, content: bytes | None = None) -> Snapshot | None:
    """Returns the snapshot that a record holds; None when the user's key was destroyed since.

    `content` is the object that the record points to, if it does.
    Raises: Corrupt when it is not what was written, or another user's; Unavailable when newer code wrote it.
    """
    what = f"memory of {owner}"
    head, body = _read(what, record)
    try:
        found = UserKey(head["tenant"], head["user"])
        core, sequence, digest = head["core"], int(head["sequence"]), head["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(what, "the head of a snapshot", str(error)[:80]) from error
    if found != owner:
        raise Corrupt(what, f"the record of {owner}", f"the record of {found}")
    if content is not None:
        _check_content(what, read_pointer(owner, record), content)
        body = content
    blob = sealer.open(what, owner, snapshot_context(core, sequence), body)
    if blob is None:
        return None
    if (sha256 := hashlib.sha256(blob).hexdigest()) != digest:
        raise Corrupt(what, f"sha256 {digest}", f"sha256 {sha256}")
    return Snapshot(owner, core, sequence, blob, digest)


def write_parked(parked: Parked, sealer: Sealer) -> tuple[bytes, bytes]:
    """Returns the record of a parked interaction and, apart from it, its sealed payload."""
    payload = sealer.seal(parked.owner, parked_context(parked.partition, parked.position), parked.payload)
    head = {
        "partition": parked.partition,
        "position": parked.position,
        "tenant": parked.owner.tenant,
        "user": parked.owner.user,
        "interaction_id": parked.interaction_id,
        "reason": parked.reason.value,
        "detail": parked.detail,
        "payload": hashlib.sha256(payload).hexdigest(),
    }
    return _write(head, b""), payload


def read_parked(partition: int, position: int, record: bytes, payload: bytes, sealer: Sealer) -> Parked:
    """Returns the parked interaction of a record; with an empty payload when the user's key was destroyed since.

    Raises: as `read_snapshot`.
    """
    what = f"parked record {position} of partition {partition}"
    head, _ = _read(what, record)
    try:
        owner = UserKey(head["tenant"], head["user"])
        reason = ParkReason(head["reason"])
        parked = Parked(head["partition"], head["position"], owner, head["interaction_id"], reason, head["detail"], b"")
        digest = head["payload"]
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(what, "the head of a parked interaction", str(error)[:80]) from error
    if (parked.partition, parked.position) != (partition, position):
        raise Corrupt(what, "its own place", f"{parked.position} of partition {parked.partition}")
    if (sha256 := hashlib.sha256(payload).hexdigest()) != digest:
        raise Corrupt(what, f"sha256 {digest}", f"sha256 {sha256}")
    return replace(parked, payload=sealer.open(what, owner, parked_context(partition, position), payload) or b"")


def _head_of(snapshot: Snapshot) -> dict[str, Any]:
    owner = snapshot.owner
    return {
        "tenant": owner.tenant,
        "user": owner.user,
        "core": snapshot.core,
        "sequence": snapshot.sequence,
        "digest": snapshot.digest,
    }


def _check_content(what: str, pointer: Pointer | None, content: bytes) -> None:
    if pointer is None:
        raise Corrupt(what, "a record with its body", "an object beside it")
    if len(content) != pointer.num_bytes:
        raise Corrupt(what, f"an object of {pointer.num_bytes} bytes", f"{len(content)} bytes")
    if (sha256 := hashlib.sha256(content).hexdigest()) != pointer.sha256:
        raise Corrupt(what, f"an object of sha256 {pointer.sha256}", f"sha256 {sha256}")


def _write(head: dict[str, Any], body: bytes, version: int = _WHOLE_VERSION) -> bytes:
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    start = _START.pack(_MAGIC, version, len(text)) + text
    return b"".join((start, hashlib.sha256(start).digest(), body))


def _read(what: str, record: bytes) -> tuple[dict[str, Any], bytes]:
    if len(record) < _START.size or not record.startswith(_MAGIC):
        raise Corrupt(what, "a record of Siltstone", f"{len(record)} bytes of something else")
    _, version, head_bytes = _START.unpack_from(record)
    end = _START.size + head_bytes
    start, sha256 = record[:end], record[end : end + _DIGEST_BYTES]
    if hashlib.sha256(start).digest() != sha256:
        raise Corrupt(what, "a head with its digest", "another digest")
    if version > RECORD_VERSION:
        # Whole, but of tomorrow: whoever waits for the upgrade loses nothing.
        raise Unavailable(what, f"it was written by newer code: version {version}, this code knows {RECORD_VERSION}")
    head: dict[str, Any] = json.loads(start[_START.size :])
    return head, record[end + _DIGEST_BYTES :]
