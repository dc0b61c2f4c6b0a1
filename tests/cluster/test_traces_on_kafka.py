"""A trace on a real broker: each record has its own, and what is parked is told with it, in the log and to others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import kafka
import pytest
from test_host_on_cluster import NUM_PARTITIONS, configs, dead_letters, home, opened
from tiny_home import ADA, BEN, said, teach

from siltstone.adapters.kafka_client import make_consumer, make_producer
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_records import ID, headers_of, key_of
from siltstone.adapters.master_key import MasterKey
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.seal_contexts import journal_context
from siltstone.journal.partition import partition_of
from siltstone.values import Receipt

pytestmark = pytest.mark.slow

__all__ = ["configs", "home"]

FIRST = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECOND = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


async def test_a_trace_is_followed_from_the_call_to_the_dead_letter(
    home: Path, configs: tuple[KafkaConfig, RedisConfig], master: MasterKey, caplog: pytest.LogCaptureFixture
) -> None:
    at = partition_of(ADA, NUM_PARTITIONS)
    async with opened(home, configs, master) as (host, journal, _):
        traced = [replace(said(ADA, "a0", "Hello."), trace=FIRST), replace(said(BEN, "b0", "Hello."), trace=SECOND)]
        await teach(host, *traced, said(ADA, "a1", "Hello again."))
        told = {name: trace for owner in (ADA, BEN) for name, trace in traces_of(configs[0], partition_of(owner, 4))}
        assert told == {"a0": FIRST.encode(), "b0": SECOND.encode(), "a1": None}
        assert [one.trace for one in journal.read(at, 0, 10) if one.owner == ADA] == [FIRST, ""]

        producer = make_producer(configs[0])
        for name, trace in (("p0", SECOND), ("p1", "no trace at all")):
            headers = [*headers_of(said(ADA, name, "Hello.")), ("traceparent", trace.encode())]
            value = journal._sealer.seal(ADA, journal_context(name), b"{")
            sent = producer.send(configs[0].topic, key=key_of(ADA), value=value, headers=headers, partition=at)
            last = int(sent.get(10).offset)
        producer.close(timeout=5)
        await host.wait_absorbed([Receipt("p1", at, last, False)])
    parked = [vars(one) for one in caplog.records if one.message == "interaction parked"]
    assert [(one["interaction_id"], one.get("trace_id")) for one in parked] == [
        ("p0", SECOND.split("-")[1]),
        ("p1", None),
    ]
    assert [dict(one.headers).get("traceparent") for one in dead_letters(configs[0])] == [SECOND.encode(), None]


def traces_of(config: KafkaConfig, partition: int) -> list[tuple[str, bytes | None]]:
    """Returns which traceparent each record of a partition has."""
    consumer, place = make_consumer(config), kafka.TopicPartition(config.topic, partition)
    consumer.assign([place])
    consumer.seek(place, 0)
    found: list[Any] = []
    while more := consumer.poll(timeout_ms=2_000).get(place, []):
        found += more
    consumer.close()
    return [(dict(one.headers)[ID].decode(), dict(one.headers).get("traceparent")) for one in found]
