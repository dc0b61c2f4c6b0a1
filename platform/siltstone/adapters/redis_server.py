"""A connection to a Redis or Valkey server: bounded tries, and its errors turned into ours."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from siltstone.adapters.credentials import read_secret, tls_context
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_scripts import SCRIPTS
from siltstone.errors import ConfigInvalid, Corrupt, Unavailable

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_SCANNED_AT_ONCE: Final = 1_000
_FIRST_KEY: Final = 3
"""Where a call of a script names its first key."""

_REFUSED_US: Final = (
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
)
_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.RedisClusterException,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,
    redis.exceptions.ReadOnlyError,
)
"""What passes when a server comes back or another takes its place."""


class RedisServer:
    """A server and how to speak to it. Safe for the threads of a process; connects at the first call."""

    def __init__(self, config: RedisConfig) -> None:
        """Makes the client.

        Raises: ConfigInvalid when a password that is named is not there, or a file of certificates is none.
        """
        self.config = config
        self._client: Any = _client_of(config)
        self._is_given_up = False

    def call(self, question: Callable[[Any], T]) -> T:
        """Returns what a question to the client returns; while the server is away, asks it again for a while.

        Once that was in vain, nobody waits any more until the server has answered somebody: a thread that also answers
        users is to stand still once in an outage, and not at every try.
        A question may be asked again although the server has answered it: the answer can be lost on the way.
        Raises: Unavailable when the budget is spent, or at once when the server is there and cannot write;
        ConfigInvalid when it refuses us; Corrupt when a key holds something else than what we write.
        """
        config = self.config
        deadline_s, wait_s = time.monotonic() + config.retry_budget_s, config.backoff_s
        num_tried = 0
        while True:
            num_tried += 1
            try:
                with self._translated():
                    answer = question(self._client)
                self._is_given_up = False
                return answer
            except _Away as away:
                left_s = deadline_s - time.monotonic()
                # The first of two tries may only have found out that its connection is of before.
                if left_s <= 0 or (self._is_given_up and num_tried > 1):
                    self._is_given_up = True
                    raise Unavailable("the store", away.reason) from away.__cause__
                if self._is_given_up:
                    continue
                # Not all at once: a server that comes back has everybody waiting for it.
                time.sleep(min(left_s, wait_s * random.uniform(0.5, 1.0)))
                wait_s = min(2 * wait_s, config.max_backoff_s)

    def run(self, script: str, keys: list[str], arguments: list[Any]) -> list[Any]:
        """Runs one of our scripts by itself and returns its answer."""
        answer: list[Any] = self.call(lambda client: self._run_once(client, script, keys, arguments))
        return answer

    def _run_once(self, client: Any, script: str, keys: list[str], arguments: list[Any]) -> Any:
        line = ("EVALSHA", SCRIPTS[script].sha1, len(keys), *keys, *arguments)
        try:
            return client.execute_command(*line)
        except redis.exceptions.NoScriptError:
            client.script_load(SCRIPTS[script].text)
            return client.execute_command(*line)

    def send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Sends commands in one go and returns their answers, in order. Not tried again by itself.

        Raises: the first error among the answers, as the client names it. For use inside `call`.
        """
        return self._send_by(self._client, commands)

    def _send_by(self, client: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        answers = self._send(client, commands)
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            for script in SCRIPTS.values():
                client.script_load(script.text)
            answers = self._send(client, commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    @staticmethod
    def _send(client: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers

    def run_durably(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        """Runs a script and waits until its effect is on the server's disk: a restart must not undo it.

        Where no append-only file is demanded, nobody waits.
        Raises: Unavailable also when the server has not told so in time: call again.
        """
        (answer,) = self.send_durably([("EVALSHA", SCRIPTS[script].sha1, len(keys), *keys, *arguments)])
        return answer

    def send_durably(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Runs scripts that may be run again, and waits as `run_durably` does.

        Raises: as `run_durably`.
        """
        if not self.config.must_append:
            return self.call(lambda _: self.send(commands))
        if not self.config.is_cluster:
            return self.call(lambda client: self._send_and_wait(client, commands))
        return self.call(lambda client: self._send_to_nodes(client, commands))

    def _send_and_wait(self, client: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        # On one connection: a server waits for what was written by the connection that asks.
        wait = ("WAITAOF", 1, 0, int(self.config.answer_timeout_s * 500))
        *answers, waited = self._send_by(client, [*commands, wait])
        if int(waited[0]) < 1:
            raise Unavailable("the store", "what was erased or changed is not off its disk yet")
        return answers

    def _send_to_nodes(self, client: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Sends each command to the node that has its keys, and waits there."""
        by_node: dict[Any, list[int]] = {}
        for number, command in enumerate(commands):
            by_node.setdefault(client.get_node_from_key(command[_FIRST_KEY]), []).append(number)
        answers: dict[int, Any] = {}
        for node, numbers in by_node.items():
            try:
                connected = client.get_redis_connection(node)
                told = self._send_and_wait(connected, [commands[number] for number in numbers])
            except (redis.ConnectionError, redis.exceptions.AskError) as error:
                # The keys have moved, or the node has gone: the next try asks who has them now.
                client.nodes_manager.initialize()
                raise _Away(_first_line(error)) from error
            answers.update(zip(numbers, told, strict=True))
        return [answers[number] for number in range(len(commands))]

    def keys_like(self, pattern: str) -> Iterator[str]:
        """Yields the keys that are like a pattern. One may come twice; none that is there all the while is left out.

        Raises: Unavailable when a server does not answer; then begin again.
        """
        scan = self.call(lambda client: client.scan_iter(match=pattern, count=_SCANNED_AT_ONCE))
        while True:
            with self._told_away():
                key = next(scan, None)
            if key is None:
                return
            yield key.decode()

    def check(self) -> None:
        """Asks every server whether it may hold a store, and warns of one that no ceiling keeps from taking all memory.

        Raises: ConfigInvalid when it may drop keys, or forgets everything at a restart, or is too old.
        """
        infos = self.call(self._infos)
        for info in infos:
            version = str(info.get("valkey_version") or info.get("redis_version") or "0")
            if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 7:
                raise ConfigInvalid("redis", f"expected a server of version 7 or later, found {version}")
            policy = info.get("maxmemory_policy", "noeviction")
            if policy != "noeviction":
                raise ConfigInvalid("redis", f"expected a server that drops nothing (noeviction), found {policy}")
            if self.config.must_append and not info.get("aof_enabled"):
                reason = "expected a server with an append-only file (appendonly yes), found none; see must_append"
                raise ConfigInvalid("redis", reason)
        if unbounded := sum(not int(info.get("maxmemory", 0)) for info in infos):
            told = {"namespace": self.config.namespace, "num_servers": unbounded}
            _LOG.warning("the store has no memory ceiling", extra=told)

    def _infos(self, client: Any) -> list[dict[str, Any]]:
        if not self.config.is_cluster:
            return [client.info()]
        return [client.info(target_nodes=node) for node in client.get_primaries()]

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    @contextmanager
    def _told_away(self) -> Iterator[None]:
        try:
            with self._translated():
                yield
        except _Away as away:
            raise Unavailable("the store", away.reason) from away.__cause__

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _REFUSED_US as error:
            who = f"user {self.config.username}" if self.config.username else "the default user"
            reason = f"the server refuses the password of {who}: {_first_line(error)}"
            raise ConfigInvalid("redis", reason) from error
        except redis.exceptions.NoPermissionError as error:
            raise ConfigInvalid("redis", f"the server's user lacks a right: {_first_line(error)}") from error
        except redis.exceptions.OutOfMemoryError as error:
            raise Unavailable("the store", f"its memory is full: {_first_line(error)}") from error
        except _AWAY as error:
            if isinstance(error.__cause__, _REFUSED_US):
                raise ConfigInvalid("redis", f"the server refuses us: {_first_line(error.__cause__)}") from error
            raise _Away(_first_line(error)) from error
        except OSError as error:
            raise _Away(_first_line(error)) from error
        except redis.ResponseError as error:
            said = _first_line(error)
            if said.startswith("WRONGTYPE"):
                raise Corrupt("the store", "keys of the kinds we write", said) from error
            if "NOAUTH" in said:
                raise ConfigInvalid("redis", f"the server wants a password: {said}") from error
            raise Unavailable("the store", said) from error


class _Away(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _client_of(config: RedisConfig) -> Any:
    password = read_secret("redis", config.password_file, config.password_variable)
    parts = urlsplit(config.address)
    options: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port or 6379,
        "username": config.username or None,
        "password": password,
        "socket_timeout": config.answer_timeout_s,
        "socket_connect_timeout": config.connect_timeout_s,
        # One place counts the tries: ours, which knows what may be asked twice.
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 30,
    }
    if config.has_tls:
        # The library takes files only, and would take one that is none for a server that is away.
        tls_context("redis", config.ca_file, config.cert_file, config.key_file)
        options |= {
            "ssl": True,
            "ssl_ca_certs": config.ca_file or None,
            "ssl_certfile": config.cert_file or None,
            "ssl_keyfile": config.key_file or None,
        }
    if not config.is_cluster:
        return redis.Redis(**options, db=int(parts.path.strip("/") or 0))
    return _LateCluster(options)


class _LateCluster:
    """A client of a Redis Cluster that asks for its nodes at the first call: the library does it when it is made."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = RedisCluster(**self._options)
        return getattr(self._made, name)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
