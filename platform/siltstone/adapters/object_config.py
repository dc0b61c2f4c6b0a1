"""Where large memories are kept outside Redis, and how. Standard library only: it is read without a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from siltstone.errors import ConfigInvalid

_POSITIVE: Final = (
    "put_within_s",
    "connect_timeout_s",
    "answer_timeout_s",
    "retry_budget_s",
    "backoff_s",
    "max_backoff_s",
)
_OF_S3: Final = ("endpoint", "region", "access_key", "secret_key_file", "secret_key_variable", "ca_file")


@dataclass(frozen=True, slots=True)
class ObjectConfig:
    """Where the large ones of a cluster's memories are: in an object store, with a pointer to each in Redis."""

    url: str = ""
    """file:///folder that every machine sees, s3://bucket/folder, or another URL that fsspec can write to; empty for
    none: all memories are in Redis then. It holds no credentials."""
    min_bytes: int = 256 * 1024
    """Bytes from which on a memory is kept there. Smaller ones stay in Redis: to put one takes some tens of
    milliseconds, however small it is."""
    endpoint: str = ""
    """Of s3, https://host:port of the server; empty for Amazon's."""
    region: str = ""
    """Of s3, the region; empty for what the environment says."""
    access_key: str = ""
    """Of s3, the name of our key; empty for what the environment or the machine's role says."""
    secret_key_file: str = ""
    """File that holds the key's secret."""
    secret_key_variable: str = ""
    """Environment variable that holds the key's secret, instead of a file."""
    ca_file: str = ""
    """PEM file of the authorities that may have signed the server's certificate; empty for the system's."""
    max_at_once: int = 8
    """Objects written, read or deleted at the same time; as many sealed memories are held meanwhile."""
    put_within_s: float = 300.0
    """Seconds within which what was put must be committed. A commit that takes longer is refused and made again; a
    sweep waits that long between its two looks."""
    keep_replaced_s: float = 60.0
    """Seconds a memory is kept after a later one took its place: longer than Redis may go back when it restarts or
    another server takes over."""
    connect_timeout_s: float = 5.0
    """Seconds until a connection must stand."""
    answer_timeout_s: float = 30.0
    """Seconds a server may take over one object."""
    retry_budget_s: float = 10.0
    """Seconds a call goes on trying while the object store is away; then it is told as unavailable."""
    backoff_s: float = 0.05
    """Seconds before the second try; every further one waits twice as long."""
    max_backoff_s: float = 1.0
    """Seconds between two tries at most."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:
            raise ConfigInvalid("objects", "url: expected a URL such as s3://bucket/folder") from None
        if self.url:
            # Not shown as found: it may hold a password.
            if not parts.scheme or not (parts.netloc + parts.path).strip("/"):
                raise ConfigInvalid("objects", "url: expected file:///folder, s3://bucket/folder or the like")
            if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
                raise ConfigInvalid("objects", "url: expected three slashes and a whole path: file:///folder")
            if "@" in parts.netloc or parts.query or parts.fragment:
                expected = "expected no credentials or options in it; see access_key, secret_key_*"
                raise ConfigInvalid("objects", f"url: {expected}")
        if not self.is_s3 and (named := [name for name in _OF_S3 if getattr(self, name)]):
            raise ConfigInvalid("objects", f"{', '.join(named)}: expected with an s3:// url only")
        endpoint = urlsplit(self.endpoint)
        if self.endpoint and (
            endpoint.scheme not in ("http", "https") or not endpoint.hostname or "@" in self.endpoint
        ):
            raise ConfigInvalid("objects", "endpoint: expected http://host:port or https://host:port")
        if self.access_key and not (self.secret_key_file or self.secret_key_variable):
            raise ConfigInvalid("objects", "access_key: expected its secret in secret_key_file or secret_key_variable")
        if (self.secret_key_file or self.secret_key_variable) and not self.access_key:
            raise ConfigInvalid("objects", "secret_key_file, secret_key_variable: expected an access_key")
        if self.min_bytes < 1:
            raise ConfigInvalid("objects", f"min_bytes: expected at least 1, found {self.min_bytes}")
        if not 1 <= self.max_at_once <= 256:
            raise ConfigInvalid("objects", f"max_at_once: expected 1 to 256, found {self.max_at_once}")
        if self.keep_replaced_s < 0:
            raise ConfigInvalid("objects", f"keep_replaced_s: expected 0 or more, found {self.keep_replaced_s}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigInvalid("objects", f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.put_within_s < self.answer_timeout_s + self.retry_budget_s:
            expected = "expected no less than answer_timeout_s and retry_budget_s together"
            raise ConfigInvalid("objects", f"put_within_s: {expected}, found {self.put_within_s}")

    @property
    def is_on(self) -> bool:
        """Whether there is an object store."""
        return bool(self.url)

    @property
    def is_s3(self) -> bool:
        """Whether it speaks S3's protocol."""
        return self.url.startswith("s3://")
