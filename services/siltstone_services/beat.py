"""What a node says of itself, again and again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from siltstone.errors import Unavailable
from siltstone.memory.shard import Damage
from siltstone.placement.coordinator import Claim
from siltstone.values import ShardStatus


@dataclass(frozen=True, slots=True)
class Progress:
    """What has changed of a node's partitions: the committed positions that did, and what keeps it from going on.

    `damaged` holds all partitions that stand still; `trouble` is what journal or store could not do just now.
    """

    positions: dict[int, int]
    damaged: dict[int, Damage]
    trouble: Unavailable | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """How a node is: what it owns, how far it is, and what it has done since it began. No content."""

    incarnation: str
    claim: Claim
    positions: dict[int, int]
    damaged: tuple[int, ...]
    core: str
    num_resident: int
    resident_bytes: int
    num_answers_running: int
    num_absorbed: int
    num_parked: int
    absorbed_tokens: int
    answered_tokens: int
    busy_s: float
    num_versions: int
    num_rebased: int
    num_pinned: int
    num_listeners: int = 0
    """Callers who have not heard the end of their answer yet, whether or not it is being given still."""

    def status(self, num_users_stored: int, lag_interactions: int) -> ShardStatus:
        """Returns the status that this is a part of."""
        return ShardStatus(
            core=self.core,
            num_users_stored=num_users_stored,
            num_users_resident=self.num_resident,
            resident_bytes=self.resident_bytes,
            lag_interactions=lag_interactions,
            num_answers_running=self.num_answers_running,
            num_absorbed=self.num_absorbed,
            num_parked=self.num_parked,
            absorbed_tokens=self.absorbed_tokens,
            answered_tokens=self.answered_tokens,
            busy_s=self.busy_s,
            num_versions=self.num_versions,
            num_rebased=self.num_rebased,
            num_pinned=self.num_pinned,
        )


def leading_core(beats: Iterable[Beat]) -> str:
    """Returns the core by which all nodes answer those who come; empty while they differ, or there is none.

    A promoted version leads in each of them once it has looked and loaded it: some seconds, in which they do.
    """
    cores = {beat.core for beat in beats}
    return cores.pop() if len(cores) == 1 else ""
