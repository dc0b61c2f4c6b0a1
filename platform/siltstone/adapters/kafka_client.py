"""Clients of a Kafka cluster, made the way a journal needs them, and their errors turned into ours."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

import kafka
import kafka.errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from siltstone.adapters.credentials import read_secret, tls_context
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.errors import ConfigInvalid, InvalidInput, Unavailable

_REFUSED_US: Final = (
    kafka.errors.SaslAuthenticationFailedError,
    kafka.errors.UnsupportedSaslMechanismError,
    kafka.errors.IllegalSaslStateError,
)


@contextmanager
def translated() -> Iterator[None]:
    """Turns the client's errors into ours."""
    try:
        yield
    except _REFUSED_US as error:
        raise ConfigInvalid("kafka", f"the brokers refuse our name or password: {_said(error)}") from error
    except kafka.errors.AuthorizationError as error:
        raise ConfigInvalid("kafka", f"our name lacks a right: {_said(error)}") from error
    except kafka.errors.MessageSizeTooLargeError as error:
        raise InvalidInput("payload", "a record the topic takes", _said(error)) from error
    except kafka.errors.KafkaConfigurationError as error:
        raise ConfigInvalid("kafka", _said(error)) from error
    except (kafka.errors.KafkaError, OSError) as error:
        raise Unavailable("the journal", _said(error)) from error


def has_fast_checksums() -> bool:
    """Says whether the client has a library for records' checksums (CRC-32C): in Python they take most of its time."""
    return find_spec("crc32c") is not None


def make_producer(config: KafkaConfig) -> Any:
    """Returns a producer that writes in order, once, to all replicas, within the append's time."""
    budget_ms = int(config.append_timeout_s * 1000)
    return _make(
        kafka.KafkaProducer,
        **connection_of(config),
        acks="all",
        enable_idempotence=True,
        delivery_timeout_ms=budget_ms,
        request_timeout_ms=max(1, min(int(config.answer_timeout_s * 1000), budget_ms - config.linger_ms)),
        max_block_ms=budget_ms,
        linger_ms=config.linger_ms,
        batch_size=config.batch_bytes,
        max_request_size=config.max_record_bytes,
        allow_auto_create_topics=False,
    )


def make_consumer(config: KafkaConfig) -> Any:
    """Returns a consumer that reads what it is told to, from where it is told to, and decides nothing by itself.

    It belongs to no group, commits nothing, and skips nothing: its defaults would do all three.
    """
    return _make(
        kafka.KafkaConsumer,
        **connection_of(config),
        request_timeout_ms=int(config.answer_timeout_s * 1000),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        check_crcs=True,
        allow_auto_create_topics=False,
        max_partition_fetch_bytes=config.fetch_bytes,
        fetch_max_bytes=16 * config.fetch_bytes,
        # A partition that is turned to waits for the request that is under way without it.
        fetch_max_wait_ms=100,
    )


