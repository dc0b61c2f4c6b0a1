"""How what is kept of users is encrypted. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from siltstone.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class SealingConfig:
    """Where the master key is, under which users' keys are wrapped. With none of the three nothing is encrypted."""

    master_key_file: str = ""
    """File that holds the master key: 32 bytes in base64, as `openssl rand -base64 32` writes them."""
    master_key_variable: str = ""
    """Environment variable that holds it instead."""
    master_command: tuple[str, ...] = ()
    """Program, with its arguments, that wraps and unwraps instead, so that the master key never leaves its place.
    Called with `wrap` or `unwrap` behind them, it reads bytes from its input and writes bytes to its output."""
    previous_key_file: str = ""
    """File that holds the master key of before, while users' keys may still be wrapped by it: see `keys rotate`."""
    previous_key_variable: str = ""
    """Environment variable that holds it instead."""
    previous_command: tuple[str, ...] = ()
    """Program that unwraps what was wrapped by it, instead."""
    command_timeout_s: float = 10.0
    """Seconds that program may take."""
    cached_for_s: float = 5.0
    """Seconds a user's key is kept in memory. What another process seals for so long after a user was forgotten is
    forgotten too."""
    max_cached_keys: int = 65_536
    """Users' keys kept in memory; the least recently used go first."""

    def __post_init__(self) -> None:
        for when in ("master", "previous"):
            names = (f"{when}_key_file", f"{when}_key_variable", f"{when}_command")
            if sum(bool(getattr(self, name)) for name in names) > 1:
                raise ConfigInvalid("sealing", "expected one of {}, {} and {}, found more".format(*names))
        if self.has_previous and not self.is_on:
            raise ConfigInvalid("sealing", "expected a master key beside the previous one, found none named")
        if not self.command_timeout_s > 0:
            raise ConfigInvalid("sealing", f"command_timeout_s: expected more than 0, found {self.command_timeout_s}")
        if self.cached_for_s < 0:
            raise ConfigInvalid("sealing", f"cached_for_s: expected 0 or more, found {self.cached_for_s}")
        if self.max_cached_keys < 1:
            raise ConfigInvalid("sealing", f"max_cached_keys: expected at least 1, found {self.max_cached_keys}")

    @property
    def is_on(self) -> bool:
        """Whether there is a master key at all."""
        return bool(self.master_key_file or self.master_key_variable or self.master_command)

    @property
    def has_previous(self) -> bool:
        """Whether users' keys may be wrapped by a master key of before."""
        return bool(self.previous_key_file or self.previous_key_variable or self.previous_command)
