"""What cannot be is refused with what was expected and found; nothing of it is written, and nobody else notices."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import grpc
import pytest
from echo_host import EchoHost
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import GatewayConfig
from siltstone.errors import InvalidInput
from siltstone.journal.admit import AdmissionLimits
from siltstone.proto.v1 import inference_service_pb2, interaction_pb2, memory_service_pb2
from siltstone.proto.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from siltstone.values import (
    Consent,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Role,
    Sampling,
    UserKey,
)
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import Gateway
from siltstone_services.servicers import MemoryServicer

ADA, BEN = UserKey("office", "ada"), UserKey("office", "ben")
GOOD = Interaction("a", ADA, InteractionKind.DOCUMENT, 1_700_000_000_000, (Message(Role.USER, "The depot opens."),))
EXCHANGE = (Message(Role.USER, "When?"), Message(Role.ASSISTANT, "At nine."))
ASKED = GenerateRequest(ADA, (Message(Role.USER, "When?"),))

BAD_INTERACTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    # what is changed, the field that is named, the reason
    "an id with slashes": ({"id": "../../etc/passwd"}, "interactions[1].id", "UNDECODABLE"),
    "an id of 10 kB": ({"id": "a" * 10_000}, "interactions[1].id", "UNDECODABLE"),
    "no id": ({"id": ""}, "interactions[1].id", "UNDECODABLE"),
    "a user with slashes": ({"owner": UserKey("office", "a/b")}, "interactions[1].user", "UNDECODABLE"),
    "a user of 10 kB": ({"owner": UserKey("office", "u" * 10_000)}, "interactions[1].user", "UNDECODABLE"),
    "no tenant": ({"owner": UserKey("", "ada")}, "interactions[1].tenant", "UNDECODABLE"),
    "no messages": ({"messages": ()}, "interactions[1].messages", "EMPTY"),
    "white space": ({"messages": (Message(Role.USER, " \n "),)}, "interactions[1].messages[0].text", "EMPTY"),
    "a NUL": ({"messages": (Message(Role.USER, "a\0b"),)}, "interactions[1].messages[0].text", "UNDECODABLE"),
    "too much text": ({"messages": (Message(Role.USER, "x" * 70_000),)}, "interactions[1].text", "TOO_LARGE"),
    "too many messages": ({"messages": EXCHANGE * 40}, "interactions[1].messages", "TOO_LARGE"),
    "a document of two": ({"messages": EXCHANGE}, "interactions[1].messages", "WRONG_ROLES"),
    "a thumb without an answer": ({"kind": InteractionKind.THUMB_UP}, "interactions[1].messages", "WRONG_ROLES"),
    "a system message last": (
        {"kind": InteractionKind.CONVERSATION, "messages": (*EXCHANGE, Message(Role.SYSTEM, "Obey."))},
        "interactions[1].messages",
        "WRONG_ROLES",
    ),
    "no consent": ({"consent": Consent(learn=False, share=True)}, "interactions[1].consent.learn", "NO_CONSENT"),
    "a future schema": ({"schema_version": 99}, "interactions[1].schema_version", "INVALID_INPUT"),
    "a time before 1970": ({"occurred_at_ms": -1}, "interactions[1].occurred_at_ms", "UNDECODABLE"),
}


@pytest.mark.parametrize("case", BAD_INTERACTIONS)
async def test_a_bad_interaction_is_refused_and_the_good_one_beside_it_is_not_written(
    client: SiltstoneClient, host: EchoHost, case: str
) -> None:
    changes, field, reason = BAD_INTERACTIONS[case]
    with pytest.raises(InvalidInput) as refusal:
        await client.record([GOOD, dataclasses.replace(GOOD, **{"id": "b", **changes})])
    assert refusal.value.field == field
    assert violation_of(refusal.value).reason == reason
    assert len(str(refusal.value)) < 500
    assert (await host.export(ADA)).journal == ()
    await client.record([dataclasses.replace(GOOD, owner=BEN)])


@pytest.mark.parametrize("case", [case for case, (_, _, reason) in BAD_INTERACTIONS.items() if reason == "UNDECODABLE"])
async def test_it_is_the_gateway_that_refuses(case: str) -> None:
    changes, _, _ = BAD_INTERACTIONS[case]
    (receipt,) = await EchoHost().record([dataclasses.replace(GOOD, **changes)])
    assert not receipt.duplicate


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"owner": UserKey("office", "a/b")}, "owner.user"),
        ({"owner": UserKey("x" * 10_000, "ada")}, "owner.tenant"),
        ({"messages": ()}, "messages"),
        ({"messages": (Message(Role.USER, ""),)}, "messages[0].text"),
        ({"messages": EXCHANGE}, "messages"),
        ({"messages": (Message(Role.SYSTEM, "Obey."),)}, "messages"),
        ({"messages": (Message(Role.USER, "x" * 70_000),)}, "text"),
        ({"messages": (Message(Role.USER, "x " * 600),)}, "messages"),
        ({"sampling": Sampling(max_tokens=0)}, "sampling.max_tokens"),
        ({"sampling": Sampling(max_tokens=1_000_000)}, "sampling.max_tokens"),
        ({"sampling": Sampling(temperature=-1.0)}, "sampling.temperature"),
        ({"sampling": Sampling(temperature=10.5)}, "sampling.temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": Sampling(temperature=float("inf"))}, "sampling.temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "sampling.top_p"),
        ({"sampling": Sampling(top_p=float("nan"))}, "sampling.top_p"),
        ({"interaction_id": "a/b"}, "interaction_id"),
        ({"consent": Consent(learn=True)}, "interaction_id"),
    ],
)
async def test_what_cannot_be_answered_is_refused(client: SiltstoneClient, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await client.answer(dataclasses.replace(ASKED, **changes))
    assert refusal.value.field == field
    assert (await client.answer(ASKED))[0] == "When? "


@pytest.mark.parametrize(
    ("prompt", "answers", "field"),
    [
        ((), [], "answers"),
        ((Message(Role.USER, "\0"),), ["a"], "prompt[0].text"),
        (EXCHANGE, [], "answers"),
        (EXCHANGE, ["a"] * 5, "answers"),
        (EXCHANGE, ["a", ""], "answers[1]"),
        (EXCHANGE, ["x" * 70_000], "answers"),
    ],
)
async def test_what_cannot_be_scored_is_refused(
    client: SiltstoneClient, prompt: tuple[Message, ...], answers: list[str], field: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await client.score(ADA, prompt, answers)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("feedback", "field"),
    [
        (Interaction("f", ADA, InteractionKind.CORRECTION, 1, EXCHANGE, correction=" "), "correction"),
        (Interaction("f", ADA, InteractionKind.THUMB_UP, 1, EXCHANGE, correction="text"), "correction"),
        (Interaction("f", ADA, InteractionKind.THUMB_UP, 1, EXCHANGE[:1]), "exchange"),
        (
            Interaction("f", ADA, InteractionKind.THUMB_UP, 1, (Message(Role.USER, " "), EXCHANGE[1])),
            "exchange[0].text",
        ),
        (Interaction("f", ADA, InteractionKind.THUMB_UP, 1, EXCHANGE, consent=Consent(False)), "consent.learn"),
    ],
)
async def test_feedback_that_cannot_be_is_refused(client: SiltstoneClient, feedback: Interaction, field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await client.feedback(feedback)
    assert refusal.value.field == field


@pytest.mark.parametrize("call", ["memory", "export", "forget"])
@pytest.mark.parametrize("user", ["", "a/b", "..", "u" * 10_000, "a b", "a\n"])
async def test_every_method_refuses_a_user_that_cannot_be(client: SiltstoneClient, call: str, user: str) -> None:
    with pytest.raises(InvalidInput, match=r"owner\.user: expected 1 to 128 plain characters, no slash, found"):
        await getattr(client, call)(UserKey("office", user))


@pytest.mark.parametrize("num_interactions", [0, 9])
async def test_a_call_with_nothing_or_too_much_is_refused(client: SiltstoneClient, num_interactions: int) -> None:
    with pytest.raises(InvalidInput, match=f"interactions: expected 1 to 8, found {num_interactions}"):
        await client.record([dataclasses.replace(GOOD, id=f"a{n}") for n in range(num_interactions)])


async def test_a_refusal_tells_machines_what_it_tells_people(channel: grpc.aio.Channel) -> None:
    request = memory_service_pb2.GetMemoryRequest(owner=interaction_pb2.UserKey(tenant="office", user="a/b"))
    error = await refusal_of(channel, "MemoryService/GetMemory", request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    message = "owner.user: expected 1 to 128 plain characters, no slash, found 3 characters, starting 'a/b'"
    assert error.details() == message
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain, info.metadata["field"]) == ("INVALID_INPUT", "siltstone", "owner.user")
    (violation,) = bad_request.field_violations
    assert violation.field == "owner.user"
    assert violation.description == message.removeprefix("owner.user: ")


async def test_unknown_numbers_are_refused_by_name(channel: grpc.aio.Channel) -> None:
    owner = interaction_pb2.UserKey(tenant="office", user="ada")
    message = interaction_pb2.Message(role=77, text="hello")
    requests = {
        "interactions[0].kind": memory_service_pb2.RecordRequest(
            interactions=[interaction_pb2.Interaction(id="a", owner=owner, kind=42)]
        ),
        "interactions[0].messages[0].role": memory_service_pb2.RecordRequest(
            interactions=[interaction_pb2.Interaction(id="a", owner=owner, kind=1, messages=[message])]
        ),
        "kind": memory_service_pb2.FeedbackRequest(id="a", owner=owner, kind=9),
        "recall": inference_service_pb2.GenerateRequest(owner=owner, recall=9),
        "messages[0].role": inference_service_pb2.GenerateRequest(owner=owner, messages=[message]),
    }
    methods = {
        memory_service_pb2.RecordRequest: "MemoryService/Record",
        memory_service_pb2.FeedbackRequest: "MemoryService/Feedback",
        inference_service_pb2.GenerateRequest: "InferenceService/Generate",
    }
    for field, request in requests.items():
        error = await refusal_of(channel, methods[type(request)], request.SerializeToString())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.details()).startswith(f"{field}: expected one of 1 ("), error.details()


UNDECODABLE = [b"\xff\xff\xff\xff", b"\x0a\x05\x0a\x03\xff\xfe\xfd"]


@pytest.mark.parametrize("data", UNDECODABLE, ids=["no protobuf", "no UTF-8"])
@pytest.mark.parametrize("method", ["MemoryService/GetMemory", "InferenceService/Generate"])
async def test_bytes_that_cannot_be_read_are_refused_with_details(
    channel: grpc.aio.Channel, client: SiltstoneClient, method: str, data: bytes
) -> None:
    error = await refusal_of(channel, method, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.match(r"request: expected a protobuf message, its texts in UTF-8, found \d+ other bytes", error.details())
    assert (await client.memory(ADA)).sequence == 0


async def test_without_the_border_such_bytes_give_no_clear_answer() -> None:
    server = grpc.aio.server()
    servicer = MemoryServicer(EchoHost(), GatewayConfig(), AdmissionLimits(), SystemClock())
    add_MemoryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            error = await refusal_of(channel, "MemoryService/GetMemory", UNDECODABLE[0])
    finally:
        await server.stop(0)
    assert error.code() is not grpc.StatusCode.INVALID_ARGUMENT
    assert rpc_status.from_call(error) is None


async def test_a_message_over_the_limit_is_refused_and_the_server_goes_on(gateway: Gateway) -> None:
    async with SiltstoneClient(gateway.address, max_message_bytes=64 << 20) as client:
        huge = dataclasses.replace(GOOD, messages=(Message(Role.USER, "x" * (5 << 20)),))
        with pytest.raises(
            InvalidInput, match=r"a message within the limits of the server, found .*5242\d+ vs\. 4194304"
        ):
            await client.record([huge])
        just_below = dataclasses.replace(GOOD, messages=(Message(Role.USER, "x" * (3 << 20)),))
        with pytest.raises(InvalidInput, match=r"text: expected at most 65536 bytes, found 3145728 bytes"):
            await client.record([just_below])
        await client.record([GOOD])


class Broken(EchoHost):
    """A host with a fault that carries a user's words in its message."""

    async def memory(self, owner: UserKey) -> Any:
        raise KeyError("the secret words of ada")


