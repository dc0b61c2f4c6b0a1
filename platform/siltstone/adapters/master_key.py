"""The key that wraps users' keys: ours, from a file or the environment, or one that a program keeps for us."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from siltstone.adapters.credentials import read_secret
from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.errors import ConfigInvalid, Corrupt, Unavailable
from siltstone.values import DataKey, UserKey

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_MARK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class MasterKey:
    """Two functions that undo one another, and nothing else: whoever has them need not have the key.

    While master keys are changed, users' keys may be wrapped by the one of before: they are unwrapped by that one then.
    """

    wrap: Callable[[bytes], bytes] = field(repr=False)
    unwrap: Callable[[bytes], bytes] = field(repr=False)
    previous: MasterKey | None = field(default=None, repr=False)

    def wrap_key(self, owner: UserKey, key: DataKey) -> bytes:
        """Returns a user's key, wrapped together with whose it is.

        Raises: Unavailable when the program that wraps fails.
        """
        return self.wrap(key.secret + _binding(owner, key.name))

    def unwrap_key(self, owner: UserKey, name: str, wrapped: bytes) -> DataKey:
        """Returns the key that was wrapped.

        Raises: Corrupt when it is another user's, another one, or damaged. ConfigInvalid when another master key
        wrapped it. Unavailable when the program that unwraps fails.
        """
        key, _ = self._open(owner, name, wrapped)
        return key

    def rewrap_key(self, owner: UserKey, name: str, wrapped: bytes) -> bytes | None:
        """Returns a key that the previous master key wrapped, wrapped by this one; None when it is by this one already.

        Raises: as `unwrap_key`.
        """
        key, is_current = self._open(owner, name, wrapped)
        return None if is_current else self.wrap_key(owner, key)

    def _open(self, owner: UserKey, name: str, wrapped: bytes) -> tuple[DataKey, bool]:
        plain, is_current = self._unwrap(wrapped)
        secret, binding = plain[:KEY_BYTES], plain[KEY_BYTES:]
        if len(secret) != KEY_BYTES or binding != _binding(owner, name):
            raise Corrupt(f"the key of {owner}", f"key {name} of this user", "another one")
        return DataKey(name, secret), is_current

    def _unwrap(self, wrapped: bytes) -> tuple[bytes, bool]:
        try:
            return self.unwrap(wrapped), True
        except (ConfigInvalid, Unavailable) as error:
            # A program does not say whether it is away or was asked for what another has wrapped.
            if self.previous is None:
                raise
            try:
                return self.previous.unwrap(wrapped), False
            except ConfigInvalid:
                if isinstance(error, Unavailable):
                    raise error from None
                reason = "users' keys are wrapped by neither the master key nor the previous one that are configured"
                raise ConfigInvalid("sealing", reason) from None


def make_key() -> DataKey:
    """Returns a new key with a new name."""
    return DataKey(secrets.token_hex(8), secrets.token_bytes(KEY_BYTES))


def open_master_key(config: SealingConfig) -> MasterKey:
    """Returns the master key that the configuration names, with the previous one if it names one.

    Raises: ConfigInvalid when it names none, or it is not there, or no key, or both are the same.
    """
    timeout_s = config.command_timeout_s
    found = _open(config.master_key_file, config.master_key_variable, config.master_command, timeout_s)
    if found is None:
        raise ConfigInvalid("sealing", "expected a master key, found none named")
    if not config.has_previous:
        return found
    previous = _open(config.previous_key_file, config.previous_key_variable, config.previous_command, timeout_s)
    if not (config.master_command or config.previous_command) and previous is not None:
        try:
            previous.unwrap(found.wrap(b""))
        except ConfigInvalid:
            pass
        else:
            raise ConfigInvalid("sealing", "expected another previous master key than the master key, found the same")
    return replace(found, previous=previous)


def _open(file: str, variable: str, command: Sequence[str], timeout_s: float) -> MasterKey | None:
    if command:
        return MasterKey(
            lambda plain: _run([*command, "wrap"], plain, timeout_s),
            lambda wrapped: _run([*command, "unwrap"], wrapped, timeout_s),
        )
    text = read_secret("sealing", file, variable)
    if text is None:
        return None
    try:
        secret = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != KEY_BYTES:
        # Not shown as found: it may be a key after all.
        raise ConfigInvalid("sealing", f"expected a master key of {KEY_BYTES} bytes in base64, found something else")
    return _local(secret)


def _local(secret: bytes) -> MasterKey:
    cipher = AESGCM(secret)
    # Tells a key that another master key wrapped from one that is damaged, without telling anything of either.
    mark = hashlib.sha256(b"siltstone master key" + secret).digest()[:_MARK_BYTES]

    def wrap(plain: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return mark + nonce + cipher.encrypt(nonce, plain, mark)

    def unwrap(wrapped: bytes) -> bytes:
        found, nonce = wrapped[:_MARK_BYTES], wrapped[_MARK_BYTES : _MARK_BYTES + _NONCE_BYTES]
        if found != mark:
            raise ConfigInvalid("sealing", "users' keys are wrapped by another master key than the one configured")
        try:
            return cipher.decrypt(nonce, wrapped[_MARK_BYTES + _NONCE_BYTES :], mark)
        except (InvalidTag, ValueError) as error:
            raise Corrupt("a user's key", "what the master key wrapped", "something else") from error

    return MasterKey(wrap, unwrap)


def _run(command: list[str], data: bytes, timeout_s: float) -> bytes:
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable("the program of the master key", type(error).__name__) from error
    if done.returncode or not done.stdout:
        raise Unavailable("the program of the master key", f"it ended with {done.returncode}")
    return done.stdout


def _binding(owner: UserKey, name: str) -> bytes:
    return fingerprint(owner.tenant, owner.user, name)
