"""How a shard is reached, wherever it is; and what is told of one that cannot be."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from siltstone.errors import SiltstoneError, Unavailable
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    GenerateRequest,
    MemoryCard,
    Message,
    UserExport,
    UserKey,
)

if TYPE_CHECKING:
    from siltstone.placement.coordinator import Claim
    from siltstone_services.answers import Pinned
    from siltstone_services.beat import Beat, Progress


class ShardGone(Unavailable):
    """A shard's process has ended, or cannot be reached. Args: what, reason."""


@dataclass(frozen=True, slots=True)
class ScoreQuestion:
    """How likely answers are for a user."""

    owner: UserKey
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]


Scores = list[tuple[float, float]]


class ShardLink(Protocol):
    """One shard. Every call raises ShardGone when its process is not there, and what its node raises."""

    async def beat(self) -> Beat | None:
        """Says how the node is; None while it starts."""
        ...

    async def assign(self, partitions: Sequence[int]) -> Claim:
        """See `ShardNode.assign`."""
        ...

    async def release(self, partitions: Sequence[int]) -> int:
        """See `ShardNode.release`."""
        ...

    def watch(self) -> AsyncGenerator[Progress, None]:
        """See `ShardNode.watch`."""
        ...

    def answer(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        """See `ShardNode.answer`."""
        ...

    async def scores(self, questions: Sequence[ScoreQuestion]) -> list[Scores | SiltstoneError]:
        """Scores many questions in one hop; each has its own outcome."""
        ...

    async def cards(self, owners: Sequence[UserKey]) -> list[MemoryCard | SiltstoneError]:
        """Tells many users' cards in one hop; each has its own outcome."""
        ...

    async def export(self, owner: UserKey) -> UserExport:
        """See `ShardNode.export`."""
        ...

    async def forget(self, owner: UserKey) -> Erasure:
        """See `ShardNode.forget`."""
        ...


class ShardFleet(Protocol):
    """The shards that are meant to be there, and the power to start them anew."""

    @property
    def names(self) -> Sequence[str]:
        """Their names."""
        ...

    def link(self, name: str) -> ShardLink:
        """Returns how a shard is reached now. Raises: ShardGone when there is none of that name."""
        ...

    async def begin(self, name: str) -> None:
        """Starts one more shard. A caller that gives up leaves nothing behind.

        Raises: Unavailable when there is no room for it.
        """
        ...

    async def end(self, name: str) -> None:
        """Stops a shard that owns nothing any more, ends its process for good, and gives its room back."""
        ...

    async def restart(self, name: str, is_gone: bool) -> None:
        """Lets another process begin in a shard's place; ends the one that is there, unless it is gone already.

        What is being started anew by itself is left to that. Raises: Unavailable.
        """
        ...
