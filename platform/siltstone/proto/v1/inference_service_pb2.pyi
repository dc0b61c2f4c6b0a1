from siltstone.proto.v1 import interaction_pb2 as _interaction_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecallMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECALL_MODE_UNSPECIFIED: _ClassVar[RecallMode]
    RECALL_MODE_WEIGHTS: _ClassVar[RecallMode]
    RECALL_MODE_TEXT: _ClassVar[RecallMode]
    RECALL_MODE_BOTH: _ClassVar[RecallMode]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_MAX_TOKENS: _ClassVar[FinishReason]
RECALL_MODE_UNSPECIFIED: RecallMode
RECALL_MODE_WEIGHTS: RecallMode
RECALL_MODE_TEXT: RecallMode
RECALL_MODE_BOTH: RecallMode
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_MAX_TOKENS: FinishReason

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "seed")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("owner", "messages", "sampling", "recall", "core_only", "interaction_id", "consent")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    CORE_ONLY_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    messages: _containers.RepeatedCompositeFieldContainer[_interaction_pb2.Message]
    sampling: Sampling
    recall: RecallMode
    core_only: bool
    interaction_id: str
    consent: _interaction_pb2.Consent
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[_interaction_pb2.Message, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., recall: _Optional[_Union[RecallMode, str]] = ..., core_only: _Optional[bool] = ..., interaction_id: _Optional[str] = ..., consent: _Optional[_Union[_interaction_pb2.Consent, _Mapping]] = ...) -> None: ...

class AnswerPart(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class AnswerEnd(_message.Message):
    __slots__ = ("reason", "core", "snapshot_sequence", "num_prompt_tokens", "num_answer_tokens", "recalled", "recorded")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CORE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    core: str
    snapshot_sequence: int
    num_prompt_tokens: int
    num_answer_tokens: int
    recalled: _containers.RepeatedScalarFieldContainer[str]
    recorded: _interaction_pb2.Receipt
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., core: _Optional[str] = ..., snapshot_sequence: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_answer_tokens: _Optional[int] = ..., recalled: _Optional[_Iterable[str]] = ..., recorded: _Optional[_Union[_interaction_pb2.Receipt, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("part", "end")
    PART_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    part: AnswerPart
    end: AnswerEnd
    def __init__(self, part: _Optional[_Union[AnswerPart, _Mapping]] = ..., end: _Optional[_Union[AnswerEnd, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("owner", "prompt", "answers")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    owner: _interaction_pb2.UserKey
    prompt: _containers.RepeatedCompositeFieldContainer[_interaction_pb2.Message]
    answers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, owner: _Optional[_Union[_interaction_pb2.UserKey, _Mapping]] = ..., prompt: _Optional[_Iterable[_Union[_interaction_pb2.Message, _Mapping]]] = ..., answers: _Optional[_Iterable[str]] = ...) -> None: ...

class AnswerScore(_message.Message):
    __slots__ = ("user_log_prob", "core_log_prob")
    USER_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    CORE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    user_log_prob: float
    core_log_prob: float
    def __init__(self, user_log_prob: _Optional[float] = ..., core_log_prob: _Optional[float] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "core", "snapshot_sequence")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CORE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[AnswerScore]
    core: str
    snapshot_sequence: int
    def __init__(self, scores: _Optional[_Iterable[_Union[AnswerScore, _Mapping]]] = ..., core: _Optional[str] = ..., snapshot_sequence: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: ShardStatus
    def __init__(self, status: _Optional[_Union[ShardStatus, _Mapping]] = ...) -> None: ...

class ShardStatus(_message.Message):
    __slots__ = ("core", "num_users_stored", "num_users_resident", "resident_bytes", "lag_interactions", "num_answers_running", "num_absorbed", "num_parked", "absorbed_tokens", "answered_tokens", "busy_s", "num_versions", "num_rebased", "num_pinned")
    CORE_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_STORED_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAG_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWERS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_ABSORBED_FIELD_NUMBER: _ClassVar[int]
    NUM_PARKED_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    NUM_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_REBASED_FIELD_NUMBER: _ClassVar[int]
    NUM_PINNED_FIELD_NUMBER: _ClassVar[int]
    core: str
    num_users_stored: int
    num_users_resident: int
    resident_bytes: int
    lag_interactions: int
    num_answers_running: int
    num_absorbed: int
    num_parked: int
    absorbed_tokens: int
    answered_tokens: int
    busy_s: float
    num_versions: int
    num_rebased: int
    num_pinned: int
    def __init__(self, core: _Optional[str] = ..., num_users_stored: _Optional[int] = ..., num_users_resident: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., lag_interactions: _Optional[int] = ..., num_answers_running: _Optional[int] = ..., num_absorbed: _Optional[int] = ..., num_parked: _Optional[int] = ..., absorbed_tokens: _Optional[int] = ..., answered_tokens: _Optional[int] = ..., busy_s: _Optional[float] = ..., num_versions: _Optional[int] = ..., num_rebased: _Optional[int] = ..., num_pinned: _Optional[int] = ...) -> None: ...

class ListShardsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListShardsResponse(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    def __init__(self, shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("name", "state", "partitions", "num_users_resident", "resident_bytes", "absorbed_per_s", "answered_tokens_per_s", "num_parked")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_PER_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PARKED_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionPlace]
    num_users_resident: int
    resident_bytes: int
    absorbed_per_s: float
    answered_tokens_per_s: float
    num_parked: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionPlace, _Mapping]]] = ..., num_users_resident: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., absorbed_per_s: _Optional[float] = ..., answered_tokens_per_s: _Optional[float] = ..., num_parked: _Optional[int] = ...) -> None: ...

class PartitionPlace(_message.Message):
    __slots__ = ("partition", "epoch", "position", "lag_interactions", "is_damaged")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAG_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    IS_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    partition: int
    epoch: int
    position: int
    lag_interactions: int
    is_damaged: bool
    def __init__(self, partition: _Optional[int] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., lag_interactions: _Optional[int] = ..., is_damaged: _Optional[bool] = ...) -> None: ...
