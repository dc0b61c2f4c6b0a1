"""Memory cards, exports and erasures on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from siltstone.errors import Corrupt
from siltstone.proto.v1 import memory_service_pb2 as pb
from siltstone.values import (
    Erasure,
    JournalRecord,
    LevelCard,
    MemoryCard,
    Parked,
    Parking,
    ParkReason,
    Receipt,
    Snapshot,
    SnapshotDamage,
    UserExport,
    UserKey,
)
from siltstone.wire.interactions import owner_from_proto, owner_to_proto
from siltstone.wire.numbering import Numbering, refusing_what_does_not_fit

PARK_REASONS: Final = Numbering(
    {
        ParkReason.UNDECODABLE: pb.PARK_REASON_UNDECODABLE,
        ParkReason.UNKNOWN_SCHEMA: pb.PARK_REASON_UNKNOWN_SCHEMA,
        ParkReason.UNKNOWN_KIND: pb.PARK_REASON_UNKNOWN_KIND,
        ParkReason.NO_CONSENT: pb.PARK_REASON_NO_CONSENT,
        ParkReason.TOO_LARGE: pb.PARK_REASON_TOO_LARGE,
        ParkReason.EMPTY: pb.PARK_REASON_EMPTY,
        ParkReason.WRONG_ROLES: pb.PARK_REASON_WRONG_ROLES,
        ParkReason.NOT_FINITE: pb.PARK_REASON_NOT_FINITE,
        ParkReason.SNAPSHOT_MISMATCH: pb.PARK_REASON_SNAPSHOT_MISMATCH,
        ParkReason.CORRUPT_MEMORY: pb.PARK_REASON_CORRUPT_MEMORY,
    }
)


@refusing_what_does_not_fit
def card_to_proto(card: MemoryCard) -> pb.MemoryCard:
    """Writes a memory card."""
    return pb.MemoryCard(
        owner=owner_to_proto(card.owner),
        core=card.core,
        sequence=card.sequence,
        position_tokens=card.position_tokens,
        num_interactions=card.num_interactions,
        size_bytes=card.size_bytes,
        levels=[
            pb.LevelCard(
                name=level.name,
                period_tokens=level.period_tokens,
                num_updates=level.num_updates,
                open_tokens=level.open_tokens,
                drift=level.drift,
            )
            for level in card.levels
        ],
        reservoir_entries=card.reservoir_entries,
    )


def card_from_proto(card: pb.MemoryCard) -> MemoryCard:
    """Reads a memory card."""
    return MemoryCard(
        owner=owner_from_proto(card.owner),
        core=card.core,
        sequence=card.sequence,
        position_tokens=card.position_tokens,
        num_interactions=card.num_interactions,
        size_bytes=card.size_bytes,
        levels=tuple(
            LevelCard(level.name, level.period_tokens, level.num_updates, level.open_tokens, level.drift)
            for level in card.levels
        ),
        reservoir_entries=card.reservoir_entries,
    )


def erasure_to_proto(erasure: Erasure) -> pb.ForgetUserResponse:
    """Writes what was removed."""
    return pb.ForgetUserResponse(had_memory=erasure.had_memory, num_interactions=erasure.num_interactions)


def erasure_from_proto(owner: UserKey, response: pb.ForgetUserResponse) -> Erasure:
    """Reads what was removed of `owner`."""
    return Erasure(owner, response.had_memory, response.num_interactions)


def parked_to_proto(parked: Parked) -> pb.ParkedInteraction:
    """Writes a parked interaction."""
    return pb.ParkedInteraction(
        partition=parked.partition,
        position=parked.position,
        interaction_id=parked.interaction_id,
        reason=PARK_REASONS.number(parked.reason),
        detail=parked.detail,
        payload=parked.payload,
    )


def parked_from_proto(owner: UserKey, parked: pb.ParkedInteraction) -> Parked:
    """Reads a parked interaction of `owner`.

    Raises: InvalidInput for an unknown reason to park.
    """
    reason = PARK_REASONS.member("parked.reason", parked.reason)
    return Parked(
        parked.partition, parked.position, owner, parked.interaction_id, reason, parked.detail, parked.payload
    )


def parking_told(receipts: Sequence[Receipt], parked: Iterable[pb.ParkedInteraction]) -> list[Receipt]:
    """Returns the receipts, each with why it was parked where it was.

    Raises: InvalidInput for an unknown reason to park.
    """
    told = {
        (one.partition, one.position): Parking(PARK_REASONS.member("parked.reason", one.reason), one.detail)
        for one in parked
    }
    return [replace(receipt, parked=told.get((receipt.partition, receipt.position))) for receipt in receipts]


def export_to_proto(export: UserExport, chunk_bytes: int) -> Iterator[pb.ExportUserResponse]:
    """Writes an export as pieces, the snapshot in chunks of up to `chunk_bytes`."""
    yield pb.ExportUserResponse(card=card_to_proto(export.card))
    if export.snapshot is not None:
        snapshot = export.snapshot
        header = pb.SnapshotHeader(
            core=snapshot.core, sequence=snapshot.sequence, size_bytes=len(snapshot.blob), digest=snapshot.digest
        )
        yield pb.ExportUserResponse(snapshot=header)
        for start in range(0, len(snapshot.blob), chunk_bytes):
            yield pb.ExportUserResponse(snapshot_bytes=snapshot.blob[start : start + chunk_bytes])
    if export.damage is not None:
        damage = export.damage
        told = pb.SnapshotDamage(what=damage.what, expected=damage.expected, found=damage.found)
        yield pb.ExportUserResponse(damage=told)
    for record in export.journal:
        written = pb.JournalRecord(
            partition=record.partition,
            position=record.position,
            interaction_id=record.interaction_id,
            payload=record.payload,
        )
        yield pb.ExportUserResponse(record=written)
    for parked in export.parked:
        yield pb.ExportUserResponse(parked=parked_to_proto(parked))


class ExportReader:
    """Puts the pieces of an export together again."""

    def __init__(self, owner: UserKey) -> None:
        self._owner = owner
        self._card: MemoryCard | None = None
        self._header: pb.SnapshotHeader | None = None
        self._blob = bytearray()
        self._damage: SnapshotDamage | None = None
        self._journal: list[JournalRecord] = []
        self._parked: list[Parked] = []

    def add(self, response: pb.ExportUserResponse) -> None:
        """Takes the next piece. One of a kind we do not know is left out: card and snapshot prove themselves.

        Raises: InvalidInput for an unknown reason to park.
        """
        match response.WhichOneof("piece"):
            case "card":
                self._card = card_from_proto(response.card)
            case "snapshot":
                self._header = response.snapshot
            case "snapshot_bytes":
                self._blob += response.snapshot_bytes
            case "damage":
                damage = response.damage
                self._damage = SnapshotDamage(damage.what, damage.expected, damage.found)
            case "record":
                record = response.record
                self._journal.append(
                    JournalRecord(record.partition, record.position, self._owner, record.interaction_id, record.payload)
                )
            case "parked":
                self._parked.append(parked_from_proto(self._owner, response.parked))

    def finish(self) -> UserExport:
        """Returns the export.

        Raises: Corrupt when the card is missing or the snapshot is not what its header says.
        """
        what = f"export of {self._owner}"
        if self._card is None:
            raise Corrupt(what, "a memory card", "none")
        snapshot = None
        if self._header is not None:
            snapshot = Snapshot.seal(self._owner, self._header.core, self._header.sequence, bytes(self._blob))
            if len(self._blob) != self._header.size_bytes:
                raise Corrupt(what, f"{self._header.size_bytes} bytes of snapshot", f"{len(self._blob)}")
            if snapshot.digest != self._header.digest:
                raise Corrupt(what, f"sha256 {self._header.digest}", snapshot.digest)
        return UserExport(self._card, snapshot, tuple(self._journal), tuple(self._parked), self._damage)
