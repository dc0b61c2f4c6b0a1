"""The nights of one home folder: which one runs, where each is, and how one is asked to end. No model is imported.

<home>/nights/.lock          held by the process of the night that runs, and by nobody else
<home>/nights/000003.json    where the night is; replaced as a whole
<home>/nights/000003.cancel  somebody wants it to end
<home>/nights/000003.log     what its process said
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_SH
from pathlib import Path
from typing import Final

from siltstone.errors import NotFound, Unavailable, WrongState
from siltstone.ports import Clock
from siltstone.sleep_values import Night, NightStage
from siltstone_services.home import try_lock

_SCHEMA: Final = 1
_LOCK: Final = ".lock"
_LOOK_S: Final = 0.02
_NUM_LOOKS: Final = 10
_WRITE_EVERY_S: Final = 0.1
_MAX_NAME: Final = 80
"""Characters of a task's name that are told."""
_DIED: Final = "its process died"
_CANNOT_END: Final = frozenset({NightStage.RECORD, NightStage.JUDGE})
"""Stages that are ended by nobody: a version is recorded whole or not at all, and then judged."""


class NightCancelled(Exception):
    """Somebody asked the night to end, and it has. Args: number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"night {self.number} was cancelled"


class Nights:
    """What is known of the nights of a home folder. Any process may look; one at a time sleeps."""

    def __init__(self, home: Path, clock: Clock, max_kept: int) -> None:
        self._folder, self._clock, self._max_kept = home / "nights", clock, max_kept

    def list(self) -> tuple[Night, ...]:
        """Returns the nights still known, by number."""
        # One that is pruned while we look is no longer known.
        found = (self._find(number) for number in self._numbers())
        return tuple(night for night in found if night is not None)

    def get(self, number: int) -> Night:
        """Returns a night as it is now. One whose process died without a word has failed.

        Raises: NotFound.
        """
        if (night := self._find(number)) is None:
            raise NotFound("night", str(number))
        return night

    def running(self) -> Night | None:
        """Returns the night that runs, if one does."""
        return next((night for night in reversed(self.list()) if not night.is_over), None)

    def log_path(self, number: int) -> Path:
        """Returns where the process of a night writes what it says."""
        return self._folder / f"{number:06d}.log"

    def begin(self, seed: int, since_ms: int, task: str = "") -> HeldNight:
        """Makes a new night, over the task of a name or over what users said, and holds it for this process.

        Raises: WrongState while one runs; Unavailable when the folder cannot be used.
        """
        descriptor = self._lock()
        try:
            for night in self.list():
                if not night.is_over:
                    # We hold the lock: whoever ran it is gone.
                    self._write(replace(night, stage=NightStage.FAILED, error=_DIED))
            numbers = self._numbers()
            now_ms = self._clock.now_ms()
            number = numbers[-1] + 1 if numbers else 1
            name = " ".join(task.split())[:_MAX_NAME]
            night = Night(number, NightStage.PLAN, seed, since_ms, os.getpid(), now_ms, now_ms, task=name)
            self._write(night)
            self._prune((*numbers, number))
        except BaseException:
            os.close(descriptor)
            raise
        return HeldNight(self, night, descriptor, self._clock)

    def adopt(self, number: int, descriptor: int) -> HeldNight:
        """Holds a night that another process began and handed on with its lock.

        Raises: NotFound.
        """
        os.set_inheritable(descriptor, False)
        return HeldNight(self, replace(self.get(number), pid=os.getpid()), descriptor, self._clock)

    def cancel(self, number: int) -> Night:
        """Asks a night to end between two steps. Asking twice is no error.

        Raises: NotFound; WrongState when it is over, or records what came of it: that is soon over.
        """
        night = self.get(number)
        if night.is_over:
            raise WrongState(f"night {number}", night.stage.value, "cancel")
        if night.stage in _CANNOT_END:
            raise WrongState(f"night {number}", "recording what came of it", "cancel")
        with _usable():
            self._mark(number).touch(mode=0o600)
        return replace(night, is_cancelling=True)

    def is_asked_to_end(self, number: int) -> bool:
        """Says whether somebody asked a night to end."""
        return self._mark(number).exists()

    def save(self, night: Night, *, is_durable: bool) -> None:
        """Writes where a night is. Only its holder does."""
        self._write(night, is_durable=is_durable)

    def _find(self, number: int) -> Night | None:
        night = self._read(number)
        if night is None or night.is_over or not self._is_free():
            return night
        # The lock was free after the night was seen unfinished: it has ended meanwhile, or nobody is there to end it.
        night = self._read(number)
        if night is None or night.is_over:
            return night
        return replace(night, stage=NightStage.FAILED, error=_DIED)

    def _read(self, number: int) -> Night | None:
        try:
            told = json.loads(self._path(number).read_bytes())
            if told.pop("schema") != _SCHEMA:
                raise ValueError("another schema")
            told["stage"] = NightStage(told["stage"])
            night = Night(**told)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damage = f"its state cannot be read: {type(error).__name__}"
            return Night(number, NightStage.FAILED, 0, 0, 0, 0, 0, error=damage)
        return replace(night, is_cancelling=not night.is_over and self.is_asked_to_end(number))

    def _numbers(self) -> tuple[int, ...]:
        return tuple(sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdecimal()))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"

    def _mark(self, number: int) -> Path:
        return self._folder / f"{number:06d}.cancel"

    def _lock(self) -> int:
        with _usable():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(_NUM_LOOKS):
            if try_lock(descriptor, LOCK_EX):
                return descriptor
            # It may be somebody who only looks who holds it: that takes no time.
            time.sleep(_LOOK_S)
        os.close(descriptor)
        night = self.running()
        who = f"night {night.number}" if night else "another night"
        raise WrongState(who, "running", "begin a second beside it")

    def _is_free(self) -> bool:
        try:
            descriptor = os.open(self._folder / _LOCK, os.O_RDONLY)
        except OSError:
            return True
        try:
            return try_lock(descriptor, LOCK_SH)
        finally:
            os.close(descriptor)

    def _write(self, night: Night, *, is_durable: bool = True) -> None:
        path = self._path(night.number)
        beside = path.with_name(f".{path.name}")
        told = {**dataclasses.asdict(night), "schema": _SCHEMA}
        with _usable():
            with beside.open("w", encoding="utf-8") as file:
                json.dump(told, file)
                if is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)

    def _prune(self, numbers: tuple[int, ...]) -> None:
        for number in numbers[: -self._max_kept]:
            # The state goes last: what has none is not known, and would never be pruned.
            for path in (self._mark(number), self.log_path(number), self._path(number)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)


class HeldNight:
    """A night that this process runs, from when it has it until it is closed."""

    def __init__(self, nights: Nights, night: Night, descriptor: int, clock: Clock) -> None:
        self.night, self.descriptor = night, descriptor
        self._nights, self._clock = nights, clock
        self._is_told_to_end = False
        self._written_at_s = clock.monotonic_s()

    def tell_to_end(self) -> None:
        """Lets the night end between two steps, as somebody's cancelling does. A signal handler may call it."""
        self._is_told_to_end = True

    def at(self, stage: NightStage, step: int = 0, num_steps: int = 0) -> None:
        """Says where the night is.

        Raises: NightCancelled when it is to end.
        """
        self._end_if_asked()
        is_new = stage is not self.night.stage
        self._tell(replace(self.night, stage=stage, step=step, num_steps=num_steps), is_worth_writing=is_new)

    def say(self, text: str) -> None:
        """Keeps a line of words, none of them a user's.

        Raises: NightCancelled when the night is to end.
        """
        self._end_if_asked()
        self._tell(replace(self.night, said=text), is_worth_writing=True)

    def look(self) -> None:
        """Looks whether the night is to end. Any thread may.

        Raises: NightCancelled when it is.
        """
        self._end_if_asked()

    def end(self, stage: NightStage, *, version: int = 0, verdict: str = "", error: str = "") -> None:
        """Says how the night ended.

        Raises: Unavailable when it cannot be written: whoever looks is told that the process died.
        """
        self.night = replace(
            self.night,
            stage=stage,
            version=version,
            verdict=verdict,
            error=error,
            is_cancelling=False,
            updated_at_ms=self._clock.now_ms(),
        )
        self._nights.save(self.night, is_durable=True)

    def close(self) -> None:
        """Lets go of the night."""
        os.close(self.descriptor)

    def _end_if_asked(self) -> None:
        if self.night.stage in _CANNOT_END:
            return
        if self._is_told_to_end or self._nights.is_asked_to_end(self.night.number):
            raise NightCancelled(self.night.number)

    def _tell(self, night: Night, *, is_worth_writing: bool) -> None:
        self.night = replace(night, updated_at_ms=self._clock.now_ms())
        now_s = self._clock.monotonic_s()
        if is_worth_writing or now_s - self._written_at_s >= _WRITE_EVERY_S:
            # A night is not given up because nobody can be told how far it is.
            with suppress(Unavailable):
                self._nights.save(self.night, is_durable=False)
            self._written_at_s = now_s


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable("the folder of the nights", error.strerror or str(error)) from error
