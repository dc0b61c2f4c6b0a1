"""The private sleeps of a home folder's users: whose turn it is, each sleep, and the commit that makes it last."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew, Look
from siltstone.errors import Corrupt, SnapshotMismatch, Unavailable
from siltstone.evaluation.office_material import load_office
from siltstone.journal.partition import partition_of
from siltstone.memory.consolidation import due_level, parts_of, replay_of, slept
from siltstone.memory.lessons import LessonPlan
from siltstone.memory.user_memory import LEVEL_NAMES, UserMemory, from_blob, to_blob
from siltstone.model.lesson import Lesson
from siltstone.ports import SnapshotStore
from siltstone.sleep.private import Consolidation, Outcome, PrivateSleeper
from siltstone.sleep_values import SleepPlan
from siltstone.values import Commit, Snapshot, UserKey
from siltstone_services.bed import Bed, crew_of
from siltstone_services.home import exclusive

_log = logging.getLogger(__name__)

_ANCHOR_TOKENS: Final = 64
_ANCHOR_STRIDE: Final = 2
"""Every so many-th token of neutral prose is judged: reading it is cheap beside comparing whole vocabularies."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Slept:
    """One user's sleep: the memory afterwards (None where it was refused), and the seconds it took."""

    owner: UserKey
    level: str
    outcome: Outcome
    memory: UserMemory | None
    elapsed_s: float


def open_private_sleeper(bed: Bed, config: SiltstoneConfig) -> PrivateSleeper:
    """Returns who consolidates memories over a core. It reads the neutral text once, which takes some seconds."""
    anchors = _anchors(bed.lessons, bed)
    stop_ids = bed.loaded.tokenizer.stop_ids
    ground = bed.ground
    return PrivateSleeper(
        bed.core, bed.shape, ground.basis, ground.guard, bed.prefix, stop_ids, anchors, config.sleep.private
    )


def _anchors(plan: LessonPlan, bed: Bed) -> list[Lesson]:
    office, longest = load_office(), min(_ANCHOR_TOKENS, bed.core.config.max_context)
    prose = []
    for passage in office.anchors:
        ids = tuple(bed.loaded.tokenizer.encode(passage.text)[:longest])
        judged = tuple(float(at % _ANCHOR_STRIDE == 0) for at in range(len(ids)))
        prose.append(Lesson(ids, judged, after_prefix=False))
    return [*prose, *(plan.as_answered(chat.question, chat.answer) for chat in office.anchor_chats)]


def sleep_one(
    sleeper: PrivateSleeper, memory: UserMemory, level: int, plan: LessonPlan, config: SiltstoneConfig, seed: int
) -> Generator[int, None, Slept]:
    """Consolidates one memory: yields where others may have their turn. Nothing is written: committing is the caller's.

    A memory that came through a refused sleep is as it was; asked again before it has learned more it is refused again.
    """
    started_s = time.monotonic()
    kept_share = config.sleep.private.kept_share
    parts = parts_of(memory, level, kept_share, config.memory)
    replay = replay_of(memory, plan, level)
    task = Consolidation(parts.stays_N, parts.target_N, parts.moves_N, parts.max_norm, replay)
    told = repr((seed, memory.owner, memory.core, memory.sequence, level))
    outcome = yield from sleeper.sleep(task, hashlib.sha256(told.encode()).hexdigest())
    after = None if outcome.target_N is None else slept(memory, level, kept_share, outcome.target_N)
    return Slept(memory.owner, LEVEL_NAMES[level], outcome, after, time.monotonic() - started_s)


def sleep_where_free(plan: SleepPlan, store: SnapshotStore, bed: Bed, config: SiltstoneConfig, say: Say) -> None:
    """Lets the users of a plan sleep whose memories are due, holding the home; one that a server uses is left to it.

    Only one process may write memories, and a server has those of its users at hand. In a cluster that is the shards.
    Raises: as `sleep_privately`.
    """
    if not config.sleep.private.num_steps:
        return
    if config.cluster.is_on:
        say("private sleep: it is left to the shards")
        return
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(config.home_path, is_night=True))
        except Unavailable:
            say("private sleep: the home folder is in use, so it is left to the server there")
            return
        sleep_privately(plan, store, bed, config, crew_of(config, bed.look), say)


def sleep_privately(
    plan: SleepPlan, store: SnapshotStore, bed: Bed, config: SiltstoneConfig, crew: Crew, say: Say
) -> list[Slept]:
    """Lets every user of a plan sleep whose memory is due, side by side on the crew's threads.

    The caller holds the home. Memories of another core than the bed's sleep once they have been carried over to it, and
    damaged ones not at all.
    1. Load as many memories as there are threads. 2. Let them sleep. 3. Commit what was accepted, under a lease of its
    partition. After a crash between any two steps a memory is as it was, or has slept.

    Raises: Unavailable. What was committed stays so.
    """
    done: list[Slept] = []
    sleeper: PrivateSleeper | None = None
    # 1.
    for group in _groups(_due(plan.users, store, bed, config), crew.num_threads):
        sleeper = sleeper or open_private_sleeper(bed, config)
        # 2.
        calls = [
            partial(_to_end, sleep_one(sleeper, memory, level, bed.lessons, config, plan.seed), crew.look)
            for memory, level in group
        ]
        for one in crew.run(calls):
            # 3.
            if one.memory is not None:
                _commit(one.memory, store, len(plan.positions))
            done.append(one)
            told = "; ".join(one.outcome.refusals) or "accepted"
            say(f"private sleep {len(done)} of {one.level}: {told} ({one.elapsed_s:.1f} s)")
    return done


def _due(
    users: Sequence[UserKey], store: SnapshotStore, bed: Bed, config: SiltstoneConfig
) -> Iterator[tuple[UserMemory, int]]:
    """Yields the memories that are to sleep, with the level that is to: loaded when their turn comes."""
    for owner in users:
        try:
            snapshot = store.load(owner)
            if snapshot is None or snapshot.core != bed.ground.version:
                continue
            memory = from_blob(owner, snapshot.blob, bed.ground.version, bed.shape)
        except (Corrupt, SnapshotMismatch) as error:
            # It has no sleep, and must not cost the others theirs.
            _log.warning("memory not slept", extra={"damage": type(error).__name__})
            continue
        if (level := due_level(memory, config.memory)) is not None:
            yield memory, level


def _groups(due: Iterator[tuple[UserMemory, int]], size: int) -> Iterator[list[tuple[UserMemory, int]]]:
    group: list[tuple[UserMemory, int]] = []
    for one in due:
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _to_end(sleep: Generator[int, None, Slept], look: Look) -> Slept:
    while True:
        look()
        try:
            next(sleep)
        except StopIteration as done:
            slept_one: Slept = done.value
            return slept_one


def _commit(memory: UserMemory, store: SnapshotStore, num_partitions: int) -> None:
    partition = partition_of(memory.owner, num_partitions)
    lease, position = store.acquire(partition, "private sleep"), store.position(partition)
    snapshot = Snapshot.seal(memory.owner, memory.core, memory.sequence, to_blob(memory))
    store.commit(Commit(lease, position, position, (snapshot,)))
    _log.info("private sleep committed", extra={"partition": partition, "sequence": memory.sequence})
