"""The one thread that owns the model: answers first, absorbing in between, commits as rounds end."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from siltstone.inference.engine import AnswerEngine, Progress
from siltstone.memory.absorber import Step
from siltstone.memory.shard import Round, Shard, ShardConfig

_log = logging.getLogger(__name__)

Command = Callable[[], None]


class Worker:
    """Steps an engine and a shard in turn. Commands from other threads run between two steps.

    Answers go before absorbing; after `answers_before_absorb` decode steps in a row one absorb step has its turn.
    `on_progress` hears of every token, `on_commit` of every committed round, `on_failure` of what ended the thread:
    all are called on this thread.
    """

    def __init__(
        self,
        engine: AnswerEngine,
        shard: Shard,
        config: ShardConfig,
        on_progress: Callable[[list[Progress]], None],
        on_commit: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._engine, self._shard, self._config = engine, shard, config
        self._on_progress, self._on_commit, self._on_failure = on_progress, on_commit, on_failure
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="siltstone-worker", daemon=True)
        self._may_have_records = True
        self._round: tuple[Round, Iterator[Step]] | None = None
        self._answers_in_a_row = 0
        self._is_stopping = False
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
        self.call(self._look)

    def drop_round(self) -> None:
        """Gives up the round under way (on the worker's thread): its records are taken in anew."""
        if self._round is not None:
            self._round = None
            self._may_have_records = True

    def _look(self) -> None:
        self._may_have_records = True

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                is_idle = not (self._engine.num_running or self._round or self._may_have_records)
                self._take_commands(wait=is_idle)
                if not self._is_stopping:
                    started = time.monotonic()
                    self._step()
                    self.busy_s += time.monotonic() - started
        except BaseException as error:
            _log.exception("worker ended")
            self._on_failure(error)

    def _take_commands(self, wait: bool) -> None:
        while True:
            try:
                command: Any = self._commands.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if command is None:
                self._is_stopping = True
                return
            command()

    def _step(self) -> None:
        can_absorb = self._round is not None or self._may_have_records
        has_turn = self._answers_in_a_row >= self._config.answers_before_absorb
        if self._engine.num_running and not (can_absorb and has_turn):
            self._answers_in_a_row += 1
            self._on_progress(self._engine.step())
        elif can_absorb:
            self._answers_in_a_row = 0
            self._absorb_step()

    def _absorb_step(self) -> None:
        if self._round is None:
            taken = self._shard.gather()
            if taken is None:
                self._may_have_records = False
                return
            self._round = (taken, self._shard.absorb(taken))
            return
        taken, steps = self._round
        if next(steps, None) is None:
            self._round = None
            self._shard.commit(taken)
            self._on_commit()
