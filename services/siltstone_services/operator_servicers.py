"""The methods of the interface that are an operator's: shards, nights and versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

from siltstone.config import GatewayConfig
from siltstone.errors import InvalidInput, Unavailable
from siltstone.ports import ShardHost
from siltstone.proto.v1 import cluster_service_pb2 as cluster_pb
from siltstone.proto.v1 import sleep_service_pb2 as sleep_pb
from siltstone.proto.v1 import version_service_pb2 as version_pb
from siltstone.proto.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from siltstone.proto.v1.sleep_service_pb2_grpc import SleepServiceServicer
from siltstone.proto.v1.version_service_pb2_grpc import VersionServiceServicer
from siltstone.sleep_values import Night
from siltstone.wire.nights import night_to_proto
from siltstone.wire.shards import shard_to_proto
from siltstone.wire.versions import champion_to_proto, comparison_to_proto, report_to_proto, version_to_proto
from siltstone_services.night_desk import NightDesk
from siltstone_services.version_desk import VersionDesk

_LOOKS_EVERY_S: Final = 0.5


class ClusterServicer(ClusterServiceServicer):
    """Lets shards join and leave."""

    def __init__(self, host: ShardHost, config: GatewayConfig, is_draining: Callable[[], bool]) -> None:
        self._host, self._config, self._is_draining = host, config, is_draining

    async def ResizeCluster(  # noqa: N802
        self, request: cluster_pb.ResizeClusterRequest, context: Any
    ) -> cluster_pb.ResizeClusterResponse:
        """Ends in good order before the time of a call is up, and at once when the server stops."""
        if request.num_shards < 1:
            raise InvalidInput("num_shards", "at least 1", str(request.num_shards))
        until_s = time.monotonic() + self._config.max_call_s / 2
        resizing = asyncio.ensure_future(self._host.resize(request.num_shards))
        try:
            while not resizing.done() and (left_s := until_s - time.monotonic()) > 0:
                await asyncio.wait({resizing}, timeout=min(_LOOKS_EVERY_S, left_s))
                if self._is_draining():
                    raise Unavailable("the server", "it is stopping")
            is_done = resizing.done()
            if is_done:
                resizing.result()
        finally:
            # The host goes on with it all the same.
            resizing.cancel()
        shards = map(shard_to_proto, await self._host.shards())
        return cluster_pb.ResizeClusterResponse(is_done=is_done, shards=shards)


class SleepServicer(SleepServiceServicer):
    """Lets the core sleep."""

    def __init__(self, desk: NightDesk, config: GatewayConfig, is_draining: Callable[[], bool]) -> None:
        self._desk, self._config, self._is_draining = desk, config, is_draining

    async def RunNight(self, request: sleep_pb.RunNightRequest, context: Any) -> sleep_pb.RunNightResponse:  # noqa: N802
        """The night goes on when this server stops."""
        return sleep_pb.RunNightResponse(night=night_to_proto(await self._desk.run(request.seed, request.since_ms)))

    async def RunTask(self, request: sleep_pb.RunTaskRequest, context: Any) -> sleep_pb.RunTaskResponse:  # noqa: N802
        """As `RunNight`."""
        night = await self._desk.run_task(request.content, request.seed)
        return sleep_pb.RunTaskResponse(night=night_to_proto(night))

    async def GetNight(self, request: sleep_pb.GetNightRequest, context: Any) -> sleep_pb.GetNightResponse:  # noqa: N802
        """See the interface."""
        return sleep_pb.GetNightResponse(night=night_to_proto(await self._desk.get(request.number)))

    async def ListNights(self, request: sleep_pb.ListNightsRequest, context: Any) -> sleep_pb.ListNightsResponse:  # noqa: N802
        """See the interface."""
        return sleep_pb.ListNightsResponse(nights=map(night_to_proto, await self._desk.list()))

    async def WatchNight(self, request: sleep_pb.WatchNightRequest, context: Any) -> None:  # noqa: N802
        """Ends in good order before the time of a call is up, and at once when the server stops."""
        until_s = time.monotonic() + self._config.max_call_s / 2
        seen: Night | None = None
        async with aclosing(self._desk.watch(request.number)) as nights:
            async for night in nights:
                if night != seen:
                    await context.write(sleep_pb.WatchNightResponse(night=night_to_proto(night)))
                    seen = night
                if self._is_draining():
                    raise Unavailable("the server", "it is stopping; the night goes on")
                if time.monotonic() > until_s:
                    return

    async def CancelNight(self, request: sleep_pb.CancelNightRequest, context: Any) -> sleep_pb.CancelNightResponse:  # noqa: N802
        """See the interface."""
        return sleep_pb.CancelNightResponse(night=night_to_proto(await self._desk.cancel(request.number)))


class VersionServicer(VersionServiceServicer):
    """Tells about versions, and moves the champion."""

    def __init__(self, desk: VersionDesk) -> None:
        self._desk = desk

    async def ListVersions(  # noqa: N802
        self, request: version_pb.ListVersionsRequest, context: Any
    ) -> version_pb.ListVersionsResponse:
        """See the interface."""
        page = await self._desk.page(request.page_size, request.page_token)
        return version_pb.ListVersionsResponse(
            versions=map(version_to_proto, page.versions),
            next_page_token=page.next_page_token,
            champion=None if page.champion is None else champion_to_proto(page.champion),
        )

    async def GetVersion(self, request: version_pb.GetVersionRequest, context: Any) -> version_pb.GetVersionResponse:  # noqa: N802
        """See the interface."""
        return report_to_proto(await self._desk.get(request.number))

    async def ExplainVerdict(  # noqa: N802
        self, request: version_pb.ExplainVerdictRequest, context: Any
    ) -> version_pb.ExplainVerdictResponse:
        """See the interface."""
        return version_pb.ExplainVerdictResponse(lines=await self._desk.explain(request.number))

    async def CompareVersions(  # noqa: N802
        self, request: version_pb.CompareVersionsRequest, context: Any
    ) -> version_pb.CompareVersionsResponse:
        """See the interface."""
        return comparison_to_proto(await self._desk.compare(request.number, request.other))

    async def GetChampion(self, request: version_pb.GetChampionRequest, context: Any) -> version_pb.GetChampionResponse:  # noqa: N802
        """See the interface."""
        return version_pb.GetChampionResponse(champion=champion_to_proto(await self._desk.champion()))

    async def PromoteVersion(  # noqa: N802
        self, request: version_pb.PromoteVersionRequest, context: Any
    ) -> version_pb.PromoteVersionResponse:
        """See the interface."""
        champion = await self._desk.promote(request.number, request.expected_epoch)
        return version_pb.PromoteVersionResponse(champion=champion_to_proto(champion))

    async def RollbackVersion(  # noqa: N802
        self, request: version_pb.RollbackVersionRequest, context: Any
    ) -> version_pb.RollbackVersionResponse:
        """See the interface."""
        champion = await self._desk.roll_back(request.expected_epoch)
        return version_pb.RollbackVersionResponse(champion=champion_to_proto(champion))
