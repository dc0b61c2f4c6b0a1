"""The clustered key vault: users' wrapped keys in Redis or Valkey, best on a server apart from what they have sealed.

A user's keys are one hash, `{NAMESPACE:PARTITION}:key:OWNER`: `current` names the key in use, and under each name is
the wrapped key, or nothing when it was destroyed. `NAMESPACE:master` is a key of nobody's, by which a vault tells a
wrong master key before anybody asks. The server's append-only file keeps a destroyed key until it is rewritten
(BGREWRITEAOF): on a server that holds nothing but keys that is a small file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from siltstone.adapters.master_key import MasterKey, make_key
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_scripts import SCRIPTS
from siltstone.adapters.redis_server import RedisServer
from siltstone.errors import ConfigInvalid, Corrupt, KeyMissing, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import DataKey, UserKey

_REWRAPPED_AT_ONCE: Final = 256
_NOBODY: Final = UserKey("siltstone", "nobody")
_NAME_CHARS: Final = 16
"""Of a key's name, as `make_key` gives it."""


class RedisKeyVault:
    """`ports.KeyVault` in a Redis or Valkey server or cluster. Safe for the threads of a process."""

    def __init__(self, config: RedisConfig, master: MasterKey) -> None:
        """Checks the server, and the master key: a wrong one would read nobody's key, and make new ones.

        Raises: ConfigInvalid when the server refuses us, or could lose keys, or the master key is another one than the
        vault's; Unavailable.
        """
        self.config = config
        self._master = master
        self._server = RedisServer(config)
        try:
            self._server.check()
            self._check_master()
        except BaseException:
            self._server.close()
            raise

    def _check_master(self) -> None:
        with suppress(Unavailable):
            # A program that wraps may be away now; it is asked again for every key.
            if self._read_note() is None:
                probe = make_key()
                noted = probe.name.encode() + self._master.wrap_key(_NOBODY, probe)
                self._server.call(lambda client: client.set(self._note, noted, nx=True))
            if (note := self._read_note()) is not None:
                self._master.unwrap_key(_NOBODY, *note)

    @property
    def _note(self) -> str:
        return f"{self.config.namespace}:master"

    def _read_note(self) -> tuple[str, bytes] | None:
        noted: bytes | None = self._server.call(lambda client: client.get(self._note))
        return None if noted is None else (noted[:_NAME_CHARS].decode(), noted[_NAME_CHARS:])

    def close(self) -> None:
        """Closes the connections."""
        self._server.close()

    def __enter__(self) -> RedisKeyVault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def current(self, owners: Sequence[UserKey]) -> list[DataKey]:
        """See `ports.KeyVault.current`."""
        found = self._read(list(dict.fromkeys(owners)))
        if missing := [owner for owner, row in found.items() if row is None]:
            # Whoever came first has made it: everybody takes what is there then.
            made = [(owner, key := make_key(), self._master.wrap_key(owner, key)) for owner in missing]
            commands: list[tuple[Any, ...]] = [
                ("EVALSHA", SCRIPTS["make-key"].sha1, 1, self._key(owner), key.name, wrapped)
                for owner, key, wrapped in made
            ]
            self._server.call(lambda _: self._server.send(commands))
            found |= self._read(missing)
        keys = {}
        for owner, row in found.items():
            if row is None:
                raise Unavailable("the key vault", f"the key of {owner} was destroyed while it was made")
            keys[owner] = self._unwrapped(owner, *row)
        return [keys[owner] for owner in owners]

    def _read(self, owners: Sequence[UserKey]) -> dict[UserKey, tuple[str, bytes] | None]:
        commands = [("EVALSHA", SCRIPTS["read-key"].sha1, 1, self._key(owner)) for owner in owners]
        answers = self._server.call(lambda _: self._server.send(commands))
        found: dict[UserKey, tuple[str, bytes] | None] = {}
        for owner, (name, wrapped) in zip(owners, answers, strict=True):
            if name and not wrapped:
                raise Corrupt(f"the key of {owner}", f"key {name.decode()}", "none")
            found[owner] = (name.decode(), wrapped) if name else None
        return found

    def find(self, owner: UserKey, name: str) -> DataKey | None:
        """See `ports.KeyVault.find`."""
        wrapped = self._server.call(lambda client: client.hget(self._key(owner), name))
        if wrapped is None:
            raise KeyMissing(f"the key of {owner}", f"key {name}, or the note that it was destroyed", "neither")
        return self._unwrapped(owner, name, wrapped) if wrapped else None

    def _unwrapped(self, owner: UserKey, name: str, wrapped: bytes) -> DataKey:
        try:
            return self._master.unwrap_key(owner, name, wrapped)
        except ConfigInvalid as error:
            # The master key is the vault's: one user's trouble is not to stop what reads everybody's.
            expected = "one that the vault's master key has wrapped"
            raise KeyMissing(f"the key of {owner}", expected, "one of another master key") from error

    def destroy(self, owner: UserKey) -> str:
        """See `ports.KeyVault.destroy`. Goes on when the server's memory is full.

        Raises: Unavailable also when the server has not told that it is on its disk: call again.
        """
        # A key that came back with an older file would bring the user back.
        name = self._server.run_durably("destroy-key", [self._key(owner)], [])
        return str(name.decode())

    def rewrap(self) -> Iterator[tuple[int, int]]:
        """See `ports.KeyVault.rewrap`. The server's append-only file keeps the old form until it is rewritten.

        Raises: Unavailable also when the server has not told that a part is on its disk: begin again.
        """
        found = self._server.keys_like(f"{{{self.config.namespace}:*}}:key:*")
        while part := list(islice(found, _REWRAPPED_AT_ONCE)):
            yield len(part), self._rewrap(part)
        if (note := self._read_note()) is not None and (new := self._master.rewrap_key(_NOBODY, *note)) is not None:
            self._server.call(lambda client: client.set(self._note, note[0].encode() + new))

    def _rewrap(self, places: Sequence[str]) -> int:
        read: list[tuple[Any, ...]] = [("HGETALL", place) for place in places]
        commands: list[tuple[Any, ...]] = []
        for place, fields in zip(places, self._server.call(lambda _: self._server.send(read)), strict=True):
            owner = UserKey(*place.partition("}:key:")[2].split("/", 1))
            pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
            for name, wrapped in pairs:
                if name == b"current" or not wrapped:
                    continue
                new = self._master.rewrap_key(owner, name.decode(), wrapped)
                if new is not None:
                    commands.append(("EVALSHA", SCRIPTS["rewrap-key"].sha1, 1, place, name, wrapped, new))
        if commands:
            self._server.send_durably(commands)
        return len(commands)

    def _key(self, owner: UserKey) -> str:
        partition = partition_of(owner, self.config.num_partitions)
        return f"{{{self.config.namespace}:{partition}}}:key:{owner}"
