"""The sealer: AES-256-GCM under each user's own key, so that who destroys the key has erased what it sealed.

What it writes: a version (1 byte), the name of the key (8), a nonce (12), the encrypted bytes, their tag (16). The tag
also covers whose it is and what: nothing can be put in the place of something else.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.errors import Corrupt, Unavailable
from siltstone.ports import KeyVault
from siltstone.values import DataKey, UserKey

_K = TypeVar("_K")

SEALED_VERSION: Final = 1
_VERSION: Final = bytes([SEALED_VERSION])
_NAME_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = 1 + _NAME_BYTES + _NONCE_BYTES


@dataclass(frozen=True, slots=True)
class _Held:
    name: bytes
    cipher: AESGCM | None
    until_s: float


class AesGcmSealer:
    """`ports.Sealer` over a vault. Keeps keys in memory for a moment; safe for the threads of a process."""

    def __init__(
        self, vault: KeyVault, config: SealingConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._vault, self._clock = vault, clock
        self._config = config or SealingConfig()
        self._lock = threading.Lock()
        self._current: OrderedDict[UserKey, _Held] = OrderedDict()
        self._found: OrderedDict[tuple[UserKey, bytes], _Held] = OrderedDict()

    def prepare(self, owners: Sequence[UserKey]) -> None:
        """See `ports.Sealer.prepare`."""
        missing = [owner for owner in dict.fromkeys(owners) if self._held(self._current, owner) is None]
        if not missing:
            return
        for owner, key in zip(missing, self._vault.current(missing), strict=True):
            self._hold(owner, key)

    def seal(self, owner: UserKey, context: str, data: bytes) -> bytes:
        """See `ports.Sealer.seal`."""
        held = self._held(self._current, owner)
        if held is None:
            (key,) = self._vault.current([owner])
            held = self._hold(owner, key)
        assert held.cipher is not None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return b"".join((_VERSION, held.name, nonce, held.cipher.encrypt(nonce, data, _bound_to(owner, context))))

    def open(self, what: str, owner: UserKey, context: str, sealed: bytes) -> bytes | None:
        """See `ports.Sealer.open`.

        Raises: Unavailable also when newer code sealed it.
        """
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES:
            raise Corrupt(what, "sealed bytes", f"{len(sealed)} bytes")
        if sealed[0] != SEALED_VERSION:
            if sealed[0] > SEALED_VERSION:
                raise Unavailable(what, f"it was sealed by newer code: version {sealed[0]}")
            raise Corrupt(what, f"sealed bytes of version {SEALED_VERSION}", f"version {sealed[0]}")
        name, nonce = sealed[1 : 1 + _NAME_BYTES], sealed[1 + _NAME_BYTES : _HEAD_BYTES]
        held = self._held(self._found, (owner, name))
        if held is None:
            held = self._keep(self._found, (owner, name), name, self._vault.find(owner, name.hex()))
        if held.cipher is None:
            return None
        try:
            return held.cipher.decrypt(nonce, memoryview(sealed)[_HEAD_BYTES:], _bound_to(owner, context))
        except InvalidTag as error:
            raise Corrupt(what, f"what was sealed for {owner} as {context}", "something else") from error

    def name_of_key(self, sealed: bytes) -> str:
        """See `ports.Sealer.name_of_key`."""
        return sealed[1 : 1 + _NAME_BYTES].hex() if sealed[:1] == _VERSION else ""

    def forget(self, owner: UserKey) -> str:
        """See `ports.Sealer.forget`."""
        name = self._vault.destroy(owner)
        with self._lock:
            self._current.pop(owner, None)
            for key in [key for key in self._found if key[0] == owner]:
                del self._found[key]
        return name

    def _held(self, cache: OrderedDict[_K, _Held], key: _K) -> _Held | None:
        with self._lock:
            held = cache.get(key)
            if held is None or held.until_s <= self._clock():
                return None
            cache.move_to_end(key)
            return held

    def _hold(self, owner: UserKey, key: DataKey) -> _Held:
        name = bytes.fromhex(key.name)
        self._keep(self._found, (owner, name), name, key)
        return self._keep(self._current, owner, name, key)

    def _keep(self, cache: OrderedDict[_K, _Held], at: _K, name: bytes, key: DataKey | None) -> _Held:
        held = _Held(name, AESGCM(key.secret) if key else None, self._clock() + self._config.cached_for_s)
        with self._lock:
            cache[at] = held
            cache.move_to_end(at)
            while len(cache) > self._config.max_cached_keys:
                cache.popitem(last=False)
        return held


def _bound_to(owner: UserKey, context: str) -> bytes:
    return fingerprint(owner.tenant, owner.user, context)
