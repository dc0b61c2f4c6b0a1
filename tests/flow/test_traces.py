"""A caller's trace goes with each of its interactions, whoever travels with it, and stands in the lines about it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from echo_host import EchoHost
from tiny_cluster import USERS, open_cluster
from tiny_home import ADA, add_tiny_core, asking, said

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import GatewayConfig
from siltstone.journal.admit import AdmissionLimits, decode, encode
from siltstone.ports import ShardHost
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.proto.v1.inference_service_pb2_grpc import InferenceServiceStub
from siltstone.proto.v1.memory_service_pb2_grpc import MemoryServiceStub
from siltstone.values import Consent, Interaction, InteractionKind, Message, Receipt, Role
from siltstone.wire.answers import generate_request_to_proto
from siltstone.wire.interactions import feedback_to_proto, interaction_to_proto
from siltstone_services.cluster.backends import Backends
from siltstone_services.cluster.router import ClusterHost
from siltstone_services.gateway import Gateway

FIRST = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECOND = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
MALFORMED = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)
    return tmp_path


@asynccontextmanager
async def channel_to(host: ShardHost) -> AsyncIterator[grpc.aio.Channel]:
    gateway = Gateway(host, GatewayConfig(port=0), AdmissionLimits(), SystemClock())
    async with gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        yield channel


async def record(channel: grpc.aio.Channel, interaction: Interaction, *traces: str) -> Any:
    request = memory_pb.RecordRequest(interactions=[interaction_to_proto(interaction)])
    return await MemoryServiceStub(channel).Record(request, metadata=_metadata(traces))


def _metadata(traces: Sequence[str]) -> list[tuple[str, str]]:
    return [("traceparent", trace) for trace in traces]


class KeepingJournal:
    """A journal that notes what is appended together, and does not begin before it may."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self.may_write = threading.Event()
        self.appends: list[list[tuple[str, str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        self.appends.append([(one.id, one.trace) for one in interactions])
        assert self.may_write.wait(30)
        return self._journal.append(interactions)  # type: ignore[no-any-return]


async def test_calls_that_travel_together_keep_each_its_own_trace(home: Path) -> None:
    async with open_cluster(home) as (plain, conductor, _):
        journal = KeepingJournal(plain._journal)
        backends = Backends(journal, plain._store, plain._sealer)
        host = ClusterHost(conductor, plain._resizing, backends, SystemClock(), plain._config)
        async with channel_to(host) as channel:
            calls = [asyncio.ensure_future(record(channel, said(USERS[0], "ahead", "Hello."), FIRST))]
            while not journal.appends:
                await asyncio.sleep(0.01)
            sent = {"one": (FIRST,), "two": (SECOND,), "bad": (MALFORMED,), "none": ()}
            for owner, (name, traces) in zip(USERS, sent.items(), strict=False):
                calls.append(asyncio.ensure_future(record(channel, said(owner, name, "Hello."), *traces)))
            while len(host._appends._waiting) < len(sent):
                await asyncio.sleep(0.01)
            journal.may_write.set()
            await asyncio.gather(*calls)
            assert journal.appends[0] == [("ahead", FIRST)]
            (together,) = journal.appends[1:]
            assert dict(together) == {"one": FIRST, "two": SECOND, "bad": "", "none": ""}

            asked = asking(ADA, "Where do I live?", interaction_id="q0", consent=Consent(learn=True))
            answer = InferenceServiceStub(channel).Generate(
                generate_request_to_proto(asked), metadata=_metadata([SECOND])
            )
            assert [item async for item in answer][-1].end.recorded.interaction_id == "q0"
            assert journal.appends[-1] == [("q0", SECOND)]


async def test_feedback_has_a_trace_like_any_other_and_none_is_a_part_of_what_is_kept() -> None:
    host = EchoHost()
    exchange = (Message(Role.USER, "When?"), Message(Role.ASSISTANT, "At nine."))
    thumb = Interaction("t0", ADA, InteractionKind.THUMB_UP, 1_700_000_000_000, exchange)
    async with channel_to(host) as channel:
        request = feedback_to_proto(thumb, wait_absorbed=True)
        await MemoryServiceStub(channel).Feedback(request, metadata=_metadata([FIRST]))
    (recorded,) = host.recorded
    assert recorded.trace == FIRST
    assert encode(recorded) == encode(thumb)
    assert decode(encode(recorded)) == recorded == thumb


async def test_the_lines_about_a_call_tell_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "siltstone_services")
    host = EchoHost()
    async with channel_to(host) as channel:
        await record(channel, said(ADA, "a0", "Hello."), FIRST)
        await record(channel, said(ADA, "a1", "Hello."), MALFORMED)
        host.max_lag = 0
        for traces in ((SECOND,), (MALFORMED,), ()):
            with pytest.raises(grpc.aio.AioRpcError):
                await record(channel, said(ADA, "a2", "Hello."), *traces)
    assert told_of(caplog, "interaction recorded") == [FIRST.split("-")[1]]
    assert told_of(caplog, "call refused") == [SECOND.split("-")[1], None, None]


def told_of(caplog: pytest.LogCaptureFixture, message: str) -> list[str | None]:
    return [vars(one).get("trace_id") for one in caplog.records if one.message == message]
