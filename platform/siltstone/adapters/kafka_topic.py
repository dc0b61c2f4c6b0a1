"""The topic that is the journal: made where there is none, and looked at before anything is written to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import kafka.errors
from kafka.admin import ConfigResource, ConfigResourceType

from siltstone.adapters.kafka_client import make_admin, translated
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.errors import ConfigInvalid, NotFound

_LOG = logging.getLogger(__name__)
_HOUR_MS: Final = 3_600_000
_CODECS: Final = ("uncompressed", "gzip", "producer")
"""What our reader can always read. `producer` leaves it to the producers."""


def ensure_topic(config: KafkaConfig) -> None:
    """Makes the topics if they are not there and may be made; then checks that a journal can be kept in its own.

    Raises: ConfigInvalid when it cannot; NotFound when it is not there and may not be made; Unavailable.
    """
    with translated():
        admin = make_admin(config)
        try:
            found = _describe(admin, config.topic)
            if found is None:
                if not config.makes_topic:
                    raise NotFound("topic", config.topic)
                _make(admin, config)
                found = _describe(admin, config.topic)
                if found is None:
                    raise kafka.errors.UnknownTopicOrPartitionError("the topic just made is not there yet")
            _check_partitions(config, found)
            _check_settings(config, _settings(admin, config.topic))
            if config.parked_topic and _describe(admin, config.parked_topic) is None:
                if not config.makes_topic:
                    raise NotFound("topic", config.parked_topic)
                _make_parked(admin, config)
        finally:
            admin.close()


def _describe(admin: Any, topic: str) -> Mapping[str, Any] | None:
    (described,) = admin.describe_topics([topic])
    if described["error_code"]:
        error = kafka.errors.for_code(described["error_code"])
        if error is kafka.errors.UnknownTopicOrPartitionError:
            return None
        raise error()
    found: Mapping[str, Any] = described
    return found


def _make_parked(admin: Any, config: KafkaConfig) -> None:
    """Makes the dead-letter topic: one partition is enough, and what is parked may be larger than what is taken."""
    settings = {"cleanup.policy": "delete", "retention.ms": str(config.retention_hours * _HOUR_MS)}
    settings["max.message.bytes"] = str(config.max_record_bytes + 4_096)
    wanted = {"num_partitions": 1, "replication_factor": config.replication_factor, "configs": settings}
    with suppress(kafka.errors.TopicAlreadyExistsError):
        admin.create_topics({config.parked_topic: wanted}, wait_for_metadata=True)


def _make(admin: Any, config: KafkaConfig) -> None:
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": str(config.retention_hours * _HOUR_MS),
        "min.insync.replicas": str(config.min_insync_replicas),
        "max.message.bytes": str(config.max_record_bytes + 4_096),
        # Sealed bytes do not get smaller; and a record packed by a codec that a reader lacks would stop that reader.
        "compression.type": "uncompressed",
    }
    wanted = {
        "num_partitions": config.num_partitions,
        "replication_factor": config.replication_factor,
        "configs": settings,
    }
    try:
        admin.create_topics({config.topic: wanted}, wait_for_metadata=True)
    except kafka.errors.TopicAlreadyExistsError:
        # Somebody who starts at the same time has made it: it is looked at like any other.
        return
    _LOG.info("topic made", extra={"topic": config.topic, "num_partitions": config.num_partitions})


def _check_partitions(config: KafkaConfig, found: Mapping[str, Any]) -> None:
    partitions = found["partitions"]
    if len(partitions) != config.num_partitions:
        expected = f"expected {config.num_partitions} partitions, found a topic with {len(partitions)}"
        raise ConfigInvalid(f"kafka: {config.topic}", expected)
    num_replicas = min(len(partition["replica_nodes"]) for partition in partitions)
    if num_replicas < config.replication_factor:
        expected = f"expected {config.replication_factor} replicas, found a topic with {num_replicas}"
        raise ConfigInvalid(f"kafka: {config.topic}", expected)


def _settings(admin: Any, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    described = admin.describe_configs([resource], config_filter="all")
    return {name: told["value"] for name, told in described["topic"].get(topic, {}).items()}


def _check_settings(config: KafkaConfig, found: Mapping[str, str]) -> None:
    """Refuses a topic that forgets too soon. What the broker does not tell is noted and taken as it is."""
    where = f"kafka: {config.topic}"
    wanted_ms = config.retention_hours * _HOUR_MS
    untold = [name for name in ("cleanup.policy", "retention.ms", "min.insync.replicas") if name not in found]
    if untold:
        _LOG.warning("topic settings not told", extra={"topic": config.topic, "settings": ", ".join(untold)})
    if "compact" in (policy := found.get("cleanup.policy", "delete")):
        raise ConfigInvalid(where, f"cleanup.policy: expected delete, found {policy}, which drops interactions")
    retention_ms = int(found.get("retention.ms", wanted_ms))
    if 0 <= retention_ms < wanted_ms:
        raise ConfigInvalid(where, f"retention.ms: expected {wanted_ms} or more, found {retention_ms}")
    if int(found.get("retention.bytes", -1)) >= 0:
        raise ConfigInvalid(where, f"retention.bytes: expected no limit, found {found['retention.bytes']}")
    num_insync = int(found.get("min.insync.replicas", config.min_insync_replicas))
    if num_insync < config.min_insync_replicas:
        expected = f"expected {config.min_insync_replicas} or more, found {num_insync}"
        raise ConfigInvalid(where, f"min.insync.replicas: {expected}")
    if (codec := found.get("compression.type", "producer")) not in _CODECS:
        raise ConfigInvalid(where, f"compression.type: expected one of {', '.join(_CODECS)}, found {codec}")
