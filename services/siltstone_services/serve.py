"""Runs a server until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.ports import ShardHost
from siltstone_services.gateway import Gateway, check_address
from siltstone_services.home import announced
from siltstone_services.operator_desk import operator_desk

OpenHost = Callable[[SiltstoneConfig], AbstractAsyncContextManager[ShardHost]]


async def serve(config: SiltstoneConfig, open_host: OpenHost, tell: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then lets running answers end within the budget. A second signal ends it at once.

    `tell` is called with the address once the server listens. A night that runs goes on: it has a process of its own.

    Raises: Unavailable when the address or the home folder cannot be had, and what the host raises when it starts.
    """
    check_address(config.gateway)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        _restore(loop)

    async with (
        open_host(config) as host,
        operator_desk(config) as operator,
        Gateway(host, config.gateway, config.admission, SystemClock(), operator) as gateway,
    ):
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            with announced(config.home_path, gateway.address):
                tell(gateway.address)
                await stop.wait()
        finally:
            _restore(loop)


def _restore(loop: asyncio.AbstractEventLoop) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
