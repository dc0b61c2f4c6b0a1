from siltstone.proto.v1 import inference_service_pb2 as _inference_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResizeClusterRequest(_message.Message):
    __slots__ = ("num_shards",)
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    num_shards: int
    def __init__(self, num_shards: _Optional[int] = ...) -> None: ...

class ResizeClusterResponse(_message.Message):
    __slots__ = ("is_done", "shards")
    IS_DONE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    is_done: bool
    shards: _containers.RepeatedCompositeFieldContainer[_inference_service_pb2.Shard]
    def __init__(self, is_done: _Optional[bool] = ..., shards: _Optional[_Iterable[_Union[_inference_service_pb2.Shard, _Mapping]]] = ...) -> None: ...
