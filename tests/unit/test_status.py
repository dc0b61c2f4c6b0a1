"""Every error crosses the border whole."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from siltstone import errors
from siltstone.errors import (
    Corrupt,
    InvalidInput,
    KeyMissing,
    NotFound,
    Overloaded,
    SiltstoneError,
    StaleLease,
    Unavailable,
)
from siltstone.values import ParkReason
from siltstone_services.status import CODES, Refused, from_rpc_error, to_status

SAMPLES = [
    InvalidInput("owner.user", "plain characters", "a slash"),
    NotFound("core", "default"),
    errors.WrongState("version 3", "refused", "serve"),
    errors.ConfigInvalid("gateway", "port: expected 0 to 65535, found 70000"),
    Overloaded("the journal", 1000, 0.25),
    Unavailable("the store", "disk full"),
    errors.Cancelled("the training", 7, 120),
    StaleLease(3, 7, 9),
    errors.PositionConflict(3, 70, 71),
    errors.StaleEpoch(3, 4),
    errors.NotOwner(7),
    Corrupt("snapshot", "sha256 ab", "cd"),
    KeyMissing("memory of ada", "its key", "none"),
    errors.SnapshotMismatch("office/ada", "core a", "core b"),
    SiltstoneError(),
]


def received(error: SiltstoneError) -> grpc.aio.AioRpcError:
    """The error as a client's gRPC gives it."""
    status = rpc_status.to_status(to_status(error))
    trailing = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_left(error: SiltstoneError) -> None:
    arrived = from_rpc_error(received(error), "here")
    assert (type(arrived), arrived.args) == (type(error), error.args)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_what_may_be_tried_again_says_when(error: SiltstoneError) -> None:
    retry = error_details_pb2.RetryInfo()
    told = [retry.retry_delay.ToMilliseconds() for detail in to_status(error).details if detail.Unpack(retry)]
    expected = {Overloaded: [250], Unavailable: [2000]}
    assert told == expected.get(type(error), [])


def test_every_error_has_a_code_and_a_sample() -> None:
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SiltstoneError)}
    assert set(CODES) == known == {type(error) for error in SAMPLES}


def test_a_refusal_arrives_as_invalid_input_and_survives_pickling() -> None:
    refused = Refused("consent.learn", "true", "false", ParkReason.NO_CONSENT)
    arrived = from_rpc_error(received(refused), "here")
    assert (type(arrived), arrived.args) == (InvalidInput, ("consent.learn", "true", "false"))
    copy = pickle.loads(pickle.dumps(refused))
    assert (str(copy), copy.reason) == (str(refused), ParkReason.NO_CONSENT)


def test_an_enormous_error_still_fits_into_the_metadata() -> None:
    status = to_status(InvalidInput("f" * 100_000, "e" * 100_000, "\ud800" * 100_000))
    assert status.ByteSize() < 4096


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, InvalidInput),
        (grpc.StatusCode.UNIMPLEMENTED, NotFound),
        (grpc.StatusCode.INTERNAL, Unavailable),
    ],
)
def test_a_status_without_details_becomes_what_fits_its_code(code: grpc.StatusCode, kind: type[Exception]) -> None:
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "said so")
    assert type(from_rpc_error(bare, "here")) is kind


def test_details_that_contradict_their_status_are_not_believed() -> None:
    error = received(NotFound("core", "x"))
    lying = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), error.trailing_metadata(), error.details()
    )
    assert type(from_rpc_error(lying, "here")) is Unavailable
