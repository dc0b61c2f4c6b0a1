from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]

class InteractionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERACTION_KIND_UNSPECIFIED: _ClassVar[InteractionKind]
    INTERACTION_KIND_CONVERSATION: _ClassVar[InteractionKind]
    INTERACTION_KIND_DOCUMENT: _ClassVar[InteractionKind]
    INTERACTION_KIND_CORRECTION: _ClassVar[InteractionKind]
    INTERACTION_KIND_THUMB_UP: _ClassVar[InteractionKind]
    INTERACTION_KIND_THUMB_DOWN: _ClassVar[InteractionKind]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
INTERACTION_KIND_UNSPECIFIED: InteractionKind
INTERACTION_KIND_CONVERSATION: InteractionKind
INTERACTION_KIND_DOCUMENT: InteractionKind
INTERACTION_KIND_CORRECTION: InteractionKind
INTERACTION_KIND_THUMB_UP: InteractionKind
INTERACTION_KIND_THUMB_DOWN: InteractionKind

class UserKey(_message.Message):
    __slots__ = ("tenant", "user")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    user: str
    def __init__(self, tenant: _Optional[str] = ..., user: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "text")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    text: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., text: _Optional[str] = ...) -> None: ...

class Consent(_message.Message):
    __slots__ = ("learn", "share")
    LEARN_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    learn: bool
    share: bool
    def __init__(self, learn: _Optional[bool] = ..., share: _Optional[bool] = ...) -> None: ...

class Interaction(_message.Message):
    __slots__ = ("id", "owner", "kind", "occurred_at_ms", "messages", "correction", "consent", "schema_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    owner: UserKey
    kind: InteractionKind
    occurred_at_ms: int
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    correction: str
    consent: Consent
    schema_version: int
    def __init__(self, id: _Optional[str] = ..., owner: _Optional[_Union[UserKey, _Mapping]] = ..., kind: _Optional[_Union[InteractionKind, str]] = ..., occurred_at_ms: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., correction: _Optional[str] = ..., consent: _Optional[_Union[Consent, _Mapping]] = ..., schema_version: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("interaction_id", "partition", "position", "duplicate")
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    partition: int
    position: int
    duplicate: bool
    def __init__(self, interaction_id: _Optional[str] = ..., partition: _Optional[int] = ..., position: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...
