"""The operator's half of the typed client: shards, nights and versions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager

from siltstone.proto.v1 import cluster_service_pb2 as cluster_pb
from siltstone.proto.v1 import sleep_service_pb2 as sleep_pb
from siltstone.proto.v1 import version_service_pb2 as version_pb
from siltstone.proto.v1.cluster_service_pb2_grpc import ClusterServiceStub
from siltstone.proto.v1.sleep_service_pb2_grpc import SleepServiceStub
from siltstone.proto.v1.version_service_pb2_grpc import VersionServiceStub
from siltstone.sleep_values import Champion, Night, VersionCard, VersionComparison, VersionReport
from siltstone.values import ShardView
from siltstone.wire.nights import night_from_proto, run_request_to_proto, task_request_to_proto
from siltstone.wire.shards import shard_from_proto
from siltstone.wire.versions import champion_from_proto, comparison_from_proto, report_from_proto, version_from_proto

Translated = Callable[[], AbstractContextManager[None]]


class ClusterClient:
    """The shards of the server."""

    def __init__(self, stub: ClusterServiceStub, translated: Translated, timeout_s: float | None) -> None:
        self._stub, self._translated, self._timeout_s = stub, translated, timeout_s

    async def resize(self, num_shards: int) -> tuple[ShardView, ...]:
        """Returns the shards once there are so many. One call after the other: each has its time."""
        request = cluster_pb.ResizeClusterRequest(num_shards=num_shards)
        while True:
            with self._translated():
                response = await self._stub.ResizeCluster(request, timeout=self._timeout_s)
            if response.is_done:
                return tuple(map(shard_from_proto, response.shards))


class NightClient:
    """Nights of the server's home folder; see `NightDesk`."""

    def __init__(self, stub: SleepServiceStub, translated: Translated, timeout_s: float | None) -> None:
        self._stub, self._translated, self._timeout_s = stub, translated, timeout_s

    async def run(self, seed: int, since_ms: int) -> Night:
        """Begins a night and returns it."""
        request = run_request_to_proto(seed, since_ms)
        with self._translated():
            return night_from_proto((await self._stub.RunNight(request, timeout=self._timeout_s)).night)

    async def run_task(self, content: bytes, seed: int) -> Night:
        """Begins a night over the task of a file and returns it."""
        request = task_request_to_proto(content, seed)
        with self._translated():
            return night_from_proto((await self._stub.RunTask(request, timeout=self._timeout_s)).night)

    async def list(self) -> tuple[Night, ...]:
        """Returns the nights still known, by number."""
        with self._translated():
            response = await self._stub.ListNights(sleep_pb.ListNightsRequest(), timeout=self._timeout_s)
        return tuple(map(night_from_proto, response.nights))

    async def get(self, number: int) -> Night:
        """Returns a night as it is now."""
        with self._translated():
            request = sleep_pb.GetNightRequest(number=number)
            return night_from_proto((await self._stub.GetNight(request, timeout=self._timeout_s)).night)

    async def cancel(self, number: int) -> Night:
        """Asks a night to end between two steps."""
        with self._translated():
            request = sleep_pb.CancelNightRequest(number=number)
            return night_from_proto((await self._stub.CancelNight(request, timeout=self._timeout_s)).night)

    async def watch(self, number: int) -> AsyncGenerator[Night, None]:
        """Yields a night whenever it has changed, until it is over. One call after the other: each has its time."""
        is_over = False
        while not is_over:
            call = self._stub.WatchNight(sleep_pb.WatchNightRequest(number=number), timeout=self._timeout_s)
            try:
                with self._translated():
                    async for response in call:
                        night = night_from_proto(response.night)
                        is_over = night.is_over
                        yield night
            finally:
                call.cancel()


class VersionClient:
    """Versions of the server's home folder; see `VersionDesk`."""

    def __init__(self, stub: VersionServiceStub, translated: Translated, timeout_s: float | None) -> None:
        self._stub, self._translated, self._timeout_s = stub, translated, timeout_s

    async def list(self, page_size: int = 0) -> tuple[tuple[VersionCard, ...], Champion | None]:
        """Returns every version, by number, and the champion."""
        versions: list[VersionCard] = []
        request = version_pb.ListVersionsRequest(page_size=page_size)
        while True:
            with self._translated():
                response = await self._stub.ListVersions(request, timeout=self._timeout_s)
            versions += map(version_from_proto, response.versions)
            request.page_token = response.next_page_token
            if not request.page_token:
                champion = champion_from_proto(response.champion) if response.HasField("champion") else None
                return tuple(versions), champion

    async def get(self, number: int) -> VersionReport:
        """Returns a version with its evidence in short and its verdict."""
        with self._translated():
            request = version_pb.GetVersionRequest(number=number)
            return report_from_proto(await self._stub.GetVersion(request, timeout=self._timeout_s))

    async def explain(self, number: int) -> tuple[str, ...]:
        """Returns the verdict in lines for a person; nothing when the gate has not judged it."""
        with self._translated():
            request = version_pb.ExplainVerdictRequest(number=number)
            return tuple((await self._stub.ExplainVerdict(request, timeout=self._timeout_s)).lines)

    async def compare(self, number: int, other: int) -> VersionComparison:
        """Returns two versions side by side."""
        with self._translated():
            request = version_pb.CompareVersionsRequest(number=number, other=other)
            return comparison_from_proto(await self._stub.CompareVersions(request, timeout=self._timeout_s))

    async def champion(self) -> Champion:
        """Returns which version serves."""
        with self._translated():
            response = await self._stub.GetChampion(version_pb.GetChampionRequest(), timeout=self._timeout_s)
        return champion_from_proto(response.champion)

    async def promote(self, number: int, expected_epoch: int) -> Champion:
        """Makes a version the champion, if the champion is still the one of `expected_epoch`."""
        with self._translated():
            request = version_pb.PromoteVersionRequest(number=number, expected_epoch=expected_epoch)
            return champion_from_proto((await self._stub.PromoteVersion(request, timeout=self._timeout_s)).champion)

    async def roll_back(self, expected_epoch: int) -> Champion:
        """Makes the champion before champion again, if the present one is still that of `expected_epoch`."""
        with self._translated():
            request = version_pb.RollbackVersionRequest(expected_epoch=expected_epoch)
            return champion_from_proto((await self._stub.RollbackVersion(request, timeout=self._timeout_s)).champion)
