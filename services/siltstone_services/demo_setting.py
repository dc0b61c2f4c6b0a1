"""What every step of the demo's course needs, and how its calls are kept in flight together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from siltstone.evaluation.office_material import Office, OfficeUser
from siltstone.ports import Clock
from siltstone.values import UserKey
from siltstone_services.client import SiltstoneClient
from siltstone_services.demo_outcome import CoursePlan
from siltstone_services.demo_screen import DemoScreen

S = TypeVar("S")
T = TypeVar("T")

TENANT: Final = "local"
"""The tenant that `siltstone chat` takes when none is named, so that anybody can talk on as one of the users."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a course takes place."""

    client: SiltstoneClient
    office: Office
    plan: CoursePlan
    clock: Clock
    screen: DemoScreen


def key_of(user: OfficeUser) -> UserKey:
    """Returns whose memory a user of the office has."""
    return UserKey(TENANT, user.id)


async def at_once(items: Sequence[S], call: Callable[[S], Awaitable[T]], max_running: int) -> list[T]:
    """Returns what the calls give, in the order of the items, with at most `max_running` of them under way.

    When one fails the others are given up, and its error is raised as it is.
    """
    places = asyncio.Semaphore(max_running)

    async def one(item: S) -> T:
        async with places:
            return await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]
