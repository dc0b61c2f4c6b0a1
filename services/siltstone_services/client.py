"""A typed client: values in, values out, our own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final

import grpc

from siltstone.errors import Corrupt
from siltstone.proto.v1 import inference_service_pb2 as inference_pb
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.proto.v1.cluster_service_pb2_grpc import ClusterServiceStub
from siltstone.proto.v1.inference_service_pb2_grpc import InferenceServiceStub
from siltstone.proto.v1.memory_service_pb2_grpc import MemoryServiceStub
from siltstone.proto.v1.sleep_service_pb2_grpc import SleepServiceStub
from siltstone.proto.v1.version_service_pb2_grpc import VersionServiceStub
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    GenerateRequest,
    Interaction,
    MemoryCard,
    Message,
    Receipt,
    ShardStatus,
    ShardView,
    UserExport,
    UserKey,
)
from siltstone.wire.answers import answer_from_proto, generate_request_to_proto, status_from_proto
from siltstone.wire.interactions import (
    feedback_to_proto,
    interaction_to_proto,
    messages_to_proto,
    owner_to_proto,
    receipt_from_proto,
)
from siltstone.wire.memories import ExportReader, card_from_proto, erasure_from_proto, parking_told
from siltstone.wire.shards import shard_from_proto
from siltstone_services.operator_client import ClusterClient, NightClient, VersionClient
from siltstone_services.status import from_rpc_error

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024


class SiltstoneClient:
    """Speaks to one server, from `async with` on. Every method raises the errors the server raised, and Unavailable.

    `timeout_s` bounds each call; None leaves that to the server.
    """

    def __init__(
        self, address: str, *, timeout_s: float | None = None, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]

    async def __aenter__(self) -> SiltstoneClient:
        self._channel = grpc.aio.insecure_channel(self.address, options=self._options)
        self._memory = MemoryServiceStub(self._channel)
        self._inference = InferenceServiceStub(self._channel)
        self.cluster = ClusterClient(ClusterServiceStub(self._channel), self._translated, self._timeout_s)
        self.nights = NightClient(SleepServiceStub(self._channel), self._translated, self._timeout_s)
        self.versions = VersionClient(VersionServiceStub(self._channel), self._translated, self._timeout_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def is_there(self, timeout_s: float) -> bool:
        """Says whether a server answers at the address within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                state = self._channel.get_state(try_to_connect=True)
                while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return bool(state is grpc.ChannelConnectivity.READY)

    async def record(self, interactions: Sequence[Interaction], *, wait_absorbed: bool = False) -> list[Receipt]:
        """Writes interactions, all or none; waits until they are absorbed or parked when asked to."""
        request = memory_pb.RecordRequest(
            interactions=map(interaction_to_proto, interactions), wait_absorbed=wait_absorbed
        )
        with self._translated():
            response = await self._memory.Record(request, timeout=self._timeout_s)
        return parking_told([receipt_from_proto(receipt) for receipt in response.receipts], response.parked)

    async def feedback(self, feedback: Interaction, *, wait_absorbed: bool = False) -> Receipt:
        """Writes a correction or a thumb."""
        request = feedback_to_proto(feedback, wait_absorbed=wait_absorbed)
        with self._translated():
            response = await self._memory.Feedback(request, timeout=self._timeout_s)
        parked = [response.parked] if response.HasField("parked") else []
        return parking_told([receipt_from_proto(response.receipt)], parked)[0]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AnswerPart | AnswerEnd, None]:
        """Yields an answer, piece by piece, its end last. Closing the iterator gives the answer up."""
        call = self._inference.Generate(generate_request_to_proto(request), timeout=self._timeout_s)
        try:
            with self._translated():
                async for response in call:
                    yield answer_from_proto(response)
        finally:
            call.cancel()

    async def answer(self, request: GenerateRequest) -> tuple[str, AnswerEnd]:
        """Returns a whole answer and its end."""
        text, end = "", None
        async for item in self.generate(request):
            if isinstance(item, AnswerPart):
                text += item.text
            else:
                end = item
        if end is None:
            raise Corrupt(f"the answer of {self.address}", "an end", "none")
        return text, end

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Returns each answer's log-probability in nats under (user's model, bare core)."""
        request = inference_pb.ScoreRequest(
            owner=owner_to_proto(owner), prompt=messages_to_proto(prompt), answers=answers
        )
        with self._translated():
            response = await self._inference.Score(request, timeout=self._timeout_s)
        return [(score.user_log_prob, score.core_log_prob) for score in response.scores]

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Returns the card of a user's memory."""
        with self._translated():
            response = await self._memory.GetMemory(
                memory_pb.GetMemoryRequest(owner=owner_to_proto(owner)), timeout=self._timeout_s
            )
        return card_from_proto(response.memory)

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user, the snapshot verified."""
        reader = ExportReader(owner)
        with self._translated():
            request = memory_pb.ExportUserRequest(owner=owner_to_proto(owner))
            async for piece in self._memory.ExportUser(request, timeout=self._timeout_s):
                reader.add(piece)
        return reader.finish()

    async def forget(self, owner: UserKey) -> Erasure:
        """Removes everything kept about a user."""
        with self._translated():
            response = await self._memory.ForgetUser(
                memory_pb.ForgetUserRequest(owner=owner_to_proto(owner)), timeout=self._timeout_s
            )
        return erasure_from_proto(owner, response)

    async def status(self) -> ShardStatus:
        """Returns what an operator may see."""
        with self._translated():
            response = await self._inference.GetStatus(inference_pb.GetStatusRequest(), timeout=self._timeout_s)
        return status_from_proto(response.status)

    async def shards(self) -> tuple[ShardView, ...]:
        """Returns every shard and the partitions it owns."""
        with self._translated():
            response = await self._inference.ListShards(inference_pb.ListShardsRequest(), timeout=self._timeout_s)
        return tuple(map(shard_from_proto, response.shards))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from error
