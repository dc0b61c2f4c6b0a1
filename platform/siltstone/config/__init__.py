"""The parts' configs put together, and the one loader."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from siltstone.adapters.bm25_recall import Bm25RecallConfig
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.mlflow_config import MlflowConfig
from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.adapters.sqlite_file import SqliteConfig
from siltstone.config.reading import put, read_config
from siltstone.config.schema import describe_schema
from siltstone.errors import ConfigInvalid
from siltstone.gate.settings import GateConfig
from siltstone.inference.engine import EngineConfig
from siltstone.journal.admit import AdmissionLimits
from siltstone.memory.lessons import LessonConfig
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.shard import ShardConfig
from siltstone.memory.user_memory import MemoryConfig
from siltstone.placement.settings import ClusterConfig
from siltstone.sleep.settings import SleepConfig

__all__ = ["GatewayConfig", "NightConfig", "SiltstoneConfig", "config_schema", "load_config"]

FILE_NAME: Final = "siltstone.toml"
HOME_VARIABLE: Final = "SILTSTONE_HOME"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How the gRPC gateway listens and what it takes on."""

    host: str = "127.0.0.1"
    """Address to listen at. Callers are not asked who they are, so leave it on this machine."""
    port: int = 50550
    """TCP port; 0 takes a free one."""
    max_message_bytes: int = 4 * 1024 * 1024
    """Bytes of one message, in and out."""
    max_calls: int = 256
    """Calls served at once; more are refused with a time to try again."""
    max_call_s: float = 600.0
    """Seconds a call may take when the caller allows more, or sets no deadline."""
    max_interactions: int = 256
    """Interactions of one Record call."""
    max_answer_tokens: int = 4096
    """Tokens a caller may ask for in one answer."""
    max_scored_answers: int = 256
    """Answers of one Score call."""
    export_chunk_bytes: int = 256 * 1024
    """Bytes of a snapshot in one message of an export."""
    retry_after_s: float = 0.5
    """Seconds after which a caller refused for too many calls may try again."""
    keepalive_time_s: float = 30.0
    """Seconds without traffic after which a connection is probed."""
    keepalive_timeout_s: float = 10.0
    """Seconds a probe may go unanswered before the connection is closed."""
    min_ping_interval_s: float = 10.0
    """Seconds between two probes of a client that is not to be sent away for probing too often."""
    max_connection_age_s: float = 1800.0
    """Seconds after which a client is asked to connect anew."""
    max_connection_age_grace_s: float = 600.0
    """Seconds that calls running then may still take."""
    drain_budget_s: float = 10.0
    """Seconds that running calls may still take when the server is told to stop."""
    has_reflection: bool = True
    """Whether the server describes its interface to callers who ask."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigInvalid("gateway", f"port: expected 0 to 65535, found {self.port}")
        if not self.host:
            raise ConfigInvalid("gateway", "host: expected an address, found nothing")
        if self.drain_budget_s < 0:
            raise ConfigInvalid("gateway", f"drain_budget_s: expected 0 or more, found {self.drain_budget_s}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigInvalid("gateway", f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.export_chunk_bytes >= self.max_message_bytes:
            found = f"found {self.export_chunk_bytes}"
            raise ConfigInvalid("gateway", f"export_chunk_bytes: expected less than max_message_bytes, {found}")


_POSITIVE: Final = (
    "max_message_bytes",
    "max_calls",
    "max_call_s",
    "max_interactions",
    "max_answer_tokens",
    "max_scored_answers",
    "export_chunk_bytes",
    "retry_after_s",
    "keepalive_time_s",
    "keepalive_timeout_s",
    "min_ping_interval_s",
    "max_connection_age_s",
    "max_connection_age_grace_s",
)


@dataclass(frozen=True, slots=True)
class NightConfig:
    """How nights run beside a server, and what is kept of them."""

    niceness: int = 10
    """How far a night's process gives way to others, 0 to 19; one in the foreground does not."""
    max_kept: int = 100
    """Nights whose state is kept; the oldest go first."""
    poll_interval_s: float = 0.25
    """Seconds between two looks at a night that somebody watches."""

    def __post_init__(self) -> None:
        if not 0 <= self.niceness <= 19:
            raise ConfigInvalid("night", f"niceness: expected 0 to 19, found {self.niceness}")
        if self.max_kept < 1:
            raise ConfigInvalid("night", f"max_kept: expected 1 or more, found {self.max_kept}")
        if not self.poll_interval_s > 0:
            raise ConfigInvalid("night", f"poll_interval_s: expected more than 0, found {self.poll_interval_s}")


