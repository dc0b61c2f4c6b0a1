"""The gRPC gateway: listens, serves the interface over a shard host, and stops without dropping answers."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import TracebackType
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from siltstone.config import GatewayConfig
from siltstone.errors import Unavailable
from siltstone.journal.admit import AdmissionLimits
from siltstone.ports import Clock, ShardHost
from siltstone.proto.v1 import (
    cluster_service_pb2,
    inference_service_pb2,
    memory_service_pb2,
    sleep_service_pb2,
    version_service_pb2,
)
from siltstone.proto.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from siltstone.proto.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from siltstone.proto.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from siltstone.proto.v1.sleep_service_pb2_grpc import add_SleepServiceServicer_to_server
from siltstone.proto.v1.version_service_pb2_grpc import add_VersionServiceServicer_to_server
from siltstone_services.border import Border
from siltstone_services.operator_desk import OperatorDesk
from siltstone_services.operator_servicers import ClusterServicer, SleepServicer, VersionServicer
from siltstone_services.servicers import InferenceServicer, MemoryServicer

_LOG = logging.getLogger(__name__)

SERVICES: Final = (
    memory_service_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name,
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
)
OPERATOR_SERVICES: Final = (
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
    sleep_service_pb2.DESCRIPTOR.services_by_name["SleepService"].full_name,
    version_service_pb2.DESCRIPTOR.services_by_name["VersionService"].full_name,
)
_LAST_WORDS_S: Final = 0.5
"""Time for the last messages of ended calls to leave; who watches the health would stay for ever."""


class Gateway:
    """Serves from `async with` on, until drained. `address` is where."""

    def __init__(
        self,
        host: ShardHost,
        config: GatewayConfig,
        limits: AdmissionLimits,
        clock: Clock,
        operator: OperatorDesk | None = None,
    ) -> None:
        """Serves what is an operator's (resizing, nights, versions) only where there is a desk for it."""
        self._host, self._config, self._limits, self._clock = host, config, limits, clock
        self._operator = operator
        self._border = Border(config)
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.address = ""

    async def __aenter__(self) -> Gateway:
        """Starts to listen.

        Raises: Unavailable when the address cannot be had.
        """
        server = grpc.aio.server(interceptors=[self._border], options=_options(self._config))
        memory = MemoryServicer(self._host, self._config, self._limits, self._clock)
        add_MemoryServiceServicer_to_server(memory, server)
        inference = InferenceServicer(self._host, self._config, self._limits)
        add_InferenceServiceServicer_to_server(inference, server)
        services: tuple[str, ...] = SERVICES
        if self._operator is not None:
            shards = ClusterServicer(self._host, self._config, lambda: self._border.is_draining)
            add_ClusterServiceServicer_to_server(shards, server)
            nights = SleepServicer(self._operator.nights, self._config, lambda: self._border.is_draining)
            add_SleepServiceServicer_to_server(nights, server)
            add_VersionServiceServicer_to_server(VersionServicer(self._operator.versions), server)
            services = (*SERVICES, *OPERATOR_SERVICES)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.has_reflection:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        wanted = f"{self._config.host}:{self._config.port}"
        try:
            port = server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise _not_to_be_had(wanted) from error
        await server.start()
        for name in services:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server, self.address = server, f"{self._config.host}:{port}"
        _LOG.info("gateway listens", extra={"address": self.address})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def drain(self) -> None:
        """Stops in three steps; a second call does nothing.

        1. Say NOT_SERVING, so that nobody new is sent here.
        2. Take no new calls, and let running ones end within the budget.
        3. Close the connections; what still runs is given up.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        num_given_up = await self._border.drain(self._config.drain_budget_s)
        await server.stop(0 if num_given_up else _LAST_WORDS_S)
        # A call given up still cleans up behind itself: one turn of the loop lets it.
        await asyncio.sleep(0)
        _LOG.info("gateway stopped", extra={"address": self.address, "num_given_up": num_given_up})


def check_address(config: GatewayConfig) -> None:
    """Looks whether the address can be had, before anything is loaded, or taken from whoever has it.

    Raises: Unavailable.
    """
    if not config.port:
        return
    wanted = f"{config.host}:{config.port}"
    try:
        found = socket.getaddrinfo(config.host.strip("[]"), config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _not_to_be_had(wanted) from error
    if not any(_can_listen(family, address) for family, *_, address in found):
        raise _not_to_be_had(wanted)


def _can_listen(family: int, address: tuple[Any, ...]) -> bool:
    try:
        socket.create_server(address[:2], family=family).close()
    except OSError:
        return False
    return True


def _not_to_be_had(address: str) -> Unavailable:
    return Unavailable(f"the address {address}", "it is in use, or not one of this machine")


def _options(config: GatewayConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", _ms(config.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout_s)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(config.min_ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", _ms(config.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(config.max_connection_age_grace_s)),
        # Two servers on one port would share its callers by chance.
        ("grpc.so_reuseport", 0),
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
