"""Errors as gRPC statuses with details, and back: the only place that knows both."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from siltstone import errors
from siltstone.errors import (
    Cancelled,
    ConfigInvalid,
    Corrupt,
    InvalidInput,
    KeyMissing,
    NotFound,
    NotOwner,
    Overloaded,
    PositionConflict,
    SiltstoneError,
    SnapshotMismatch,
    StaleEpoch,
    StaleLease,
    Unavailable,
    WrongState,
)
from siltstone.values import ParkReason

DOMAIN: Final = "siltstone"
CODES: Final[dict[type[SiltstoneError], grpc.StatusCode]] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Cancelled: grpc.StatusCode.CANCELLED,
    StaleLease: grpc.StatusCode.ABORTED,
    PositionConflict: grpc.StatusCode.ABORTED,
    StaleEpoch: grpc.StatusCode.ABORTED,
    NotOwner: grpc.StatusCode.UNAVAILABLE,
    Corrupt: grpc.StatusCode.DATA_LOSS,
    KeyMissing: grpc.StatusCode.DATA_LOSS,
    SnapshotMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    SiltstoneError: grpc.StatusCode.INTERNAL,
}
# A client's default limit for all metadata of a call is 8 KiB.
_MAX_TEXT_CHARS: Final = 400
_RETRY_AFTER_S: Final = 2.0
"""Seconds after which to ask again for what does not answer now. When it will is not known; without a word clients ask
again at once, all of them."""


class Refused(InvalidInput):
    """An interaction that is not admitted. Args: field, expected, found, reason."""

    def __init__(self, field: str, expected: str, found: str, reason: ParkReason) -> None:
        super().__init__(field, expected, found)
        self.args = (field, expected, found, reason)
        self.reason = reason


def to_status(error: SiltstoneError) -> status_pb2.Status:
    """Returns the status of an error: its code, one clear line, and its data as details."""
    kind = _kind_of(type(error))
    data = {name: getattr(error, name) for name in _parameters(kind)}
    info = error_details_pb2.ErrorInfo(
        reason=_reason(kind), domain=DOMAIN, metadata={name: _clip(str(value)) for name, value in data.items()}
    )
    return status_pb2.Status(
        code=CODES[kind].value[0],
        message=_clip(str(error)),
        details=[_pack(info), *map(_pack, _more_details(error))],
    )


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> SiltstoneError:
    """Returns the error that a server at `address` sent, or the one that fits what befell the call on its way."""
    sent = _read_status(error)
    for detail in sent.details if sent is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            rebuilt = _rebuild(info)
            if rebuilt is not None:
                return rebuilt
    text = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"the answer of {address}", "the time allowed for it has passed")
        case grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInput("request", "a message within the limits of the server", text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return NotFound("method", text)
        case _:
            return Unavailable(f"the server at {address}", text)


def _kind_of(error: type[SiltstoneError]) -> type[SiltstoneError]:
    for kind in error.__mro__:
        if kind in CODES:
            return kind
    raise TypeError(f"{error.__name__} is no SiltstoneError")


def _more_details(error: SiltstoneError) -> list[Any]:
    match error:
        case InvalidInput():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_clip(error.field),
                description=_clip(f"expected {error.expected}, found {error.found}"),
                reason=error.reason.name if isinstance(error, Refused) else _reason(InvalidInput),
            )
            return [error_details_pb2.BadRequest(field_violations=[violation])]
        case NotFound():
            return [error_details_pb2.ResourceInfo(resource_type=_clip(error.kind), resource_name=_clip(error.name))]
        case Overloaded():
            return [_retry_after(error.retry_after_s)]
        case Unavailable():
            return [_retry_after(_RETRY_AFTER_S)]
        case _:
            return []


def _retry_after(delay_s: float) -> Any:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(round(delay_s * 1000))
    return retry


def _rebuild(info: error_details_pb2.ErrorInfo) -> SiltstoneError | None:
    """Returns the error an ErrorInfo was made from, or None for one of a version we do not know."""
    for kind in CODES:
        if _reason(kind) == info.reason:
            try:
                return kind(*(convert(info.metadata[name]) for name, convert in _parameters(kind).items()))
            except ValueError:
                return None
    return None


def _parameters(kind: type[SiltstoneError]) -> dict[str, type]:
    if kind.__init__ is errors.SiltstoneError.__init__:
        return {}
    hints = typing.get_type_hints(kind.__init__)
    return {name: hints[name] for name in inspect.signature(kind).parameters}


def _reason(kind: type[SiltstoneError]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def _pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _read_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)
    except ValueError:
        # Details that contradict their own status, or are no status at all, tell nothing.
        return None


def _clip(text: str) -> str:
    """Cuts a text so that a status always fits into the metadata; a lone surrogate would not fit at all."""
    text = text if len(text) <= _MAX_TEXT_CHARS else text[: _MAX_TEXT_CHARS - 3] + "..."
    return text.encode("utf-8", "replace").decode()
