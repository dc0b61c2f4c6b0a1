"""Connects a command with its server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from siltstone.adapters.system_clock import SystemClock
from siltstone_services.cli.later import Later
from siltstone_services.cli.options import Reach
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.configuration import load
from siltstone_services.gateway import Gateway
from siltstone_services.home import NoServer, find_server

T = TypeVar("T")

_CONNECT_S: Final = 5.0
_wiring = Later("siltstone_services.wiring")  # a command that talks to a server has no need of a model


@asynccontextmanager
async def connected(reach: Reach) -> AsyncIterator[SiltstoneClient]:
    """Gives a client of the server asked for: one in this process, one by address, or the one of the home folder.

    Raises: NoServer when nobody answers there.
    """
    config = load(reach.settings)
    if reach.is_embedded:
        here = dataclasses.replace(config.gateway, host="127.0.0.1", port=0)
        async with (
            _wiring.embedded_host(config) as host,
            Gateway(host, here, config.admission, SystemClock()) as gateway,
            SiltstoneClient(gateway.address, max_message_bytes=here.max_message_bytes) as client,
        ):
            yield client
        return
    address = reach.address or find_server(config.home_path).address
    async with SiltstoneClient(address, max_message_bytes=config.gateway.max_message_bytes) as client:
        if not await client.is_there(_CONNECT_S):
            raise NoServer("the server", f"nobody answers at {address}")
        yield client


def ask(reach: Reach, call: Callable[[SiltstoneClient], Awaitable[T]]) -> T:
    """Returns what one call to the server gives."""

    async def run() -> T:
        async with connected(reach) as client:
            return await call(client)

    return asyncio.run(run())
