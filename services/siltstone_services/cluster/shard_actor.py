"""A shard as a process of its own: a hollow actor around one node. Knows nothing of Ray.

This module imports next to nothing: what a node needs is imported when the actor opens it, and gives way meanwhile to
those who serve on the same machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from siltstone.errors import ConfigInvalid, SiltstoneError, Unavailable
from siltstone.values import AnswerEnd, AnswerPart, Erasure, GenerateRequest, MemoryCard, UserExport, UserKey
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.cluster.links import ScoreQuestion, Scores, ShardGone
from siltstone_services.gently import gently
from siltstone_services.logs import log_to_stderr

if TYPE_CHECKING:
    from siltstone.placement.coordinator import Claim
    from siltstone_services.answers import Pinned
    from siltstone_services.beat import Beat, Progress
    from siltstone_services.node import ShardNode

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_WORKER_ENDED: Final = 70
"""Exit status of a process whose worker thread has ended: it is started anew."""


class ShardActor:
    """Opens its node in the background, and hands calls on to it."""

    def __init__(self, name: str, config: Mapping[str, Any], log_level: str = "info") -> None:
        """Only keeps what it is given: whoever starts actors anew runs this again, and nothing else.

        `config` is a `SiltstoneConfig` as plain values.
        """
        self._name, self._config = name, config
        self._node: ShardNode | None = None
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[ShardNode] | None = None
        if log_level:
            keep_freed_memory()
            log_to_stderr(log_level)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[ShardNode]:
        opening: Any = await gently(_import_opening)
        async with opening.open_node(self._config) as node:
            yield node

    async def beat(self) -> Beat | None:
        """See `ShardLink.beat`. The first call begins to open the node.

        Raises: what kept the node from opening; the next call begins anew.
        """
        if self._node is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._stack.enter_async_context(self._open()))
            if not self._opening.done():
                return None
            opening, self._opening = self._opening, None
            self._node = opening.result()
        try:
            return await self._node.beat()
        except Unavailable as error:
            # Its thread has ended: nothing will come of this process any more, and another one begins sound.
            _LOG.error("shard ends", extra={"shard": self._name, "error": str(error)})
            os._exit(_WORKER_ENDED)

    def _opened(self) -> ShardNode:
        if self._node is None or self._node.has_ended:
            # Whoever asks is to ask the owner of the moment, which this process is not (yet).
            raise ShardGone(f"the shard {self._name}", "it is starting")
        return self._node

    async def assign(self, partitions: Sequence[int]) -> Claim:
        """See `ShardNode.assign`."""
        return await self._opened().assign(partitions)

    async def release(self, partitions: Sequence[int]) -> int:
        """See `ShardNode.release`."""
        return await self._opened().release(partitions)

    async def watch(self) -> AsyncGenerator[Progress, None]:
        """See `ShardNode.watch`."""
        async with aclosing(self._opened().watch()) as news:
            async for progress in news:
                yield progress

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        """See `ShardNode.answer`."""
        async with aclosing(self._opened().answer(request)) as items:
            async for item in items:
                yield item

    async def scores(self, questions: Sequence[ScoreQuestion]) -> list[Scores | SiltstoneError]:
        """See `ShardLink.scores`."""
        node = self._opened()
        asked = [node.score(one.owner, one.prompt, one.answers) for one in questions]
        return _told(await asyncio.gather(*asked, return_exceptions=True))

    async def cards(self, owners: Sequence[UserKey]) -> list[MemoryCard | SiltstoneError]:
        """See `ShardLink.cards`."""
        node = self._opened()
        return _told(await asyncio.gather(*map(node.memory, owners), return_exceptions=True))

    async def export(self, owner: UserKey) -> UserExport:
        """See `ShardNode.export`."""
        return await self._opened().export(owner)

    async def forget(self, owner: UserKey) -> Erasure:
        """See `ShardNode.forget`."""
        return await self._opened().forget(owner)

    async def stop(self) -> None:
        """Stops the node. What it owns was released before, or is taken over."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._stack.aclose()


def _import_opening() -> ModuleType:
    try:
        from siltstone_services.cluster import opening
    except ImportError as error:
        raise ConfigInvalid("cluster", f"expected what a shard imports: {error.name} is missing") from error
    return opening


def _told(outcomes: Sequence[T | BaseException]) -> list[T | SiltstoneError]:
    """Returns outcomes of which an error of ours is one; any other is everybody's."""
    told: list[T | SiltstoneError] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, SiltstoneError):
            raise outcome
        told.append(outcome)
    return told
