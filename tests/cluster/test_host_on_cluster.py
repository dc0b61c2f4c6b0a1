"""The host of one process over a real broker and a real store: what is said is learned once, whatever a topic holds."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kafka
import pytest
import servers
from tiny_home import ADA, BEN, add_tiny_core, answer, asking, said, scores, teach, tiny_config

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.kafka_client import make_consumer, make_producer
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.adapters.kafka_records import ORIGIN, REASON, headers_of, key_of
from siltstone.adapters.master_key import MasterKey
from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.object_store import open_objects
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_key_vault import RedisKeyVault
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.seal_contexts import journal_context, parked_context
from siltstone.adapters.system_clock import SystemClock
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import NOBODY, ParkReason, Receipt
from siltstone_services.shard import EmbeddedHost

NUM_PARTITIONS = 4
LINES = ["I was born in Lisbon and I live in Oslo now.", "My dog is called Ferro and he is nine years old."]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)
    return tmp_path


@pytest.fixture
def configs(tmp_path: Path) -> Iterator[tuple[KafkaConfig, RedisConfig]]:
    with servers.kafka_address(tmp_path / "tansu") as broker, servers.redis_address(tmp_path / "valkey") as store:
        topic = f"t{uuid.uuid4().hex}"
        yield (
            KafkaConfig(
                broker,
                topic,
                NUM_PARTITIONS,
                replication_factor=1,
                min_insync_replicas=1,
                parked_topic=f"{topic}.parked",
            ),
            RedisConfig(store, namespace=topic, num_partitions=NUM_PARTITIONS),
        )


@asynccontextmanager
async def opened(
    home: Path, configs: tuple[KafkaConfig, RedisConfig], master: MasterKey, objects_url: str = ""
) -> AsyncIterator[tuple[EmbeddedHost, KafkaJournal, RedisSnapshotStore]]:
    config, objects = tiny_config(home), open_objects(ObjectConfig(objects_url, min_bytes=1))
    core = CoreStore(home).load(config.core)
    with RedisKeyVault(configs[1], master) as vault:
        sealer = AesGcmSealer(vault)
        with KafkaJournal(configs[0], sealer) as journal, RedisSnapshotStore(configs[1], sealer, objects) as store:
            async with EmbeddedHost(core, journal, store, Bm25Recall(), SystemClock(), config) as host:
                yield host, journal, store


@pytest.mark.parametrize("has_objects", [False, True])
async def test_what_is_said_is_learned_and_is_there_after_a_restart_and_gone_when_forgotten(
    home: Path, configs: tuple[KafkaConfig, RedisConfig], master: MasterKey, has_objects: bool
) -> None:
    objects = home / "objects"
    url = f"file://{objects}" if has_objects else ""
    async with opened(home, configs, master, url) as (host, _, _):
        before = await answer(host, asking(ADA, "Where do I live?"))
        await teach(host, *[said(ADA, f"a{number}", line) for number, line in enumerate(LINES)])
        after = await answer(host, asking(ADA, "Where do I live?"))
        assert after[0] != before[0]
        learned = await scores(host, ADA)
    async with opened(home, configs, master, url) as (host, journal, store):
        assert await scores(host, ADA) == learned
        assert store.load(ADA) is not None
        assert bool([*objects.glob("*/*/*/*")]) == has_objects
        erasure = await host.forget(ADA)
        assert [*objects.glob("*/*/*/*")] == []
        assert (erasure.had_memory, erasure.num_interactions) == (True, 2)
        assert (await answer(host, asking(ADA, "Where do I live?")))[0] == before[0]
        assert [record.payload for record in journal.read(partition_of(ADA, NUM_PARTITIONS), 0, 10)] == [b"", b""]
        await teach(host, said(ADA, "a9", LINES[0]))
        assert (await host.memory(ADA)).num_interactions == 1
    # Of a store elsewhere there are no files to be looked at.
    files = [part for folder in ("valkey", "objects") for part in (home / folder).rglob("*") if part.is_file()]
    content = b"".join(part.read_bytes() for part in files)
    assert not any(line.encode() in content for line in LINES)


async def test_an_interaction_written_twice_is_absorbed_once_and_poison_is_parked_once(
    home: Path, configs: tuple[KafkaConfig, RedisConfig], master: MasterKey
) -> None:
    at = partition_of(ADA, NUM_PARTITIONS)
    async with opened(home, configs, master) as (host, journal, store):
        await teach(host, said(ADA, "a0", LINES[0]), said(BEN, "b0", LINES[0]))
        learned = await scores(host, ADA)
        sealer = journal._sealer
        producer = make_producer(configs[0])

        def send(id_: str, key: bytes | None = key_of(ADA), payload: bytes | None = None) -> int:
            interaction = said(ADA, id_, LINES[0])
            value = sealer.seal(ADA, journal_context(id_), encode(interaction) if payload is None else payload)
            headers = headers_of(interaction)
            sent = producer.send(configs[0].topic, key=key, value=value, headers=headers, partition=at)
            return int(sent.get(10).offset)

        # The same interaction from another gateway, which knows nothing of the first.
        send("a0")
        poisoned = [send("p0", key=None), send("p1", payload=b"{"), send("a0", key=b"nobody")]
        last = send("p2", payload=b'{"schema_version": 9}')
        producer.close(timeout=5)
        # Nobody tells this host of what another process writes: it looks.
        parked = await host.wait_absorbed([Receipt("p2", at, last, False)])
        assert [one.interaction_id for one in parked] == ["p2"]
        found = {one.position: one for one in store.parked()}
        assert sorted(found) == [*poisoned, last]
        assert [found[position].owner for position in sorted(found)] == [NOBODY, ADA, NOBODY, ADA]
        assert found[last].reason is ParkReason.UNKNOWN_SCHEMA
        assert await scores(host, ADA) == learned
        assert (await host.memory(ADA)).num_interactions == 1
        assert host._shard.num_repeats == 1
        assert store.position(at) == last + 1
        letters = dead_letters(configs[0])
        assert [dict(one.headers)[ORIGIN].decode() for one in letters] == [
            f"{configs[0].topic}/{at}/{position}" for position in sorted(found)
        ]
        assert [dict(one.headers)[REASON].decode() for one in letters] == [
            found[position].reason.value for position in sorted(found)
        ]
        assert [one.key for one in letters] == [None, b"office/ada", None, b"office/ada"]
        assert sealer.open("it", ADA, parked_context(at, last), letters[-1].value) == b'{"schema_version": 9}'


def dead_letters(config: KafkaConfig) -> list[Any]:
    """Returns what is on the dead-letter topic."""
    consumer, place = make_consumer(config), kafka.TopicPartition(config.parked_topic, 0)
    consumer.assign([place])
    consumer.seek(place, 0)
    found: list[Any] = []
    while more := consumer.poll(timeout_ms=2_000).get(place, []):
        found += more
    consumer.close()
    return found
