"""Every method through a real client over a real port."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing

import grpc
import pytest
from echo_host import CORE, UNLEARNABLE, EchoHost
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import GatewayConfig
from siltstone.errors import Overloaded, Unavailable
from siltstone.journal.admit import AdmissionLimits, decode
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Consent,
    FinishReason,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Parking,
    ParkReason,
    Role,
    Sampling,
    UserKey,
)
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import SERVICES, Gateway

ADA, BEN = UserKey("office", "ada"), UserKey("office", "ben")
AGREED = Consent(learn=True)


def document(name: str, text: str = "The depot opens at seven.", owner: UserKey = ADA) -> Interaction:
    return Interaction(name, owner, InteractionKind.DOCUMENT, 1_700_000_000_000, (Message(Role.USER, text),))


def question(text: str = "When does the depot open?", owner: UserKey = ADA, **changes: object) -> GenerateRequest:
    return GenerateRequest(owner, (Message(Role.USER, text),), **changes)  # type: ignore[arg-type]


async def test_what_is_recorded_changes_the_next_answer_and_nobody_elses(client: SiltstoneClient) -> None:
    before, first = await client.answer(question("When?"))
    (receipt,) = await client.record([document("a", "seven")], wait_absorbed=True)
    after, second = await client.answer(question("When?"))
    others, other = await client.answer(question("When?", BEN))
    assert (before, after, others) == ("When? ", "When? seven ", "When? ")
    assert (first.snapshot_sequence, second.snapshot_sequence, other.snapshot_sequence) == (0, 1, 0)
    assert (receipt.interaction_id, receipt.duplicate) == ("a", False)


async def test_an_answer_names_its_core_its_snapshot_and_its_end(client: SiltstoneClient) -> None:
    _, end = await client.answer(question("one two three", sampling=Sampling(max_tokens=2)))
    assert end == AnswerEnd(FinishReason.MAX_TOKENS, CORE, 0, 3, 2)


async def test_the_bare_core_and_the_recall_modes_are_passed_on(client: SiltstoneClient) -> None:
    await client.record([document("a", "seven")], wait_absorbed=True)
    assert (await client.answer(question("When?", core_only=True)))[0] == "When? "
    text, end = await client.answer(question("When?", recall="text"))
    assert (text, end.recalled) == ("When? ", ("seven",))
    text, end = await client.answer(question("When?", recall="both"))
    assert (text, end.recalled) == ("When? seven ", ("seven",))


async def test_an_exchange_is_recorded_only_with_consent(client: SiltstoneClient) -> None:
    _, end = await client.answer(question("Remember this", interaction_id="x"))
    assert end.recorded is None
    _, end = await client.answer(question("Remember this", interaction_id="x", consent=AGREED))
    assert end.recorded is not None
    assert end.recorded.interaction_id == "x"
    assert (await client.memory(ADA)).num_interactions == 1


async def test_the_same_id_sent_again_is_the_same_interaction(client: SiltstoneClient) -> None:
    (first,) = await client.record([document("a")])
    again, other = await client.record([document("a"), document("a", owner=BEN)])
    assert (again.position, again.partition, again.duplicate) == (first.position, first.partition, True)
    assert other.duplicate is False
    assert (await client.memory(ADA)).num_interactions == 1


async def test_who_waits_is_told_what_was_parked_and_why(client: SiltstoneClient) -> None:
    good, bad = await client.record([document("a"), document("b", UNLEARNABLE)], wait_absorbed=True)
    assert good.parked is None
    assert bad.parked == Parking(ParkReason.NOT_FINITE, "memory: expected finite numbers, found NaN or infinity")
    (again,) = await client.record([document("b", UNLEARNABLE)], wait_absorbed=True)
    assert again == dataclasses.replace(bad, duplicate=True)
    (not_waited_for,) = await client.record([document("b", UNLEARNABLE)])
    assert not_waited_for.parked is None


async def test_who_waits_is_told_of_parked_feedback_too(client: SiltstoneClient) -> None:
    exchange = (Message(Role.USER, UNLEARNABLE), Message(Role.ASSISTANT, "At seven."))
    thumb = Interaction("t", ADA, InteractionKind.THUMB_UP, 1, exchange)
    told = await client.feedback(thumb, wait_absorbed=True)
    assert told.parked is not None
    assert told.parked.reason is ParkReason.NOT_FINITE


async def test_waiting_returns_only_when_all_is_absorbed(client: SiltstoneClient, host: EchoHost) -> None:
    host.is_paused = True
    waiting = asyncio.create_task(client.record([document("a")], wait_absorbed=True))
    while not (await client.status()).lag_interactions:
        await asyncio.sleep(0.01)
    assert not waiting.done()
    await host.absorb()
    (receipt,) = await waiting
    assert receipt.interaction_id == "a"


@pytest.mark.parametrize("kind", [InteractionKind.CORRECTION, InteractionKind.THUMB_UP, InteractionKind.THUMB_DOWN])
async def test_feedback_is_an_interaction_of_its_kind(client: SiltstoneClient, kind: InteractionKind) -> None:
    exchange = (Message(Role.USER, "When?"), Message(Role.ASSISTANT, "At nine."))
    correction = "At seven." if kind is InteractionKind.CORRECTION else ""
    feedback = Interaction("f", ADA, kind, 1_700_000_000_000, exchange, correction)
    receipt = await client.feedback(feedback, wait_absorbed=True)
    again = await client.feedback(feedback)
    assert (receipt.duplicate, again.duplicate) == (False, True)
    (record,) = (await client.export(ADA)).journal
    assert decode(record.payload) == feedback


async def test_an_interaction_without_a_time_happened_when_it_came(client: SiltstoneClient) -> None:
    before_ms = SystemClock().now_ms()
    await client.record([Interaction("a", ADA, InteractionKind.DOCUMENT, 0, (Message(Role.USER, "text"),))])
    (record,) = (await client.export(ADA)).journal
    assert before_ms <= decode(record.payload).occurred_at_ms <= SystemClock().now_ms()


async def test_a_user_never_met_has_an_empty_memory(client: SiltstoneClient) -> None:
    card = await client.memory(BEN)
    assert (card.owner, card.sequence, card.num_interactions, card.size_bytes) == (BEN, 0, 0, 0)
    export = await client.export(BEN)
    assert (export.snapshot, export.journal, export.parked) == (None, (), ())


async def test_an_export_is_everything_in_chunks(client: SiltstoneClient, host: EchoHost) -> None:
    await client.record([document("a", "x" * 100), document("b", "y" * 100)], wait_absorbed=True)
    export = await client.export(ADA)
    assert export == await host.export(ADA)
    assert export.snapshot is not None
    assert len(export.snapshot.blob) > 2 * 16
    assert len(export.journal) == 2


async def test_a_forgotten_user_is_gone_and_the_others_are_not(client: SiltstoneClient) -> None:
    await client.record([document("a"), document("b", owner=BEN)], wait_absorbed=True)
    erasure = await client.forget(ADA)
    assert (erasure.had_memory, erasure.num_interactions) == (True, 1)
    assert (await client.forget(ADA)).had_memory is False
    assert (await client.memory(ADA)).num_interactions == 0
    assert all(not record.payload for record in (await client.export(ADA)).journal)
    assert (await client.memory(BEN)).num_interactions == 1


async def test_scores_come_in_the_order_of_the_answers(client: SiltstoneClient) -> None:
    await client.record([document("a", "seven")], wait_absorbed=True)
    prompt = (Message(Role.USER, "When?"), Message(Role.ASSISTANT, "At "))
    assert await client.score(ADA, prompt, ["nine", "seven"]) == [(-5.0, -4.0), (-1.0, -5.0)]


async def test_the_shards_are_told_with_all_that_they_own(client: SiltstoneClient, host: EchoHost) -> None:
    shards = await client.shards()
    assert shards == await host.shards()
    assert [len(shard.partitions) for shard in shards] == [4, 0]
    assert shards[1].absorbed_per_s is None


async def test_the_status_tells_what_the_shard_tells(client: SiltstoneClient, host: EchoHost) -> None:
    await client.record([document("a")])
    assert await client.status() == await host.status()


async def test_an_answer_given_up_stops_in_the_host(client: SiltstoneClient, host: EchoHost) -> None:
    host.pause_s = 0.05
    async with aclosing(client.generate(question("word " * 400))) as items:
        async for item in items:
            assert isinstance(item, AnswerPart)
            break
    await asyncio.wait_for(host.given_up.wait(), 10)
    assert host.num_running == 0


async def test_an_answer_heard_to_its_end_is_not_given_up(client: SiltstoneClient, host: EchoHost) -> None:
    async with aclosing(client.generate(question("word " * 4))) as items:
        assert [type(item) async for item in items] == [AnswerPart] * 4 + [AnswerEnd]
    await asyncio.wait_for(host.finished.wait(), 10)
    assert not host.given_up.is_set()


async def test_an_answer_ends_at_the_callers_deadline(gateway: Gateway, host: EchoHost) -> None:
    host.pause_s = 0.05
    async with SiltstoneClient(gateway.address, timeout_s=0.3) as hasty:
        with pytest.raises(Unavailable, match="the time allowed for it has passed"):
            await hasty.answer(question("word " * 400))
    await asyncio.wait_for(host.given_up.wait(), 10)


@pytest.mark.parametrize("max_call_s", [0.2, 20.0])
async def test_a_caller_without_a_deadline_gets_the_servers(max_call_s: float) -> None:
    host = EchoHost(pause_s=0.05)
    config = GatewayConfig(port=0, max_call_s=max_call_s)
    async with (
        Gateway(host, config, AdmissionLimits(), SystemClock()) as gateway,
        SiltstoneClient(gateway.address) as client,
    ):
        if max_call_s < 1:
            with pytest.raises(Unavailable, match="time allowed"):
                await client.answer(question("word " * 12))
            await asyncio.wait_for(host.given_up.wait(), 10)
        else:
            assert (await client.answer(question("word " * 12)))[1].num_answer_tokens == 12


async def test_more_calls_than_the_limit_are_told_when_to_try_again() -> None:
    host = EchoHost(pause_s=0.05)
    config = GatewayConfig(port=0, max_calls=1, retry_after_s=0.25)
    async with (
        Gateway(host, config, AdmissionLimits(), SystemClock()) as gateway,
        SiltstoneClient(gateway.address) as client,
    ):
        async with aclosing(client.generate(question("word " * 400))) as items:
            await anext(items)
            with pytest.raises(Overloaded) as refusal:
                await client.memory(ADA)
        assert (refusal.value.limit, refusal.value.retry_after_s) == (1, 0.25)
        await asyncio.wait_for(host.given_up.wait(), 10)
        # The place is free again.
        while True:
            try:
                assert (await client.memory(ADA)).sequence == 0
                break
            except Overloaded:
                await asyncio.sleep(0.01)


async def test_a_host_that_lags_is_passed_on_with_when_to_try_again(client: SiltstoneClient, host: EchoHost) -> None:
    host.is_paused, host.max_lag = True, 1
    await client.record([document("a")])
    with pytest.raises(Overloaded) as refusal:
        await client.record([document("b")])
    assert refusal.value.args == ("the echo journal", 1, 0.02)


async def test_health_is_told_for_each_service(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Check(health_pb2.HealthCheckRequest(service="siltstone.proto.v1.NoSuchService"))


@pytest.mark.parametrize("has_reflection", [True, False])
async def test_the_interface_describes_itself_when_it_may(has_reflection: bool) -> None:
    config = GatewayConfig(port=0, has_reflection=has_reflection)
    async with Gateway(EchoHost(), config, AdmissionLimits(), SystemClock()) as gateway:
        if has_reflection:
            assert set(await asyncio.to_thread(reflected_services, gateway.address)) > set(SERVICES)
        else:
            with pytest.raises(grpc.RpcError):
                await asyncio.to_thread(reflected_services, gateway.address)


def reflected_services(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        return list(ProtoReflectionDescriptorDatabase(channel).get_services())


@pytest.mark.parametrize("budget_s", [20.0, 0.1])
async def test_a_stop_lets_running_answers_end_within_its_budget(
    budget_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    host = EchoHost(pause_s=0.02)
    gateway = Gateway(host, GatewayConfig(port=0, drain_budget_s=budget_s), AdmissionLimits(), SystemClock())
    async with gateway, SiltstoneClient(gateway.address) as client:
        watch = watch_health(gateway.address)
        assert await anext(watch) == health_pb2.HealthCheckResponse.SERVING
        items = client.generate(question("word " * 40))
        await anext(items)
        stop = asyncio.create_task(gateway.drain())
        assert await anext(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(Unavailable, match="the server is unavailable: it is stopping"):
            await client.memory(ADA)
        if budget_s > 1:
            rest = [item async for item in items]
            assert isinstance(rest[-1], AnswerEnd)
            assert len(rest) == 40
        else:
            with pytest.raises(Unavailable):
                [item async for item in items]
            assert host.given_up.is_set()
        await stop
        await watch.aclose()
        (stopped,) = [record for record in caplog.records if record.message == "gateway stopped"]
        assert vars(stopped)["num_given_up"] == (0 if budget_s > 1 else 1)
        with pytest.raises(Unavailable, match=gateway.address):
            await client.memory(ADA)


async def watch_health(address: str):  # type: ignore[no-untyped-def]
    async with grpc.aio.insecure_channel(address) as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        try:
            async for answer in call:
                yield answer.status
        finally:
            call.cancel()


async def test_a_taken_port_is_told(gateway: Gateway) -> None:
    port = int(gateway.address.rpartition(":")[2])
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} is unavailable: it is in use"):
        async with Gateway(EchoHost(), GatewayConfig(port=port), AdmissionLimits(), SystemClock()):
            pass


async def test_no_server_is_told() -> None:
    async with SiltstoneClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"the server at 127\.0\.0\.1:1"):
            await client.status()
