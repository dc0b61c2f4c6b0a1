"""A server process for the gateway's benchmark: the gateway over a host that computes nothing, or bare grpc.aio.

Run as `python -m siltstone_services.benchmark.gateway_server gateway|bare`. It prints its address, and serves until its
standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import grpc

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone.proto.v1 import inference_service_pb2 as inference_pb
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.proto.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from siltstone.proto.v1.memory_service_pb2_grpc import MemoryServiceServicer, add_MemoryServiceServicer_to_server
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    FinishReason,
    GenerateRequest,
    Interaction,
    MemoryCard,
    Message,
    Parked,
    Receipt,
    ShardStatus,
    ShardView,
    UserExport,
    UserKey,
)
from siltstone.wire.answers import answer_to_proto
from siltstone.wire.interactions import receipt_to_proto
from siltstone_services.gateway import Gateway

PIECES: Final = tuple(AnswerPart(f"piece {number} ") for number in range(16))
END: Final = AnswerEnd(FinishReason.STOP, "stub", 1, 8, len(PIECES), ())


class StubHost:
    """`ports.ShardHost` without a model: it takes in and answers at once, always the same."""

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """Writes nothing."""
        return [Receipt(one.id, 0, number, duplicate=False) for number, one in enumerate(interactions)]

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        """Waits for nothing."""
        return []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """Answers in sixteen pieces."""
        for piece in PIECES:
            yield piece
        yield END

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Finds every answer as likely."""
        return [(0.0, 0.0)] * len(answers)

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Knows nobody."""
        return MemoryCard(owner, "stub", 0, 0, 0, 0, (), 0)

    async def export(self, owner: UserKey) -> UserExport:
        """Keeps nothing."""
        raise Unavailable("the stub", "it keeps nothing")

    async def forget(self, owner: UserKey) -> Erasure:
        """Has nothing to forget."""
        return Erasure(owner, False, 0)

    async def status(self) -> ShardStatus:
        """Tells of nothing."""
        return ShardStatus("stub", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)

    async def shards(self) -> tuple[ShardView, ...]:
        """Has none."""
        return ()

    async def resize(self, num_shards: int) -> None:
        """Has nothing to resize."""


class BareMemory(MemoryServiceServicer):
    """Answers Record as the gateway over the stub does, and looks at nothing."""

    async def Record(self, request: memory_pb.RecordRequest, context: Any) -> memory_pb.RecordResponse:  # noqa: N802
        """Answers with a receipt."""
        receipts = [
            receipt_to_proto(Receipt(one.id, 0, number, duplicate=False))
            for number, one in enumerate(request.interactions)
        ]
        return memory_pb.RecordResponse(receipts=receipts)


class BareInference(InferenceServiceServicer):
    """Answers Generate as the gateway over the stub does, and looks at nothing."""

    async def Generate(self, request: inference_pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Answers in sixteen pieces."""
        for piece in PIECES:
            await context.write(answer_to_proto(piece))
        await context.write(answer_to_proto(END))


async def _serve(kind: str) -> None:
    config = SiltstoneConfig()
    async with AsyncExitStack() as stack:
        if kind == "gateway":
            listening = replace(config.gateway, port=0)
            gateway = Gateway(StubHost(), listening, config.admission, SystemClock())
            address = (await stack.enter_async_context(gateway)).address
        else:
            server = grpc.aio.server()
            add_MemoryServiceServicer_to_server(BareMemory(), server)
            add_InferenceServiceServicer_to_server(BareInference(), server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            stack.push_async_callback(server.stop, 0)
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
