"""What is done for a user between answers and absorbing: carrying the memory to the leading version, private sleep."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, NotOwner, SnapshotMismatch, Unavailable
from siltstone.memory.consolidation import due_level, retold
from siltstone.memory.shard import Shard
from siltstone.memory.user_memory import UserMemory
from siltstone.ports import SnapshotStore
from siltstone.sleep.private import PrivateSleeper
from siltstone.sleep.rebase import RebaseConfig, Rebased, rebase
from siltstone.values import UserKey
from siltstone_services.bed import Bed
from siltstone_services.lanes import Lane, Lanes
from siltstone_services.private_sleeper import Slept, open_private_sleeper, sleep_one

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
        retold(memory, new.plan, "rebase"),
        config,
        f"{memory.owner}/{memory.sequence}/{new.version}",
    )
    for done in fitting:
        if done is not None:
            yield done, memory.moved(new.version, done.correction) if done.accepted else memory
        else:
            yield None


def _sleeping(
    sleeper: PrivateSleeper, memory: UserMemory, level: int, lane: Lane, config: SiltstoneConfig
) -> Iterator[tuple[Slept, UserMemory] | None]:
    """Lets a memory sleep. Yields None after every small step, what came of it at last."""
    sleep = sleep_one(sleeper, memory, level, lane.plan, config, seed=0)
    while True:
        try:
            next(sleep)
        except StopIteration as end:
            slept: Slept = end.value
            break
        yield None
    yield slept, memory if slept.memory is None else slept.memory


@dataclass(slots=True)
class _Job:
    owner: UserKey
    sequence: int
    version: str
    steps: Iterator[tuple[Rebased | Slept, UserMemory] | None]


class Upkeep:
    """Carries users to the leading version once they have come back, and lets their memories sleep. On one thread.

    One user after another, on the worker's thread. Until a user is carried over, and for ever where the user's own text
    would lose by it, the old version serves them. Memories sleep when they are due and nobody has asked anything for a
    while. What was refused is tried again when the memory or the leading version has changed.
    """

    def __init__(self, lanes: Lanes, shard: Shard, store: SnapshotStore, config: SiltstoneConfig) -> None:
        self._lanes, self._shard, self._store, self._config = lanes, shard, store, config
        self._waiting: dict[UserKey, None] = {}
        self._refused: dict[UserKey, tuple[int, str]] = {}
        self._tired: dict[UserKey, None] = {}
        self._sleepless: dict[UserKey, int] = {}
        self._sleepers: dict[str, PrivateSleeper] = {}
        self._quiet_at_s = 0.0
        self._left: set[str] = set()
        self._job: _Job | None = None
        self.num_rebased = 0
        self.num_slept = 0

    def wait_s(self) -> float | None:
        """Returns in how many seconds there is something to do: 0 is now, None until somebody comes."""
        if self._job is not None or self._waiting or any(map(self._is_idle, self._left)):
            return 0.0
        return max(0.0, self._quiet_at_s - time.monotonic()) if self._tired else None

    def put_off(self) -> None:
        """Says that somebody is answered or absorbed: memories do not begin to sleep for a while."""
        self._quiet_at_s = time.monotonic() + self._config.sleep.private.quiet_s

    @property
    def num_pinned(self) -> int:
        """Users who stay with an older version, as far as this process has tried."""
        return len(self._refused)

    def notice(self, memory: UserMemory) -> None:
        """Says that a user is there."""
        leading = self._shard.core
        if memory.core != leading:
            if self._refused.get(memory.owner) != (memory.sequence, leading):
                self._waiting[memory.owner] = None
        elif self._is_due(memory):
            self._tired[memory.owner] = None

    def _is_due(self, memory: UserMemory) -> bool:
        is_on = self._config.sleep.private.num_steps > 0 and self._sleepless.get(memory.owner) != memory.sequence
        return is_on and due_level(memory, self._config.memory) is not None

    def leave(self, version: str) -> None:
        """Says that a version has fewer users than before, or leads no more: it may be one that nobody needs."""
        self._left.add(version)

    def forget(self, owner: UserKey) -> None:
        """Keeps nothing of a user."""
        for kept in (self._waiting, self._refused, self._tired, self._sleepless):
            kept.pop(owner, None)
        if self._job is not None and self._job.owner == owner:
            self._job = None

    def let_go(self) -> None:
        """Keeps nothing of users whose partition is not here any more: whoever has it now looks after them."""
        for kept in (self._waiting, self._refused, self._tired, self._sleepless):
            for owner in [owner for owner in kept if not self._shard.owns(owner)]:
                del kept[owner]
        if self._job is not None and not self._shard.owns(self._job.owner):
            self._job = None

    def step(self, absorbing: Collection[UserKey]) -> None:
        """Takes one small step for one user. Those who are being absorbed wait: what they learn now goes before."""
        try:
            if self._job is not None:
                if (done := next(self._job.steps)) is not None:
                    job, self._job = self._job, None
                    self._conclude(job, *done, absorbing)
            elif (owner := next((owner for owner in self._waiting if owner not in absorbing), None)) is not None:
                del self._waiting[owner]
                self._job = self._rebase_of(self._shard.memory_of(owner))
            elif any(map(self._is_idle, self._left)):
                self._release()
            elif (owner := next((owner for owner in self._tired if owner not in absorbing), None)) is not None:
                del self._tired[owner]
                self._job = self._sleep_of(self._shard.memory_of(owner))
        except (Unavailable, Corrupt, NotOwner, SnapshotMismatch) as error:
            # Nothing is lost: the memory goes on as it is, and whoever comes back is tried again.
            _log.warning("upkeep failed", extra={"error": type(error).__name__})
            self._job = None

    def _rebase_of(self, memory: UserMemory) -> _Job | None:
        new = self._lanes.leading
        # Who has learned nothing has nothing to carry over.
        if memory.core == new.version or not memory.sequence:
            return None
        steps = rebased(memory, self._lanes.of(memory.core), new, self._config.sleep.rebase)
        return _Job(memory.owner, memory.sequence, new.version, steps)

    def _sleep_of(self, memory: UserMemory) -> _Job | None:
        lane, level = self._lanes.of(memory.core), due_level(memory, self._config.memory)
        if level is None or not self._is_due(memory) or lane is not self._lanes.leading:
            return None
        if lane.version not in self._sleepers:
            bed = Bed(lane.loaded, lane.core, lane.shape, lane.plan, lane.ground)
            self._sleepers = {lane.version: open_private_sleeper(bed, self._config)}
        steps = _sleeping(self._sleepers[lane.version], memory, level, lane, self._config)
        return _Job(memory.owner, memory.sequence, lane.version, steps)

    def _conclude(
        self, job: _Job, outcome: Rebased | Slept, memory: UserMemory, absorbing: Collection[UserKey]
    ) -> None:
        before = self._shard.memory_of(job.owner)
        if job.owner in absorbing or before.sequence != job.sequence or self._shard.core != job.version:
            # The memory has moved on, or the leading version has: the work was for one that is no more.
            self.notice(before)
        elif isinstance(outcome, Slept):
            self._conclude_sleep(job, outcome, memory)
        else:
            self._conclude_rebase(job, outcome, before, memory)

    def _conclude_rebase(self, job: _Job, outcome: Rebased, before: UserMemory, memory: UserMemory) -> None:
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
        self._shard.replace(memory)
        self._refused.pop(job.owner, None)
        self.num_rebased += 1
        self.leave(before.core)
        self.notice(memory)

    def _conclude_sleep(self, job: _Job, outcome: Slept, memory: UserMemory) -> None:
        told = {"level": outcome.level, "accepted": outcome.memory is not None, "elapsed_s": outcome.elapsed_s}
        _log.info("memory slept", extra=told)
        if outcome.memory is None:
            self._sleepless[job.owner] = job.sequence
            return
        self._shard.replace(memory)
        self._sleepless.pop(job.owner, None)
        self.num_slept += 1
        self.notice(memory)

    def _is_idle(self, version: str) -> bool:
        lane = self._lanes.get(version)
        return lane is None or not lane.engine.num_running

    def _release(self) -> None:
        """Lets the versions go that nobody needs any more. It goes through all snapshots, so only when nobody waits."""
        idle = {version for version in self._left if self._is_idle(version)}
        self._left -= idle
        users = self._store.users_by_core()
        for version in idle:
            if not users.get(version) and self._lanes.get(version) is not None and self._lanes.drop(version):
                _log.info("version released", extra={"core": version})
