"""How a Redis or Valkey server is reached. Standard library only, so that it can be read without the client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from siltstone.errors import ConfigInvalid

_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_POSITIVE: Final = ("connect_timeout_s", "answer_timeout_s", "retry_budget_s", "backoff_s", "max_backoff_s")


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """How the snapshot store reaches its server, and how it keeps what it holds there."""

    address: str = "redis://127.0.0.1:6379"
    """redis://host:port, or rediss:// for TLS; of a Redis Cluster, any node. It holds no password."""
    is_cluster: bool = False
    """Whether the address is a node of a Redis Cluster."""
    username: str = ""
    """The server's user; empty for the default user."""
    password_file: str = ""
    """File that holds the password."""
    password_variable: str = ""
    """Environment variable that holds the password, instead of a file."""
    ca_file: str = ""
    """PEM file of the authorities that may have signed the server's certificate; empty for the system's."""
    cert_file: str = ""
    """PEM file of the certificate we show the server, if it asks for one."""
    key_file: str = ""
    """PEM file of that certificate's key."""
    namespace: str = "siltstone"
    """What every key starts with: one server can hold several stores."""
    num_partitions: int = 256
    """Partitions, as many as the journal has, fixed when the store is made."""
    id_window: int = 4_096
    """Positions behind a partition's committed one within which a repeated interaction id is known as one."""
    send_bytes: int = 32 * 1024 * 1024
    """Bytes of snapshots sent in one go: bounds what both ends hold of a large commit at once."""
    must_append: bool = True
    """Whether a server that keeps no append-only file is refused: it loses everything when it restarts."""
    connect_timeout_s: float = 5.0
    """Seconds until a connection must stand."""
    answer_timeout_s: float = 30.0
    """Seconds a server may take over one answer."""
    retry_budget_s: float = 5.0
    """Seconds a call goes on trying while the server is away; then it is told as unavailable. Well below
    `cluster.stalled_after_s`: a shard that waits says nothing meanwhile."""
    backoff_s: float = 0.05
    """Seconds before the second try; every further one waits twice as long."""
    max_backoff_s: float = 1.0
    """Seconds between two tries at most."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            # Not shown as found: it may hold a password.
            raise ConfigInvalid("redis", "address: expected redis://host:port or rediss://host:port")
        if parts.username or parts.password or parts.query:
            raise ConfigInvalid("redis", "address: expected no credentials or options in it; see username, password_*")
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigInvalid("redis", f"namespace: expected a-z, 0-9 and hyphens, found {self.namespace!r}")
        if not 1 <= self.num_partitions <= 1 << 16:
            raise ConfigInvalid("redis", f"num_partitions: expected 1 to 65536, found {self.num_partitions}")
        if self.id_window < 0:
            raise ConfigInvalid("redis", f"id_window: expected 0 or more, found {self.id_window}")
        if self.send_bytes < 1:
            raise ConfigInvalid("redis", f"send_bytes: expected at least 1, found {self.send_bytes}")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigInvalid("redis", "cert_file, key_file: expected both or neither")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigInvalid("redis", f"{name}: expected more than 0, found {getattr(self, name)}")

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.address.startswith("rediss://")
