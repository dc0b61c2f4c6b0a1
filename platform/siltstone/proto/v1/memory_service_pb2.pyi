from siltstone.proto.v1 import interaction_pb2 as _interaction_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_KIND_UNSPECIFIED: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_CORRECTION: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_THUMB_UP: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_THUMB_DOWN: _ClassVar[FeedbackKind]

class ParkReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARK_REASON_UNSPECIFIED: _ClassVar[ParkReason]
    PARK_REASON_UNDECODABLE: _ClassVar[ParkReason]
    PARK_REASON_UNKNOWN_SCHEMA: _ClassVar[ParkReason]
    PARK_REASON_UNKNOWN_KIND: _ClassVar[ParkReason]
    PARK_REASON_NO_CONSENT: _ClassVar[ParkReason]
    PARK_REASON_TOO_LARGE: _ClassVar[ParkReason]
    PARK_REASON_EMPTY: _ClassVar[ParkReason]
    PARK_REASON_WRONG_ROLES: _ClassVar[ParkReason]
    PARK_REASON_NOT_FINITE: _ClassVar[ParkReason]
    PARK_REASON_SNAPSHOT_MISMATCH: _ClassVar[ParkReason]
    PARK_REASON_CORRUPT_MEMORY: _ClassVar[ParkReason]
FEEDBACK_KIND_UNSPECIFIED: FeedbackKind
FEEDBACK_KIND_CORRECTION: FeedbackKind
FEEDBACK_KIND_THUMB_UP: FeedbackKind
FEEDBACK_KIND_THUMB_DOWN: FeedbackKind
PARK_REASON_UNSPECIFIED: ParkReason
PARK_REASON_UNDECODABLE: ParkReason
PARK_REASON_UNKNOWN_SCHEMA: ParkReason
PARK_REASON_UNKNOWN_KIND: ParkReason
PARK_REASON_NO_CONSENT: ParkReason
PARK_REASON_TOO_LARGE: ParkReason
PARK_REASON_EMPTY: ParkReason
PARK_REASON_WRONG_ROLES: ParkReason
PARK_REASON_NOT_FINITE: ParkReason
PARK_REASON_SNAPSHOT_MISMATCH: ParkReason
PARK_REASON_CORRUPT_MEMORY: ParkReason

