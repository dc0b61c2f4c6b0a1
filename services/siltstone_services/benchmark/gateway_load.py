"""What the gateway costs: calls from many at once through it, and through bare grpc.aio that answers the same."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import grpc

from siltstone.proto.v1 import inference_service_pb2 as inference_pb
from siltstone.proto.v1 import interaction_pb2 as interaction_pb
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.proto.v1.inference_service_pb2_grpc import InferenceServiceStub
from siltstone.proto.v1.memory_service_pb2_grpc import MemoryServiceStub
from siltstone.values import Consent, GenerateRequest, Interaction, InteractionKind, Message, Role, UserKey
from siltstone.wire.answers import generate_request_to_proto
from siltstone.wire.interactions import interaction_to_proto
from siltstone_services.benchmark.gateway_server import PIECES
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_least, at_most

AS_FAST: Final = at_least(0.7, "x")
EVEN: Final = at_most(3.0, "x")
_BARE, _GATEWAY = "bare", "gateway"
_START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Round:
    """One round of calls: how many a second, and how long each took, seconds."""

    calls_per_s: float
    took_s: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Returns the time within which this share of the calls was answered."""
        ranked = sorted(self.took_s)
        return ranked[min(len(ranked) - 1, math.ceil(share * len(ranked)) - 1)]


def run_gateway(num_callers: int, num_calls: int, rounds: int, say: Say) -> Outcome:
    """Times Record and Generate from so many callers at once, by turns through the gateway and through bare grpc.aio.

    Both servers are processes of their own and answer the same messages; the bare one checks nothing.
    """
    case = f"gateway, {num_callers} callers"
    with ExitStack() as stack:
        addresses = {kind: stack.enter_context(_server(kind)) for kind in (_BARE, _GATEWAY)}
        say(case)
        try:
            found = asyncio.run(_time(addresses, num_callers, num_calls, rounds))
        except _NotTheSameError as error:
            return Outcome(case, refusal=str(error))
    readings = []
    for method in ("Record", "Generate"):
        bare, through = found[_BARE, method], found[_GATEWAY, method]
        rates = tuple(one.calls_per_s for one in through)
        shares = tuple(own.calls_per_s / other.calls_per_s for own, other in zip(through, bare, strict=True))
        evenness = tuple(one.quantile(0.99) / one.quantile(0.5) for one in through)
        bare_evenness = tuple(one.quantile(0.99) / one.quantile(0.5) for one in bare)
        readings += [
            Reading(f"{case}, {method}", rates, "calls/s"),
            Reading(f"{case}, {method} / bare grpc.aio", shares, "x", AS_FAST),
            Reading(f"{case}, {method}, p99 / p50", evenness, "x", EVEN),
            Reading(f"{case}, {method}, p99 / p50 of bare grpc.aio", bare_evenness, "x"),
        ]
    return Outcome(case, tuple(readings))


class _NotTheSameError(Exception):
    """A server did not answer what the other does. Args: what it answered."""


@contextmanager
def _server(kind: str) -> Iterator[str]:
    command = [sys.executable, "-m", "siltstone_services.benchmark.gateway_server", kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(_START_S)
        process.stdout.close()


async def _time(
    addresses: dict[str, str], num_callers: int, num_calls: int, rounds: int
) -> dict[tuple[str, str], list[Round]]:
    found: dict[tuple[str, str], list[Round]] = {}
    async with AsyncExitStack() as stack:
        callers = {
            kind: _Callers(await stack.enter_async_context(grpc.aio.insecure_channel(address)))
            for kind, address in addresses.items()
        }
        for number in range(rounds):
            for method in ("Record", "Generate"):
                for kind in sorted(callers, reverse=bool(number % 2)):
                    await callers[kind].run(method, num_callers, num_callers)
                    done = await callers[kind].run(method, num_callers, num_calls)
                    found.setdefault((kind, method), []).append(done)
    return found


class _Callers:
    """Many callers of one server, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._memory, self._inference = MemoryServiceStub(channel), InferenceServiceStub(channel)
        owner, text = UserKey("bench", "caller"), Message(Role.USER, "What time is it in Lisbon, and what in Oslo?")
        said = Interaction(
            "said-1", owner, InteractionKind.CONVERSATION, 1, (text,), consent=Consent(learn=True, share=False)
        )
        sent: interaction_pb.Interaction = interaction_to_proto(said)
        self._record = memory_pb.RecordRequest(interactions=[sent])
        self._generate: inference_pb.GenerateRequest = generate_request_to_proto(GenerateRequest(owner, (text,)))

    async def run(self, method: str, num_callers: int, num_calls: int) -> Round:
        """Makes so many calls, each caller one after another."""
        call = self._call_record if method == "Record" else self._call_generate
        left, took_s = iter(range(num_calls)), list[float]()

        async def go_on() -> None:
            for _ in left:
                start_s = time.perf_counter()
                await call()
                took_s.append(time.perf_counter() - start_s)

        start_s = time.perf_counter()
        await asyncio.gather(*(go_on() for _ in range(num_callers)))
        return Round(num_calls / (time.perf_counter() - start_s), tuple(took_s))

    async def _call_record(self) -> None:
        response = await self._memory.Record(self._record)
        if [one.interaction_id for one in response.receipts] != ["said-1"]:
            raise _NotTheSameError(f"Record answered {response}")

    async def _call_generate(self) -> None:
        pieces = [response async for response in self._inference.Generate(self._generate)]
        if len(pieces) != len(PIECES) + 1 or not pieces[-1].HasField("end"):
            raise _NotTheSameError(f"Generate answered {len(pieces)} messages")