def make_admin(config: KafkaConfig) -> Any:
    """Returns a client that looks at topics and makes them."""
    timeout_ms = int(config.answer_timeout_s * 1000)
    return _make(kafka.KafkaAdminClient, **connection_of(config), request_timeout_ms=timeout_ms)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Ends the tries where another cannot help, remembers what the last one failed of, and waits for nobody for ever.

    The library's own (3.0.12) takes a refused password for a broker that is away: it tries again until its time is up,
    and then says only that. And it never comes back from a broker that takes a connection and does not answer the
    greeting of TLS: one that does not encrypt, or is stuck.
    """

    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options)
        self._failure: BaseException | None = None
        self._was_let_in = False

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        if self._failure is not None and not self.bootstrapped and _is_final(self._failure):
            raise self._failure
        is_new = node_id not in self._conns
        connection = super().get_connection(node_id, **options)
        if is_new:
            connection.init_future.add_callback(self._note_success)
            connection.init_future.add_errback(self._note)
            timeout_ms = options.get("timeout_ms") or self.socket_connection_setup_timeout_ms(node_id)
            self._end_in_time(connection, timeout_ms / 1000)
        return connection

    def _end_in_time(self, connection: Any, timeout_s: float) -> None:
        def end() -> None:
            if not connection.init_future.is_done:
                connection.close(kafka.errors.KafkaConnectionError("a broker takes a connection and does not answer"))

        timer = self._net.call_later(timeout_s, end)
        connection.init_future.add_both(lambda _: self._net.cancel(timer))

    def _note(self, failure: BaseException) -> None:
        if isinstance(failure, (ValueError, KeyError)):
            # What the client says where the broker's own answer to a password is wrong or is none.
            failure = kafka.errors.SaslAuthenticationFailedError(f"they cannot show that they know it: {failure}")
        self._failure = failure

    def _note_success(self, _: Any) -> None:
        self._failure, self._was_let_in = None, True

    def tell_why(self, error: kafka.errors.KafkaTimeoutError) -> kafka.errors.KafkaError:
        """Returns the error of somebody who could not begin, with the reason."""
        if self._failure is not None:
            return kafka.errors.KafkaConnectionError(f"{_said(self._failure)}; {error}")
        if self._was_let_in and not self.config["security_protocol"].startswith("SASL"):
            hint = "they end the connection at the first question, and may want a name and a password (security)"
            return kafka.errors.KafkaConnectionError(f"{hint}; {error}")
        return error


def _is_final(failure: BaseException) -> bool:
    """Says whether the next try will end as this one has: a password or a certificate is not what it should be."""
    return isinstance(failure, _REFUSED_US) or isinstance(failure.__context__, ssl.SSLCertVerificationError)


def _make(kind: Callable[..., Any], **options: Any) -> Any:
    """Makes a client. One that cannot reach the brokers is closed: the library leaves its thread and sockets open."""
    inner: list[Any] = []

    def keep(**inner_options: Any) -> Any:
        net = NetworkSelector(**inner_options)
        connections = _Connections(net, **inner_options)
        inner.append((KafkaNetClient(net, connections, **inner_options), connections))
        return inner[-1][0]

    try:
        return kind(**options, kafka_client=keep)
    except BaseException as error:
        for client, _ in inner:
            client.close()
        if inner and isinstance(error, kafka.errors.KafkaTimeoutError):
            raise inner[-1][1].tell_why(error) from error
        raise


def ask_offsets(ask: Callable[..., dict[Any, int]], places: Sequence[Any], timeout_s: float) -> dict[int, int]:
    """Returns, by partition, what a consumer's `beginning_offsets` or `end_offsets` tells.

    Raises: Unavailable also when the cluster does not know one of the partitions (now): the client then says KeyError.
    """
    with translated():
        try:
            told = ask(list(places), timeout_ms=timeout_s * 1000)
        except KeyError as error:
            raise kafka.errors.UnknownTopicOrPartitionError(str(error)) from error
    return {place.partition: offset for place, offset in told.items()}


def connection_of(config: KafkaConfig) -> dict[str, Any]:
    """Returns what every client needs to reach the brokers, and be let in.

    Raises: ConfigInvalid when a password is wanted and is not there, or a file of certificates is none.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [broker.strip() for broker in config.brokers.split(",")],
        "bootstrap_timeout_ms": int(config.answer_timeout_s * 1000),
        "client_id": "siltstone",
        "security_protocol": config.security,
        "reconnect_backoff_max_ms": 1_000,
    }
    if config.has_tls:
        options["ssl_context"] = tls_context("kafka", config.ca_file, config.cert_file, config.key_file)
    if config.has_sasl:
        password = read_secret("kafka", config.password_file, config.password_variable)
        if password is None:
            raise ConfigInvalid("kafka", "expected password_file or password_variable with SASL, found neither")
        # The client leaves to us what RFC 5802 asks of a name in SCRAM.
        escaped = config.username.replace("=", "=3D").replace(",", "=2C")
        options |= {
            "sasl_mechanism": config.mechanism,
            "sasl_plain_username": escaped if config.mechanism.startswith("SCRAM") else config.username,
            "sasl_plain_password": password,
        }
    return options


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:160]}"
