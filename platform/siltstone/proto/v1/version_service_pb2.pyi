from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_CANDIDATE: _ClassVar[VersionState]
    VERSION_STATE_ACCEPTED: _ClassVar[VersionState]
    VERSION_STATE_SERVING: _ClassVar[VersionState]
    VERSION_STATE_RETIRED: _ClassVar[VersionState]
    VERSION_STATE_REFUSED: _ClassVar[VersionState]
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_CANDIDATE: VersionState
VERSION_STATE_ACCEPTED: VersionState
VERSION_STATE_SERVING: VersionState
VERSION_STATE_RETIRED: VersionState
VERSION_STATE_REFUSED: VersionState

class VersionCard(_message.Message):
    __slots__ = ("number", "digest", "state", "parent", "sleep_id", "num_people", "num_interactions", "seeds", "code_revision", "created_at_ms", "evidence_digest", "first_served_epoch", "seal")
    class SeedsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SLEEP_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PEOPLE_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    CODE_REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_SERVED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    state: VersionState
    parent: str
    sleep_id: str
    num_people: int
    num_interactions: int
    seeds: _containers.ScalarMap[str, int]
    code_revision: str
    created_at_ms: int
    evidence_digest: str
    first_served_epoch: int
    seal: str
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[VersionState, str]] = ..., parent: _Optional[str] = ..., sleep_id: _Optional[str] = ..., num_people: _Optional[int] = ..., num_interactions: _Optional[int] = ..., seeds: _Optional[_Mapping[str, int]] = ..., code_revision: _Optional[str] = ..., created_at_ms: _Optional[int] = ..., evidence_digest: _Optional[str] = ..., first_served_epoch: _Optional[int] = ..., seal: _Optional[str] = ...) -> None: ...

class CheckResult(_message.Message):
    __slots__ = ("check", "passed", "reason", "value", "limit", "smallest_effect", "unit", "num_items")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_EFFECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    check: str
    passed: bool
    reason: str
    value: float
    limit: float
    smallest_effect: float
    unit: str
    num_items: int
    def __init__(self, check: _Optional[str] = ..., passed: _Optional[bool] = ..., reason: _Optional[str] = ..., value: _Optional[float] = ..., limit: _Optional[float] = ..., smallest_effect: _Optional[float] = ..., unit: _Optional[str] = ..., num_items: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("candidate", "policy", "accepted", "results")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    policy: str
    accepted: bool
    results: _containers.RepeatedCompositeFieldContainer[CheckResult]
    def __init__(self, candidate: _Optional[str] = ..., policy: _Optional[str] = ..., accepted: _Optional[bool] = ..., results: _Optional[_Iterable[_Union[CheckResult, _Mapping]]] = ...) -> None: ...

class MeasurementSummary(_message.Message):
    __slots__ = ("name", "unit", "num_items", "candidate", "champion", "origin", "higher_is_better")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    CHAMPION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    num_items: int
    candidate: float
    champion: float
    origin: float
    higher_is_better: bool
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., num_items: _Optional[int] = ..., candidate: _Optional[float] = ..., champion: _Optional[float] = ..., origin: _Optional[float] = ..., higher_is_better: _Optional[bool] = ...) -> None: ...

class Champion(_message.Message):
    __slots__ = ("number", "digest", "epoch")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    epoch: int
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token", "champion")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHAMPION_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionCard]
    next_page_token: str
    champion: Champion
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionCard, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., champion: _Optional[_Union[Champion, _Mapping]] = ...) -> None: ...

class GetVersionRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("version", "verdict", "measurements")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    version: VersionCard
    verdict: Verdict
    measurements: _containers.RepeatedCompositeFieldContainer[MeasurementSummary]
    def __init__(self, version: _Optional[_Union[VersionCard, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[MeasurementSummary, _Mapping]]] = ...) -> None: ...

class ExplainVerdictRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class ExplainVerdictResponse(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...

class VersionReport(_message.Message):
    __slots__ = ("version", "verdict", "measurements")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    version: VersionCard
    verdict: Verdict
    measurements: _containers.RepeatedCompositeFieldContainer[MeasurementSummary]
    def __init__(self, version: _Optional[_Union[VersionCard, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[MeasurementSummary, _Mapping]]] = ...) -> None: ...

class OriginDifference(_message.Message):
    __slots__ = ("name", "value", "other")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    other: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., other: _Optional[str] = ...) -> None: ...

class CompareVersionsRequest(_message.Message):
    __slots__ = ("number", "other")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    number: int
    other: int
    def __init__(self, number: _Optional[int] = ..., other: _Optional[int] = ...) -> None: ...

class CompareVersionsResponse(_message.Message):
    __slots__ = ("version", "other", "origins")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    version: VersionReport
    other: VersionReport
    origins: _containers.RepeatedCompositeFieldContainer[OriginDifference]
    def __init__(self, version: _Optional[_Union[VersionReport, _Mapping]] = ..., other: _Optional[_Union[VersionReport, _Mapping]] = ..., origins: _Optional[_Iterable[_Union[OriginDifference, _Mapping]]] = ...) -> None: ...

class GetChampionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetChampionResponse(_message.Message):
    __slots__ = ("champion",)
    CHAMPION_FIELD_NUMBER: _ClassVar[int]
    champion: Champion
    def __init__(self, champion: _Optional[_Union[Champion, _Mapping]] = ...) -> None: ...

class PromoteVersionRequest(_message.Message):
    __slots__ = ("number", "expected_epoch")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    number: int
    expected_epoch: int
    def __init__(self, number: _Optional[int] = ..., expected_epoch: _Optional[int] = ...) -> None: ...

class PromoteVersionResponse(_message.Message):
    __slots__ = ("champion",)
    CHAMPION_FIELD_NUMBER: _ClassVar[int]
    champion: Champion
    def __init__(self, champion: _Optional[_Union[Champion, _Mapping]] = ...) -> None: ...

class RollbackVersionRequest(_message.Message):
    __slots__ = ("expected_epoch",)
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    expected_epoch: int
    def __init__(self, expected_epoch: _Optional[int] = ...) -> None: ...

class RollbackVersionResponse(_message.Message):
    __slots__ = ("champion",)
    CHAMPION_FIELD_NUMBER: _ClassVar[int]
    champion: Champion
    def __init__(self, champion: _Optional[_Union[Champion, _Mapping]] = ...) -> None: ...