class RecordRequest(_message.Message):
    __slots__ = ("interactions", "wait_absorbed")
    INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    WAIT_ABSORBED_FIELD_NUMBER: _ClassVar[int]
    interactions: _containers.RepeatedCompositeFieldContainer[_interaction_pb2.Interaction]
    wait_absorbed: bool
    def __init__(self, interactions: _Optional[_Iterable[_Union[_interaction_pb2.Interaction, _Mapping]]] = ..., wait_absorbed: _Optional[bool] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ("receipts", "parked")
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[_interaction_pb2.Receipt]
    parked: _containers.RepeatedCompositeFieldContainer[ParkedInteraction]
    def __init__(self, receipts: _Optional[_Iterable[_Union[_interaction_pb2.Receipt, _Mapping]]] = ..., parked: _Optional[_Iterable[_Union[ParkedInteraction, _Mapping]]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("id", "owner", "kind", "exchange", "correction", "occurred_at_ms", "consent", "wait_absorbed")
    ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_ABSORBED_FIELD_NUMBER: _ClassVar[int]
    id: str
    owner: _interaction_pb2.UserKey
    kind: FeedbackKind
    exchange: _containers.RepeatedCompositeFieldContainer[_interaction_pb2.Message]
    correction: str
    occurred_at_ms: int
    consent: _interaction_pb2.Consent
    wait_absorbed: bool
    def __init__(self, id: _Optional[str] = ..., owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ..., kind: _Optional[_Union[FeedbackKind, str]] = ..., exchange: _Optional[_Iterable[_Union[_interaction_pb2.Message, _Mapping]]] = ..., correction: _Optional[str] = ..., occurred_at_ms: _Optional[int] = ..., consent: _Optional[_Union[_interaction_pb2.Consent, _Mapping]] = ..., wait_absorbed: _Optional[bool] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("receipt", "parked")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    receipt: _interaction_pb2.Receipt
    parked: ParkedInteraction
    def __init__(self, receipt: _Optional[_Union[_interaction_pb2.Receipt, _Mapping]] = ..., parked: _Optional[_Union[ParkedInteraction, _Mapping]] = ...) -> None: ...

class GetMemoryRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ...) -> None: ...

class GetMemoryResponse(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: MemoryCard
    def __init__(self, memory: _Optional[_Union[MemoryCard, _Mapping]] = ...) -> None: ...

class MemoryCard(_message.Message):
    __slots__ = ("owner", "core", "sequence", "position_tokens", "num_interactions", "size_bytes", "levels", "reservoir_entries")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CORE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    RESERVOIR_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    core: str
    sequence: int
    position_tokens: int
    num_interactions: int
    size_bytes: int
    levels: _containers.RepeatedCompositeFieldContainer[LevelCard]
    reservoir_entries: int
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ..., core: _Optional[str] = ..., sequence: _Optional[int] = ..., position_tokens: _Optional[int] = ..., num_interactions: _Optional[int] = ..., size_bytes: _Optional[int] = ..., levels: _Optional[_Iterable[_Union[LevelCard, _Mapping]]] = ..., reservoir_entries: _Optional[int] = ...) -> None: ...

class LevelCard(_message.Message):
    __slots__ = ("name", "period_tokens", "num_updates", "open_tokens", "drift")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERIOD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATES_FIELD_NUMBER: _ClassVar[int]
    OPEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    name: str
    period_tokens: int
    num_updates: int
    open_tokens: int
    drift: float
    def __init__(self, name: _Optional[str] = ..., period_tokens: _Optional[int] = ..., num_updates: _Optional[int] = ..., open_tokens: _Optional[int] = ..., drift: _Optional[float] = ...) -> None: ...

class ExportUserRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ...) -> None: ...

class ExportUserResponse(_message.Message):
    __slots__ = ("card", "snapshot", "snapshot_bytes", "record", "parked", "damage")
    CARD_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    card: MemoryCard
    snapshot: SnapshotHeader
    snapshot_bytes: bytes
    record: JournalRecord
    parked: ParkedInteraction
    damage: SnapshotDamage
    def __init__(self, card: _Optional[_Union[MemoryCard, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., snapshot_bytes: _Optional[bytes] = ..., record: _Optional[_Union[JournalRecord, _Mapping]] = ..., parked: _Optional[_Union[ParkedInteraction, _Mapping]] = ..., damage: _Optional[_Union[SnapshotDamage, _Mapping]] = ...) -> None: ...

class SnapshotDamage(_message.Message):
    __slots__ = ("what", "expected", "found")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    what: str
    expected: str
    found: str
    def __init__(self, what: _Optional[str] = ..., expected: _Optional[str] = ..., found: _Optional[str] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("core", "sequence", "size_bytes", "digest")
    CORE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    core: str
    sequence: int
    size_bytes: int
    digest: str
    def __init__(self, core: _Optional[str] = ..., sequence: _Optional[int] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class JournalRecord(_message.Message):
    __slots__ = ("partition", "position", "interaction_id", "payload")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    partition: int
    position: int
    interaction_id: str
    payload: bytes
    def __init__(self, partition: _Optional[int] = ..., position: _Optional[int] = ..., interaction_id: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class ParkedInteraction(_message.Message):
    __slots__ = ("partition", "position", "interaction_id", "reason", "detail", "payload")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    partition: int
    position: int
    interaction_id: str
    reason: ParkReason
    detail: str
    payload: bytes
    def __init__(self, partition: _Optional[int] = ..., position: _Optional[int] = ..., interaction_id: _Optional[str] = ..., reason: _Optional[_Union[ParkReason, str]] = ..., detail: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class ForgetUserRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ...) -> None: ...

class ForgetUserResponse(_message.Message):
    __slots__ = ("had_memory", "num_interactions")
    HAD_MEMORY_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    had_memory: bool
    num_interactions: int
    def __init__(self, had_memory: _Optional[bool] = ..., num_interactions: _Optional[int] = ...) -> None: ...
