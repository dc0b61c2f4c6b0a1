"""What an operator may do with the nights of a home folder, without importing a model."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Final

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid, InvalidInput, Unavailable
from siltstone.sleep.tasks import read_task
from siltstone.sleep_values import Night, NightStage
from siltstone_services.nights import HeldNight, Nights

_OF_THE_EXTRA: Final = ("mlflow", "model_signing", "detect_secrets", "phonenumbers", "stdnum")


def require_extra() -> None:
    """Looks whether this installation can sleep, without importing what that takes.

    Raises: ConfigInvalid when it cannot.
    """
    for module in _OF_THE_EXTRA:
        if not _is_there(module):
            raise without_extra(module)


def without_extra(module: str | None) -> ConfigInvalid:
    """Returns the error for an installation that cannot sleep."""
    return ConfigInvalid("this installation", f"it cannot sleep: install siltstone[sleep] (there is no {module})")


class NightDesk:
    """Begins, shows, watches and cancels nights. Every night is a process of its own and outlives who began it."""

    def __init__(self, config: SiltstoneConfig) -> None:
        self._config = config
        self.nights = Nights(config.home_path, SystemClock(), config.night.max_kept)

    async def run(self, seed: int, since_ms: int) -> Night:
        """Begins a night and returns it.

        Raises: InvalidInput; WrongState while one runs; ConfigInvalid when this installation cannot sleep; Unavailable.
        """
        _check_numbers(seed=seed, since_ms=since_ms)
        return await asyncio.to_thread(self._begin, seed, since_ms, None)

    async def run_task(self, content: bytes, seed: int) -> Night:
        """Begins a night over the task of a file and returns it.

        Raises: as `run`; InvalidInput, naming the place, for a file that tells no task.
        """
        _check_numbers(seed=seed)
        return await asyncio.to_thread(self._begin, seed, 0, content)

    async def list(self) -> tuple[Night, ...]:
        """Returns the nights still known, by number."""
        return await asyncio.to_thread(self.nights.list)

    async def get(self, number: int) -> Night:
        """Returns a night as it is now.

        Raises: NotFound.
        """
        return await asyncio.to_thread(self.nights.get, number)

    async def cancel(self, number: int) -> Night:
        """Asks a night to end between two steps.

        Raises: NotFound; WrongState when it is over, or records what came of it.
        """
        return await asyncio.to_thread(self.nights.cancel, number)

    async def watch(self, number: int) -> AsyncGenerator[Night, None]:
        """Yields a night again and again, changed or not, until it is over.

        Raises: NotFound.
        """
        while True:
            night = await self.get(number)
            yield night
            if night.is_over:
                return
            await asyncio.sleep(self._config.night.poll_interval_s)

    def _begin(self, seed: int, since_ms: int, task: bytes | None) -> Night:
        name = "" if task is None else read_task(task).name
        require_extra()
        held = self.nights.begin(seed, since_ms, name)
        try:
            self._start(held, task)
        except OSError as error:
            held.end(NightStage.FAILED, error="its process could not be started")
            raise Unavailable("the process of the night", error.strerror or str(error)) from error
        finally:
            held.close()
        return held.night

    def _start(self, held: HeldNight, task: bytes | None) -> None:
        """Starts the process of a night. In a session of its own, it goes on when the server stops."""
        home, number = str(self._config.home_path), str(held.night.number)
        command = [sys.executable, "-m", "siltstone_services.night_process", home, number, str(held.descriptor)]
        with self.nights.log_path(held.night.number).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(held.descriptor,),
                start_new_session=True,
            )
        # Somebody must wait for it, or it stays behind as a zombie.
        threading.Thread(target=process.wait, name="siltstone-night", daemon=True).start()
        assert process.stdin is not None
        text = None if task is None else task.decode()
        with process.stdin as told:
            told.write(json.dumps({"config": dataclasses.asdict(self._config), "task": text}).encode())


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise InvalidInput(name, "0 or more", str(value))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
