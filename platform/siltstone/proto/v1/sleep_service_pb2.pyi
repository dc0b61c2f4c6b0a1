from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NightStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NIGHT_STAGE_UNSPECIFIED: _ClassVar[NightStage]
    NIGHT_STAGE_PLAN: _ClassVar[NightStage]
    NIGHT_STAGE_DREAM: _ClassVar[NightStage]
    NIGHT_STAGE_DISTIL: _ClassVar[NightStage]
    NIGHT_STAGE_MEASURE: _ClassVar[NightStage]
    NIGHT_STAGE_RECORD: _ClassVar[NightStage]
    NIGHT_STAGE_JUDGE: _ClassVar[NightStage]
    NIGHT_STAGE_DONE: _ClassVar[NightStage]
    NIGHT_STAGE_FAILED: _ClassVar[NightStage]
    NIGHT_STAGE_CANCELLED: _ClassVar[NightStage]
NIGHT_STAGE_UNSPECIFIED: NightStage
NIGHT_STAGE_PLAN: NightStage
NIGHT_STAGE_DREAM: NightStage
NIGHT_STAGE_DISTIL: NightStage
NIGHT_STAGE_MEASURE: NightStage
NIGHT_STAGE_RECORD: NightStage
NIGHT_STAGE_JUDGE: NightStage
NIGHT_STAGE_DONE: NightStage
NIGHT_STAGE_FAILED: NightStage
NIGHT_STAGE_CANCELLED: NightStage

class Night(_message.Message):
    __slots__ = ("number", "stage", "step", "num_steps", "said", "seed", "since_ms", "started_at_ms", "updated_at_ms", "pid", "is_cancelling", "version", "verdict", "error", "task")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    IS_CANCELLING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    number: int
    stage: NightStage
    step: int
    num_steps: int
    said: str
    seed: int
    since_ms: int
    started_at_ms: int
    updated_at_ms: int
    pid: int
    is_cancelling: bool
    version: int
    verdict: str
    error: str
    task: str
    def __init__(self, number: _Optional[int] = ..., stage: _Optional[_Union[NightStage, str]] = ..., step: _Optional[int] = ..., num_steps: _Optional[int] = ..., said: _Optional[str] = ..., seed: _Optional[int] = ..., since_ms: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., updated_at_ms: _Optional[int] = ..., pid: _Optional[int] = ..., is_cancelling: _Optional[bool] = ..., version: _Optional[int] = ..., verdict: _Optional[str] = ..., error: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class RunNightRequest(_message.Message):
    __slots__ = ("seed", "since_ms")
    SEED_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    seed: int
    since_ms: int
    def __init__(self, seed: _Optional[int] = ..., since_ms: _Optional[int] = ...) -> None: ...

class RunNightResponse(_message.Message):
    __slots__ = ("night",)
    NIGHT_FIELD_NUMBER: _ClassVar[int]
    night: Night
    def __init__(self, night: _Optional[_Union[Night, _Mapping]] = ...) -> None: ...

class RunTaskRequest(_message.Message):
    __slots__ = ("content", "seed")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    seed: int
    def __init__(self, content: _Optional[bytes] = ..., seed: _Optional[int] = ...) -> None: ...

class RunTaskResponse(_message.Message):
    __slots__ = ("night",)
    NIGHT_FIELD_NUMBER: _ClassVar[int]
    night: Night
    def __init__(self, night: _Optional[_Union[Night, _Mapping]] = ...) -> None: ...

class GetNightRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class GetNightResponse(_message.Message):
    __slots__ = ("night",)
    NIGHT_FIELD_NUMBER: _ClassVar[int]
    night: Night
    def __init__(self, night: _Optional[_Union[Night, _Mapping]] = ...) -> None: ...

class ListNightsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNightsResponse(_message.Message):
    __slots__ = ("nights",)
    NIGHTS_FIELD_NUMBER: _ClassVar[int]
    nights: _containers.RepeatedCompositeFieldContainer[Night]
    def __init__(self, nights: _Optional[_Iterable[_Union[Night, _Mapping]]] = ...) -> None: ...

class WatchNightRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class WatchNightResponse(_message.Message):
    __slots__ = ("night",)
    NIGHT_FIELD_NUMBER: _ClassVar[int]
    night: Night
    def __init__(self, night: _Optional[_Union[Night, _Mapping]] = ...) -> None: ...

class CancelNightRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class CancelNightResponse(_message.Message):
    __slots__ = ("night",)
    NIGHT_FIELD_NUMBER: _ClassVar[int]
    night: Night
    def __init__(self, night: _Optional[_Union[Night, _Mapping]] = ...) -> None: ...
