"""What the owner of partitions is told by the Kafka journal: what is there to be read, and what has waited for long."""

from __future__ import annotations

import time

import pytest
import servers
from test_kafka_journal import BOB, HOME, NUM_PARTITIONS, config_of, said

from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.journal.partition import partition_of


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with servers.kafka_address(tmp_path_factory.mktemp("tansu")) as address:
        yield address


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


def test_what_has_waited_for_a_quarter_of_the_time_it_is_kept_is_told_of(config, journal):
    journal.append([said("i1"), said("i2"), said("i3", BOB)])
    elsewhere = partition_of(BOB, NUM_PARTITIONS)
    now_ms = int(time.time() * 1_000)
    soon_ms = now_ms + config.retention_hours * 3_600_000 // 3
    assert journal.overdue({HOME: 0, elsewhere: 0}, now_ms) == []
    assert journal.overdue({HOME: 1, elsewhere: 0}, soon_ms) == [HOME, elsewhere]
    # What is absorbed does not wait.
    assert journal.overdue({HOME: 2, elsewhere: 0}, soon_ms) == [elsewhere]
