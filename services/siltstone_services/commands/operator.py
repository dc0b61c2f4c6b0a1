"""Finds the desk at which an operator's command is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from siltstone_services.cli.options import Reach
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.configuration import load
from siltstone_services.commands.connection import connected
from siltstone_services.home import NoServer
from siltstone_services.operator_desk import OperatorDesk, operator_desk

T = TypeVar("T")
Desk = OperatorDesk | SiltstoneClient


@asynccontextmanager
async def at_desk(reach: Reach) -> AsyncIterator[Desk]:
    """Gives the desk of the server that runs on the home folder or was named; without one, the home folder's own.

    Raises: NoServer when one was named and nobody answers.
    """
    async with AsyncExitStack() as stack:
        desk: Desk
        try:
            desk = await stack.enter_async_context(connected(reach))
        except NoServer:
            if reach.address is not None:
                raise
            desk = await stack.enter_async_context(operator_desk(load(reach.settings)))
        yield desk


def ask_desk(reach: Reach, call: Callable[[Desk], Awaitable[T]]) -> T:
    """Returns what is done at the desk."""

    async def run() -> T:
        async with at_desk(reach) as desk:
            return await call(desk)

    return asyncio.run(run())
