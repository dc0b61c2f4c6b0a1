"""What the owner of partitions is told by the Kafka journal: what is there to be read, and what has waited for long."""

from __future__ import annotations

import time

import pytest
import servers
from test_kafka_journal import ADA, BOB, HOME, NUM_PARTITIONS, config_of, said, within_a_minute

from siltstone.adapters.kafka_client import make_producer
from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.adapters.kafka_records import headers_of, key_of
from siltstone.adapters.seal_contexts import journal_context
from siltstone.errors import Corrupt
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with servers.tansu(tmp_path_factory.mktemp("tansu")) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def config(address):
    return config_of(address)


@pytest.fixture
def journal(config, sealer):
    with KafkaJournal(config, sealer) as journal:
        yield journal


def until_ready(journal, positions):
    """Others' records come a moment later."""
    found = {}
    while not found:
        found = journal.ready(positions)
    return found


def test_an_owner_is_told_of_what_others_write_without_being_made_to_wait(config, journal, sealer):
    elsewhere = partition_of(BOB, NUM_PARTITIONS)
    with KafkaJournal(config, sealer) as owner:
        owner.follow({HOME: 0, elsewhere: 0})
        assert owner.ready({HOME: 0, elsewhere: 0}) == {}
        journal.append([said("i1"), said("i2")])
        assert set(until_ready(owner, {HOME: 0, elsewhere: 0})) == {HOME}
        records = []
        while len(records) < 2:
            at = len(records)
            if found := owner.ready({HOME: at}):
                records += owner.read(HOME, at, found[HOME])
        assert [record.interaction_id for record in records] == ["i1", "i2"]
        # What was taken in and not committed is there again, for whoever goes back.
        assert set(until_ready(owner, {HOME: 0})) == {HOME}
        assert owner.read(HOME, 0, 1)[0].interaction_id == "i1"
        owner.leave([HOME])
        journal.append([said("i3", BOB)])
        assert set(until_ready(owner, {elsewhere: 0})) == {elsewhere}


def test_what_has_waited_for_a_quarter_of_the_time_it_is_kept_is_told_of(config, journal, sealer):
    producer = make_producer(config)
    hour_ms, interaction = 3_600_000, said("i1")
    value = sealer.seal(ADA, journal_context("i1"), encode(interaction))
    old_ms = int(time.time() * 1_000) - config.retention_hours * hour_ms // 3
    sent = {"key": key_of(ADA), "headers": headers_of(interaction, ""), "partition": HOME}
    producer.send(config.topic, value=value, timestamp_ms=old_ms, **sent).get(5)
    journal.append([said("i2"), said("i3", BOB)])
    producer.close(timeout=5)
    elsewhere = partition_of(BOB, NUM_PARTITIONS)
    assert journal.overdue({HOME: 0, elsewhere: 0}) == [HOME]
    assert journal.overdue({HOME: 1, elsewhere: 0}) == []


def test_a_record_that_cannot_be_read_is_ready_so_that_it_is_met(journal, config, sealer):
    with KafkaJournal(config, sealer) as owner:
        journal.append([said("i1")])
        assert within_a_minute(lambda: until_ready(owner, {HOME: 90})) == {HOME: 1}
        with pytest.raises(Corrupt, match="records from position 90 on"):
            owner.read(HOME, 90, 1)
