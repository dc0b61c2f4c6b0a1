"""The one thread that owns the model: answers first, absorbing in between, commits as rounds end."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from siltstone.errors import Unavailable
from siltstone.inference.engine import Progress
from siltstone.memory.absorber import Step
from siltstone.memory.committing import AtOnce, Committer
from siltstone.memory.round import Round
from siltstone.memory.shard import Shard, ShardConfig
from siltstone.values import UserKey
from siltstone_services.lanes import Lanes
from siltstone_services.upkeep import Upkeep

_log = logging.getLogger(__name__)

Command = Callable[[], None]

_GATHER_SHARE = 0.02
"""Part of a round's time that is spent on waiting for more users to share the next one: after long rounds the few who
have waited for this one would otherwise go on apart from the many whom it has just answered."""
_STEPS_BEFORE_UPKEEP = 32
"""Steps of answering and absorbing in a row after which one step of upkeep has its turn: it is never urgent, and must
end all the same where there is always something else to do."""


@dataclass(slots=True)
class _RoundUnderWay:
    taken: Round
    steps: Iterator[Step]
    started_s: float
    is_absorbed: bool = False


class Worker:
    """Steps the engines and a shard in turn. Commands from other threads run between two steps.

    Answers go before absorbing; after `answers_before_absorb` decode steps in a row one absorb step has its turn. While
    one round travels to the store the next one is absorbed: one is on its way at most. What the journal or the store
    cannot do now is tried again after a pause: an absorbed round is kept for that, and answers go on meanwhile. Upkeep
    takes what time is left. `on_progress` hears of every token, `on_commit` of every change of the shard's positions or
    damage, `on_trouble` of every pause, `on_failure` of what ended the thread: all are called on this thread.
    """

    def __init__(
        self,
        lanes: Lanes,
        shard: Shard,
        upkeep: Upkeep,
        config: ShardConfig,
        on_progress: Callable[[list[Progress]], None],
        on_commit: Callable[[], None],
        on_trouble: Callable[[Unavailable], None],
        on_failure: Callable[[BaseException], None],
        look_every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        committer: Committer | None = None,
    ) -> None:
        """`look_every_s` is how often to look for records that nobody tells of; 0 for never. `clock` tells seconds.

        `committer` runs commits on a thread of its own, or here when there is none.
        """
        self._lanes, self._shard, self._upkeep, self._config = lanes, shard, upkeep, config
        self._on_progress, self._on_commit = on_progress, on_commit
        self._on_trouble, self._on_failure = on_trouble, on_failure
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="siltstone-worker", daemon=True)
        self._committer = AtOnce() if committer is None else committer
        self._may_have_records = True
        self._round: _RoundUnderWay | None = None
        self._sent: _RoundUnderWay | None = None
        self._trouble: Unavailable | None = None
        self._absorb_at_s = 0.0
        self._answers_in_a_row = 0
        self._steps_in_a_row = 0
        self._is_stopping = False
        self._leavers: list[tuple[frozenset[int], Command]] = []
        self._look_every_s, self._look_at_s = look_every_s, 0.0
        self._clock = clock
        self.busy_s = 0.0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Lets the current step end and joins the thread. A round under way is dropped: the journal still has it."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def call(self, command: Command) -> None:
        """Runs a command on the worker's thread, between two steps."""
        self._commands.put(command)

    def notice_records(self) -> None:
        """Says that the journal may have new records."""
        self.call(self.look)

    def let_go(self, partitions: frozenset[int], then: Command) -> None:
        """Owns partitions no more once the round under way is committed, and calls `then` (on the worker's thread).

        A round that cannot be committed now is not waited for: the partitions' next owner takes it in anew.
        """
        self._shard.prepare_to_leave(partitions)
        self._leavers.append((partitions, then))
        self._let_go()

    def _let_go(self) -> None:
        waiting = []
        for partitions, then in self._leavers:
            if self._trouble is not None and not self._shard.is_committing:
                for taken in self._rounds():
                    for partition in partitions:
                        taken.drop_partition(partition)
            if not all(partitions.isdisjoint(taken.ends) for taken in self._rounds()):
                waiting.append((partitions, then))
                continue
            self._shard.leave(partitions)
            self._upkeep.let_go()
            then()
        self._leavers = waiting

    def leave_out(self, owner: UserKey) -> None:
        """Keeps a user's part of what is under way out of what it commits (on the worker's thread)."""
        self._upkeep.forget(owner)
        self._shard.settle()
        for taken in self._rounds():
            taken.leave_out(owner)

    def _rounds(self) -> list[Round]:
        """Returns the rounds that are not committed, the older one first."""
        return [one.taken for one in (self._sent, self._round) if one is not None]

    def _drop_round(self) -> None:
        """Gives up the round under way: its records are taken in anew."""
        self._round = None
        self._may_have_records = True

    def look(self) -> None:
        """Looks for records soon (on the worker's thread)."""
        if not self._wants_to_absorb:
            self._wait_for_more()
        self._may_have_records = True

    def _wait_for_more(self, round_s: float = 0.0) -> None:
        """Puts the next round off a little: who writes at the same moment shares it, and its one backward."""
        wait_s = max(self._config.gather_wait_s, _GATHER_SHARE * round_s)
        self._absorb_at_s = max(self._absorb_at_s, self._clock() + wait_s)

    def _run(self) -> None:
        try:
            while self.turn(self._idle_s()):
                pass
        except BaseException as error:
            # Not the message: it may hold a user's words.
            where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            _log.error("worker ended", extra={"error": type(error).__name__, "where": where})
            self._on_failure(error)

    def turn(self, wait_s: float | None) -> bool:
        """Runs what commands there are, waiting so long for one, and then one step. Says whether to go on.

        What the thread does again and again; without the thread, whoever tests when things happen does it.
        """
        self._take_commands(wait_s)
        if self._is_stopping:
            return False
        started = self._clock()
        try:
            self._end_commit()
        except Unavailable as error:
            self._pause(error)
        self._look_out(started)
        self._step()
        self.busy_s += self._clock() - started
        return True

    def _look_out(self, now_s: float) -> None:
        """Looks for records that others have appended, when it is time to."""
        if not self._look_every_s or self._wants_to_absorb or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + self._look_every_s
        try:
            if self._shard.has_records():
                self.look()
        except Unavailable as error:
            self._pause(error)

    @property
    def _wants_to_absorb(self) -> bool:
        if self._must_send_again:
            return True
        if self._round is None:
            return self._may_have_records
        # An absorbed one waits for the one before it to arrive.
        return self._sent is None or not self._round.is_absorbed

    @property
    def _must_send_again(self) -> bool:
        return self._sent is not None and not self._shard.is_committing

    def _idle_s(self) -> float | None:
        """How long there is nothing to do but to wait for a command; None when until one comes."""
        if self._lanes.num_running:
            return 0.0
        waits_s = [self._upkeep_wait_s]
        if self._wants_to_absorb:
            waits_s.append(max(0.0, self._absorb_at_s - self._clock()))
        elif self._look_every_s:
            waits_s.append(max(0.0, self._look_at_s - self._clock()))
        return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)

    @property
    def _upkeep_wait_s(self) -> float | None:
        """How long upkeep has nothing to do. What is on its way to the store may be what it would look for there."""
        return None if self._shard.is_committing else self._upkeep.wait_s()

    def _take_commands(self, wait_s: float | None) -> None:
        """Runs what commands there are; where there is none, waits so long for one."""
        while True:
            try:
                command: Any = self._commands.get(block=wait_s != 0, timeout=wait_s)
            except queue.Empty:
                return
            wait_s = 0
            if command is None:
                self._is_stopping = True
                return
            command()

    def _step(self) -> None:
        can_absorb = self._wants_to_absorb and self._clock() >= self._absorb_at_s
        has_turn = self._answers_in_a_row >= self._config.answers_before_absorb
        is_free = not self._lanes.num_running and not can_absorb
        if self._upkeep_wait_s == 0 and (is_free or self._steps_in_a_row >= _STEPS_BEFORE_UPKEEP):
            self._steps_in_a_row = 0
            self._upkeep.step(set[UserKey]().union(*(taken.work for taken in self._rounds())))
            return
        if is_free:
            return
        self._upkeep.put_off()
        self._steps_in_a_row += 1
        if self._lanes.num_running and not (can_absorb and has_turn):
            self._answers_in_a_row += 1
            self._on_progress(self._lanes.step())
        elif can_absorb:
            self._answers_in_a_row = 0
            try:
                self._absorb_step()
            except Unavailable as error:
                self._pause(error)

    def _absorb_step(self) -> None:
        if self._must_send_again:
            self._send()
            return
        if self._round is None:
            taken = self._shard.gather()
            if self._shard.damaged:
                self._on_commit()
            if taken is None:
                self._may_have_records = False
                return
            self._round = _RoundUnderWay(taken, self._shard.absorb(taken), self._clock())
            return
        under_way = self._round
        if not under_way.is_absorbed:
            under_way.is_absorbed = next(under_way.steps, None) is None
        if under_way.is_absorbed and self._sent is None:
            self._sent, self._round = under_way, None
            self._send()

    def _send(self) -> None:
        """Sends the older round on its way to the store."""
        assert self._sent is not None
        sent = self._shard.begin_commit(self._sent.taken, self._committer)
        if sent.done():
            self._end_commit()
        else:
            sent.add_done_callback(lambda _: self.call(_wake_up))

    def _end_commit(self) -> None:
        """Ends the commit that has arrived, if one has."""
        if self._sent is None or not self._shard.has_arrived:
            return
        self._shard.end_commit()
        sent, self._sent = self._sent, None
        for memory in sent.taken.memories.values():
            if self._shard.owns(memory.owner):
                self._upkeep.notice(memory)
        self._let_go()
        if self._trouble is not None:
            _log.info("absorbing goes on", extra={"what": self._trouble.what})
            self._trouble = None
        if self._round is None:
            # Who waited for this round often writes again at once.
            self._wait_for_more(self._clock() - sent.started_s)
        self._on_commit()

    def _pause(self, error: Unavailable) -> None:
        if self._round is not None and not self._round.is_absorbed:
            self._drop_round()
        if self._trouble is None:
            _log.warning("absorbing waits", extra={"what": error.what, "reason": error.reason})
        self._trouble = error
        self._let_go()
        self._absorb_at_s = self._clock() + self._config.retry_after_s
        # A part of the round may have been committed.
        self._on_commit()
        self._on_trouble(error)


def _wake_up() -> None:
    """A command that does nothing: what was waited for has arrived."""
