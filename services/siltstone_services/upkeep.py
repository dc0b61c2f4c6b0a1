"""What is done for a user between answers and absorbing: carrying the memory to the version that newcomers get."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, SnapshotMismatch, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.memory.restate import sentences
from siltstone.memory.shard import Shard
from siltstone.memory.user_memory import UserMemory
from siltstone.model.lesson import Lesson
from siltstone.ports import SnapshotStore
from siltstone.sleep.rebase import RebaseConfig, Rebased, rebase
from siltstone.values import UserKey
from siltstone_services.lanes import Lane, Lanes

_log = logging.getLogger(__name__)


def rebased(
    memory: UserMemory, old: Lane, new: Lane, config: RebaseConfig
) -> Iterator[tuple[Rebased, UserMemory] | None]:
    """Carries a memory from one version to another. Yields None after every small step, what came of it at last.

    The memory that comes back is the one on the new version, or the old one where it was refused. Both versions read
    through one basis, that of the core they descend from.
    """
    fitting = rebase(
        old.core,
        new.core,
        new.shape,
        new.ground.basis,
        new.ground.guard,
        new.plan.prefix_ids,
        memory.coefficients(),
        lessons_of(memory, new),
        config,
        f"{memory.owner}/{memory.sequence}/{new.version}",
    )
    for done in fitting:
        if done is not None:
            yield done, memory.moved(new.version, done.correction) if done.accepted else memory
        else:
            yield None


def lessons_of(memory: UserMemory, lane: Lane) -> list[Lesson]:
    """Returns what a user said, as far as it is kept, as answers to cues."""
    return [
        lane.plan.as_recalled(sentence, f"{memory.owner}/{number}")
        for number, line in enumerate(memory.reservoir.lines())
        for sentence in sentences(line)
    ]


@dataclass(slots=True)
class _Job:
    owner: UserKey
    sequence: int
    version: str
    steps: Iterator[tuple[Rebased, UserMemory] | None]


class Upkeep:
    """Carries users to the leading version, one after another, once they have come back. On the worker's thread.

    Until a user is carried over, and for ever where the user's own text would lose by it, the old version serves them.
    It is tried again when the memory or the leading version has changed.
    """

    def __init__(
        self, lanes: Lanes, shard: Shard, store: SnapshotStore, num_partitions: int, config: SiltstoneConfig
    ) -> None:
        self._lanes, self._shard, self._store = lanes, shard, store
        self._num_partitions, self._config = num_partitions, config.sleep.rebase
        self._waiting: dict[UserKey, None] = {}
        self._refused: dict[UserKey, tuple[int, str]] = {}
        self._job: _Job | None = None
        self.num_rebased = 0

    @property
    def has_work(self) -> bool:
        """Whether somebody waits."""
        return self._job is not None or bool(self._waiting)

    @property
    def num_pinned(self) -> int:
        """Users who stay with an older version, as far as this process has tried."""
        return len(self._refused)

    def notice(self, memory: UserMemory) -> None:
        """Says that a user is there."""
        leading = self._shard.core
        if memory.core != leading and self._refused.get(memory.owner) != (memory.sequence, leading):
            self._waiting[memory.owner] = None

    def forget(self, owner: UserKey) -> None:
        """Keeps nothing of a user."""
        self._waiting.pop(owner, None)
        self._refused.pop(owner, None)
        if self._job is not None and self._job.owner == owner:
            self._job = None

    def step(self, absorbing: Collection[UserKey]) -> None:
        """Takes one small step for one user. Those who are being absorbed wait: what they learn now goes before."""
        try:
            if self._job is None:
                self._job = self._next_job(absorbing)
            elif (done := next(self._job.steps)) is not None:
                job, self._job = self._job, None
                self._conclude(job, *done, absorbing)
        except (Unavailable, Corrupt, SnapshotMismatch) as error:
            # Nothing is lost: the old version goes on, and whoever comes back is tried again.
            _log.warning("upkeep failed", extra={"error": type(error).__name__})
            self._job = None

    def _next_job(self, absorbing: Collection[UserKey]) -> _Job | None:
        owner = next((owner for owner in self._waiting if owner not in absorbing), None)
        if owner is None:
            return None
        del self._waiting[owner]
        memory = self._shard.memory_of(owner)
        new = self._lanes.leading
        if memory.core == new.version:
            return None
        if not memory.sequence:
            # Who has learned nothing has nothing to carry over.
            return None
        old = self._lanes.of(memory.core)
        return _Job(owner, memory.sequence, new.version, rebased(memory, old, new, self._config))

    def _conclude(self, job: _Job, outcome: Rebased, memory: UserMemory, absorbing: Collection[UserKey]) -> None:
        before = self._shard.memory_of(job.owner)
        if job.owner in absorbing or before.sequence != job.sequence or self._shard.core != job.version:
            # The memory has moved on, or the leading version has: the work was for one that is no more.
            self.notice(before)
            return
        told = {
            "accepted": outcome.accepted,
            "held_nats": outcome.held_nats,
            "lost_nats": outcome.lost_nats,
            "num_steps": outcome.num_steps,
        }
        _log.info("memory rebased", extra=told)
        if not outcome.accepted:
            self._refused[job.owner] = (job.sequence, job.version)
            return
        self._shard.replace(memory, partition_of(job.owner, self._num_partitions))
        self._refused.pop(job.owner, None)
        self.num_rebased += 1
        if not self._store.users_by_core().get(before.core):
            self.release(before.core)

    def release(self, version: str) -> None:
        """Lets a version go that nobody needs any more."""
        if self._lanes.get(version) is not None and self._lanes.drop(version):
            _log.info("version released", extra={"core": version})