async def test_an_unexpected_error_tells_its_kind_and_no_words(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(Broken(), GatewayConfig(port=0), AdmissionLimits(), SystemClock())
    async with gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        request = memory_service_pb2.GetMemoryRequest(owner=interaction_pb2.UserKey(tenant="office", user="ada"))
        error = await refusal_of(channel, "MemoryService/GetMemory", request.SerializeToString())
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error (KeyError)")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "call failed"
    fields = str(vars(record))
    assert "'memory:" in fields
    assert "secret" not in fields


async def refusal_of(channel: grpc.aio.Channel, method: str, data: bytes) -> grpc.aio.AioRpcError:
    """Calls a method with raw bytes and returns the error that comes back."""
    path = f"/siltstone.proto.v1.{method}"
    is_stream = method.endswith("Generate")
    call = channel.unary_stream(path)(data) if is_stream else channel.unary_unary(path)(data)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await (call.read() if is_stream else call)
    return refusal.value


def violation_of(error: InvalidInput) -> error_details_pb2.BadRequest.FieldViolation:
    """The field violation in the status that our error was made from."""
    assert isinstance(error.__cause__, grpc.aio.AioRpcError)
    for detail in rpc_status.from_call(error.__cause__).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return bad_request.field_violations[0]
    raise AssertionError("no BadRequest among the details")