@dataclass(frozen=True, slots=True)
class SiltstoneConfig:
    """Everything that can be set, by part."""

    home: str = "~/.siltstone"
    """Folder of the cores, of the journal and of the memories; $SILTSTONE_HOME goes before the file."""
    core: str = "default"
    """The core to serve: a name, a digest, the start of one, or "default"."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    """How the gateway listens and what it takes on."""
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    """How large an interaction may be."""
    reservoir: ReservoirLimits = field(default_factory=ReservoirLimits)
    """How much of a user is kept word for word."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """The shape of a user's memory and how its levels learn."""
    lessons: LessonConfig = field(default_factory=LessonConfig)
    """What of an interaction is learned, and how strongly."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    """How much a shard holds and takes in at once."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Where the model runs, and how many answers run at once."""
    store: SqliteConfig = field(default_factory=SqliteConfig)
    """How the embedded journal and store are kept."""
    sealing: SealingConfig = field(default_factory=SealingConfig)
    """How what is kept of users is encrypted; by default it is not."""
    text_recall: Bm25RecallConfig = field(default_factory=Bm25RecallConfig)
    """How a user's own lines are searched."""
    sleep: SleepConfig = field(default_factory=SleepConfig)
    """How a shared sleep is done."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What a candidate is asked besides the shipped suites."""
    night: NightConfig = field(default_factory=NightConfig)
    """How nights run beside a server, and what is kept of them."""
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    """Where MLflow keeps the versions of the core."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Whether the server is one process or many, and how the many are laid out. The parts below are used only then."""
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    """Where the journal of a cluster is."""
    redis: RedisConfig = field(default_factory=RedisConfig)
    """Where the memories of a cluster's users are."""
    key_store: RedisConfig = field(default_factory=RedisConfig)
    """Where the keys of a cluster's users are: best on a server apart from what they have sealed."""
    objects: ObjectConfig = field(default_factory=ObjectConfig)
    """Where the large ones of a cluster's memories are, if not in Redis."""

    def __post_init__(self) -> None:
        if not self.cluster.is_on:
            return
        for name, part in (("redis", self.redis), ("key_store", self.key_store)):
            if part.num_partitions != self.kafka.num_partitions:
                expected = f"expected {self.kafka.num_partitions}, as kafka has, found {part.num_partitions}"
                raise ConfigInvalid(name, f"num_partitions: {expected}")
        if not self.sealing.is_on:
            # A topic cannot be edited: only the key of what is in it can be destroyed.
            raise ConfigInvalid("sealing", "expected a master key: what is on a topic is forgotten by its key alone")

    @property
    def home_path(self) -> Path:
        """The home folder, `~` written out."""
        return Path(self.home).expanduser()


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> SiltstoneConfig:
    """Reads the configuration: defaults, then the file, then $SILTSTONE_HOME, then `overrides` by dotted name.

    Without a path, siltstone.toml in the home folder is read where there is one.

    Raises: ConfigInvalid, which says where, for an unknown key, a wrong type, a value that cannot be, or no such file.
    """
    asked = dict(overrides or {})
    environment = os.environ if environment is None else environment
    if HOME_VARIABLE in environment:
        asked.setdefault("home", environment[HOME_VARIABLE])
    if path is None:
        in_home = Path(str(asked.get("home", SiltstoneConfig().home))).expanduser() / FILE_NAME
        path = in_home if in_home.is_file() else None
    tree = _read_file(path) if path is not None else {}
    try:
        read_config(SiltstoneConfig, tree)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{path}: {error.where}", error.reason) from error
    for name, value in asked.items():
        put(tree, name, value)
    return read_config(SiltstoneConfig, tree)


def config_schema() -> dict[str, Any]:
    """Returns the JSON schema (2020-12) of the configuration."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **describe_schema(SiltstoneConfig)}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(str(path), error.strerror or "cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(str(path), f"not TOML: {error}") from error
