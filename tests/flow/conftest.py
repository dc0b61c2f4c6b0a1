"""A gateway over an echo host on a free port, and a real client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from echo_host import EchoHost

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import GatewayConfig
from siltstone.journal.admit import AdmissionLimits
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import Gateway


@pytest.fixture
def gateway_config() -> GatewayConfig:
    return GatewayConfig(port=0, drain_budget_s=5.0, max_interactions=8, max_scored_answers=4, export_chunk_bytes=16)


@pytest_asyncio.fixture
async def host() -> EchoHost:
    return EchoHost()


@pytest_asyncio.fixture
async def gateway(host: EchoHost, gateway_config: GatewayConfig) -> AsyncIterator[Gateway]:
    async with Gateway(host, gateway_config, AdmissionLimits(), SystemClock()) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def client(gateway: Gateway) -> AsyncIterator[SiltstoneClient]:
    async with SiltstoneClient(gateway.address, timeout_s=20.0) as client:
        yield client


@pytest_asyncio.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    """For callers that do not keep to our client's manners."""
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        yield channel
