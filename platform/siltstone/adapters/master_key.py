"""The key that wraps users' keys: ours, from a file or the environment, or one that a program keeps for us."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """Two functions that undo one another, and nothing else: whoever has them need not have the key."""

    wrap: Callable[[bytes], bytes] = field(repr=False)
    unwrap: Callable[[bytes], bytes] = field(repr=False)

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
        plain = self.unwrap(wrapped)
        secret, binding = plain[:KEY_BYTES], plain[KEY_BYTES:]
        if len(secret) != KEY_BYTES or binding != _binding(owner, name):
            raise Corrupt(f"the key of {owner}", f"key {name} of this user", "another one")
        return DataKey(name, secret)


def make_key() -> DataKey:
    """Returns a new key with a new name."""
    return DataKey(secrets.token_hex(8), secrets.token_bytes(KEY_BYTES))


def open_master_key(config: SealingConfig) -> MasterKey:
    """Returns the master key that the configuration names.

    Raises: ConfigInvalid when it names none, or it is not there, or no key.
    """
    if config.master_command:
        command = list(config.master_command)
        return MasterKey(
            lambda plain: _run([*command, "wrap"], plain, config.command_timeout_s),
            lambda wrapped: _run([*command, "unwrap"], wrapped, config.command_timeout_s),
        )
    text = read_secret("sealing", config.master_key_file, config.master_key_variable)
    if text is None:
        raise ConfigInvalid("sealing", "expected a master key, found none named")
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
