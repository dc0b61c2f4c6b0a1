"""How a Kafka cluster is reached, and what topic the journal is. Standard library only, for who has no client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from siltstone.errors import ConfigInvalid

Security = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_AT_LEAST_ONE: Final = (
    "replication_factor",
    "min_insync_replicas",
    "retention_hours",
    "max_record_bytes",
    "batch_bytes",
    "fetch_bytes",
    "max_buffered_bytes",
)


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """How the journal reaches its brokers, what it demands of its topic, and how it writes and reads."""

    brokers: str = "127.0.0.1:9092"
    """host:port of some brokers, with commas between; the others are found through them."""
    topic: str = "siltstone.interactions"
    """The topic that is the journal."""
    num_partitions: int = 256
    """Partitions of the topic, fixed when it is made: adding some later would tear users' histories apart."""
    makes_topic: bool = True
    """Whether a topic that is not there is made."""
    replication_factor: int = 3
    """Replicas of every partition; a topic with fewer is refused."""
    min_insync_replicas: int = 2
    """Replicas that must have a record before it counts as written; a topic that asks for fewer is refused."""
    retention_hours: int = 168
    """Hours a record is kept at least; a topic that keeps records shorter is refused. It must be longer than shards may
    lag behind."""
    max_record_bytes: int = 1024 * 1024
    """Bytes of one record, with its key and its headers."""
    security: Security = "PLAINTEXT"
    """Whether the connection is encrypted (SSL) and who we are is asked (SASL)."""
    mechanism: Mechanism = "SCRAM-SHA-512"
    """How a password is shown to the brokers, with SASL."""
    username: str = ""
    """Our name at the brokers, with SASL."""
    password_file: str = ""
    """File that holds the password."""
    password_variable: str = ""
    """Environment variable that holds the password, instead of a file."""
    ca_file: str = ""
    """PEM file of the authorities that may have signed the brokers' certificates; empty for the system's."""
    cert_file: str = ""
    """PEM file of the certificate we show the brokers, if they ask for one."""
    key_file: str = ""
    """PEM file of that certificate's key."""
    append_timeout_s: float = 10.0
    """Seconds an append may take; then it is told as unavailable."""
    answer_timeout_s: float = 10.0
    """Seconds brokers may take over one answer."""
    linger_ms: int = 1
    """Milliseconds a record waits for others to travel with."""
    batch_bytes: int = 256 * 1024
    """Bytes of the records of a partition that travel together."""
    fetch_bytes: int = 1024 * 1024
    """Bytes of a partition fetched at once."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """Bytes of records fetched and not yet asked for, all partitions together; those with too many are held back."""
    look_every_s: float = 0.05
    """Seconds between two looks of a partition's owner for what others have written to it."""
    parked_topic: str = "siltstone.parked"
    """The dead-letter topic: what was parked, for whoever wants to know; empty for none. The store keeps it in any
    case."""
    id_window: int = 1_024
    """Newest records of a partition among which an append looks for a repeat."""
    accepts_plain: bool = False
    """Whether records in the clear are taken, as other producers write them. Forgetting a user cannot make those
    unreadable: they go with the topic's retention."""

    def __post_init__(self) -> None:
        for broker in self.brokers.split(","):
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ConfigInvalid("kafka", f"brokers: expected host:port, with commas between, found {broker!r}")
        if not 1 <= self.num_partitions <= 1 << 16:
            raise ConfigInvalid("kafka", f"num_partitions: expected 1 to 65536, found {self.num_partitions}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigInvalid("kafka", f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.min_insync_replicas > self.replication_factor:
            raise ConfigInvalid("kafka", f"min_insync_replicas: expected at most {self.replication_factor}")
        if self.has_sasl != bool(self.username):
            raise ConfigInvalid("kafka", "username: expected one with SASL, and none without")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigInvalid("kafka", "cert_file, key_file: expected both or neither")
        if self.linger_ms < 0 or self.id_window < 0:
            raise ConfigInvalid("kafka", "linger_ms, id_window: expected 0 or more")
        for name in ("append_timeout_s", "answer_timeout_s", "look_every_s"):
            if not getattr(self, name) > 0:
                raise ConfigInvalid("kafka", f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.parked_topic == self.topic:
            raise ConfigInvalid("kafka", f"parked_topic: expected another one than topic, found {self.topic!r}")

    @property
    def has_sasl(self) -> bool:
        """Whether the brokers ask who we are."""
        return self.security.startswith("SASL")

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.security.endswith("SSL")
