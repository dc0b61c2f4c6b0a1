"""A night that tells where it is: in this process, or in one of its own that gives way to whoever serves.

As a program: python -m siltstone_services.night_process HOME NUMBER DESCRIPTOR, with the configuration and the task, if
there is one, as JSON on the standard input. The descriptor is the nights' lock, inherited, so that it is held without a
gap.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.config.reading import read_config
from siltstone.errors import SiltstoneError
from siltstone.sleep.tasks import Task, read_task
from siltstone.sleep_values import CoreVersion, Night, NightStage
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.logs import frames_of, log_to_stderr
from siltstone_services.night import run_night
from siltstone_services.nights import HeldNight, NightCancelled, Nights
from siltstone_services.task_sleep import run_task

_LOG = logging.getLogger(__name__)


def run_held(
    config: SiltstoneConfig, held: HeldNight, tell: Callable[[Night], None], task: Task | None = None
) -> CoreVersion:
    """Runs the night that this process holds, keeps where it is, and how it ended. `tell` is told of every change.

    With a `task` the night is over that, else over what users said.
    Raises: NightCancelled; what the night raises.
    """
    seed, since_ms = held.night.seed, held.night.since_ms

    def say(text: str) -> None:
        held.say(text)
        tell(held.night)

    def at(stage: NightStage, step: int, num_steps: int) -> None:
        held.at(stage, step, num_steps)
        tell(held.night)

    try:
        # `at` is told of the steps too.
        if task is None:
            version = run_night(config, seed, since_ms, say, lambda _: None, at, held.look).version
        else:
            version = run_task(config, task, seed, say, lambda _: None, at, held.look).version
    except (NightCancelled, KeyboardInterrupt):
        held.end(NightStage.CANCELLED)
        raise
    except SiltstoneError as error:
        held.end(NightStage.FAILED, error=str(error))
        raise
    except BaseException as error:
        # Not the message: it may hold a user's words.
        held.end(NightStage.FAILED, error=f"internal error ({type(error).__name__})")
        raise
    held.end(NightStage.DONE, version=version.number, verdict=in_short(version))
    return version


def in_short(version: CoreVersion) -> str:
    """Returns the verdict on a version in a line."""
    if version.verdict is None:
        return "not judged"
    num_failed = sum(not result.passed for result in version.verdict.results)
    num_all = len(version.verdict.results)
    if version.verdict.accepted:
        return f"accepted: all {num_all} checks passed"
    return f"refused: {num_failed} of {num_all} checks did not pass"


def main(home: str, number: str, descriptor: str) -> int:
    """Runs a night that another process began; returns the exit code."""
    held = Nights(Path(home), SystemClock(), 1).adopt(int(number), int(descriptor))
    signal.signal(signal.SIGTERM, lambda *_: held.tell_to_end())
    try:
        told = json.load(sys.stdin)
        config = read_config(SiltstoneConfig, told["config"])
        task = None if told["task"] is None else read_task(told["task"].encode())
        os.nice(config.night.niceness)
        keep_freed_memory()
        log_to_stderr("info")
        run_held(config, held, lambda _: None, task)
    except (NightCancelled, SiltstoneError) as error:
        _LOG.warning("night ended early", extra={"night": held.night.number, "reason": str(error)})
        return 1
    except Exception as error:
        _LOG.error("night failed", extra={"error": type(error).__name__, "where": frames_of(error)})
        return 1
    finally:
        held.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
