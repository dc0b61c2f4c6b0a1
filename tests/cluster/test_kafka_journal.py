"""What the Kafka journal does with records that are none, and with a broker that is away, frozen or set up wrong."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from dataclasses import replace

import kafka
import pytest
import servers
from kafka.admin import KafkaAdminClient
from proxy import proxy_to

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.kafka_client import make_consumer, make_producer
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.adapters.kafka_records import ENCODING, ID, PLAIN, SCHEMA, SEALED, TENANT, headers_of, key_of
from siltstone.adapters.seal_contexts import journal_context
from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, KeyMissing, NotFound, Unavailable
from siltstone.journal.admit import decode, encode
from siltstone.journal.partition import partition_of
from siltstone.values import NOBODY, Interaction, InteractionKind, Message, ParkReason, Role, UserKey

NUM_PARTITIONS = 4
ADA = UserKey("office", "ada")
HOME = partition_of(ADA, NUM_PARTITIONS)
BOB = next(
    owner
    for owner in (UserKey("office", f"bob{number}") for number in range(100))
    if partition_of(owner, NUM_PARTITIONS) != HOME
)


def said(name, owner=ADA, text="The depot opens at seven."):
    return Interaction(name, owner, InteractionKind.DOCUMENT, 1_700_000_000_000, (Message(Role.USER, text),))


def config_of(address, **changes):
    quick = {"append_timeout_s": 6.0, "answer_timeout_s": 4.0}
    ours = {"num_partitions": NUM_PARTITIONS, "replication_factor": 1, "min_insync_replicas": 1}
    return KafkaConfig(address, **({"topic": f"t{uuid.uuid4().hex}"} | ours | quick | changes))


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


@pytest.fixture
def producer(config, journal):
    producer = make_producer(config)
    yield producer
    producer.close(timeout=5)


@pytest.fixture
def durable(tmp_path):
    """A broker that has its records again after a restart."""
    with servers.noida(tmp_path / "noida") as server:
        yield server


def all_of(journal, partition):
    records, start = [], 0
    while found := journal.read(partition, start, 100):
        records += found
        start = found[-1].position + 1
    return records


def within_a_minute(work):
    """Returns what `work` returns. The client is known to loop for ever on some of this; a test must not."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(60)
    assert results, "the read does not come back"
    return results[0]


# The format.


def test_a_record_is_what_the_documentation_says(config, sealer):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with KafkaJournal(config, sealer) as journal:
        (receipt,) = journal.append([replace(said("i1"), trace=trace)])
        assert journal.read(HOME, 0, 1)[0].trace == trace
    consumer = make_consumer(config)
    place = kafka.TopicPartition(config.topic, HOME)
    consumer.assign([place])
    consumer.seek(place, receipt.position)
    (record,) = consumer.poll(timeout_ms=10_000)[place]
    consumer.close()
    assert record.key == b"office/ada"
    assert dict(record.headers) == {
        "siltstone-schema": b"1",
        "siltstone-id": b"i1",
        "siltstone-tenant": b"office",
        "siltstone-encoding": b"aes-256-gcm",
        "traceparent": trace.encode(),
    }
    assert b"depot" not in record.value
    assert sealer.open("it", ADA, journal_context("i1"), record.value) == encode(said("i1"))


def test_records_in_the_clear_are_taken_where_that_is_wished(config, sealer):
    with KafkaJournal(replace(config, accepts_plain=True), sealer) as journal:
        producer = make_producer(config)
        headers = [(SCHEMA, b"1"), (ID, b"i1"), (TENANT, b"office"), (ENCODING, PLAIN)]
        producer.send(config.topic, key=b"office/ada", value=encode(said("i1")), headers=headers).get(5)
        producer.close(timeout=5)
        (record,) = within_a_minute(lambda: wait_for(journal, HOME, 1))
        assert record.defect is None
        assert decode(record.payload) == said("i1")


def wait_for(journal, partition, count):
    """Another process's records come a moment later."""
    while len(found := journal.read(partition, 0, 1_000)) < count:
        pass
    return found


# Records that are none.


def poison(sealer):
    good = {ID: b"i", SCHEMA: b"1", TENANT: b"office", ENCODING: SEALED}
    sealed = sealer.seal(ADA, journal_context("i"), encode(said("i")))
    key = key_of(ADA)
    return [
        # what it is, key, headers, value, reason, words of the detail, whose it is
        ("no key", None, good, sealed, ParkReason.UNDECODABLE, "key", NOBODY),
        ("a key of one part", b"ada", good, sealed, ParkReason.UNDECODABLE, "key", NOBODY),
        ("a key that is no text", b"\xff\xfe", good, sealed, ParkReason.UNDECODABLE, "key", NOBODY),
        ("another partition's key", key_of(BOB), good, sealed, ParkReason.UNDECODABLE, "partition", NOBODY),
        ("no headers", key, {}, sealed, ParkReason.UNDECODABLE, ID, ADA),
        ("an id that cannot be", key, good | {ID: b"../i"}, sealed, ParkReason.UNDECODABLE, ID, ADA),
        ("no schema", key, good | {SCHEMA: b"one"}, sealed, ParkReason.UNDECODABLE, SCHEMA, ADA),
        ("a later schema", key, good | {SCHEMA: b"7"}, sealed, ParkReason.UNKNOWN_SCHEMA, "found 7", ADA),
        ("an endless schema", key, good | {SCHEMA: b"9" * 5_000}, sealed, ParkReason.UNKNOWN_SCHEMA, "found 9", ADA),
        ("another tenant", key, good | {TENANT: b"factory"}, sealed, ParkReason.UNDECODABLE, TENANT, ADA),
        ("no value", key, good, None, ParkReason.EMPTY, "value", ADA),
        ("an empty value", key, good, b"", ParkReason.EMPTY, "value", ADA),
        ("no encoding", key, good | {ENCODING: b"rot13"}, sealed, ParkReason.UNDECODABLE, ENCODING, ADA),
        ("in the clear", key, good | {ENCODING: PLAIN}, encode(said("i")), ParkReason.UNDECODABLE, "clear", ADA),
        ("sealed for another id", key, good | {ID: b"j"}, sealed, ParkReason.UNDECODABLE, "sealed", ADA),
        ("sealed and changed", key, good, sealed[:-1] + b"\0", ParkReason.UNDECODABLE, "sealed", ADA),
        ("too short to be sealed", key, good, b"\1x", ParkReason.UNDECODABLE, "value", ADA),
    ]


def test_every_kind_of_poison_comes_with_its_defect_and_nobody_else_is_touched(config, journal, producer, sealer):
    kinds = poison(sealer)
    for number, (_, key, headers, value, *_) in enumerate(kinds):
        journal.append([said(f"a{number}"), said(f"b{number}", BOB)])
        send = {"key": key, "value": value, "headers": list(headers.items()), "partition": HOME}
        if key is None and value is None:
            continue
        producer.send(config.topic, **send).get(5)
    journal.append([said("last")])
    records = within_a_minute(lambda: all_of(journal, HOME))
    found = [record for record in records if record.defect is not None]
    assert len(found) == len(kinds)
    for record, (what, _, _, value, reason, words, owner) in zip(found, kinds, strict=True):
        assert record.defect is not None
        assert (record.defect.reason, record.owner) == (reason, owner), what
        assert words in record.defect.detail, what
        assert record.payload == (value or b""), what
    clean = [record.interaction_id for record in records if record.defect is None]
    assert clean == [*(f"a{number}" for number in range(len(kinds))), "last"]
    others = all_of(journal, partition_of(BOB, NUM_PARTITIONS))
    assert [record.interaction_id for record in others] == [f"b{number}" for number in range(len(kinds))]


class _NoText(str):
    """A header's name that is written as bytes that are no UTF-8, as a careless producer may."""

    def encode(self, *_):
        return b"\xff\xfe"


@pytest.mark.parametrize("reads_before", [True, False])
def test_a_record_whose_frame_cannot_be_read_stops_nobody(config, journal, producer, sealer, reads_before):
    """The client loops for ever when it is polled again after such a record: see kafka_reader."""
    elsewhere = partition_of(BOB, NUM_PARTITIONS)
    journal.append([said("before"), said("b0", BOB)])
    if reads_before:
        assert [len(journal.read(partition, 0, 10)) for partition in (HOME, elsewhere)] == [1, 1]
    producer.send(config.topic, key=key_of(ADA), value=b"x", headers=[(_NoText("no"), b"1")], partition=HOME).get(5)
    journal.append([said("behind"), said("b1", BOB)])

    def read_both():
        return [[record.interaction_id for record in all_of(journal, partition)] for partition in (HOME, elsewhere)]

    assert within_a_minute(read_both) == [["before", "", "behind"], ["b0", "b1"]]
    defects = [record.defect for record in within_a_minute(lambda: all_of(journal, HOME))]
    assert [defect is None for defect in defects] == [True, False, True]
    # And a new process, which looks for repeats at the end of the partition.
    with KafkaJournal(config, sealer) as other:
        receipts = within_a_minute(lambda: other.append([said("behind"), said("new")]))
        assert [receipt.duplicate for receipt in receipts] == [True, False]


def test_a_record_whose_key_is_in_no_vault_stands_still_and_is_not_parked(config, journal, master, tmp_path):
    journal.append([said("i1")])
    with ExitStack() as stack:
        empty = stack.enter_context(SqliteKeyVault(tmp_path / "other.db", master))
        other = stack.enter_context(KafkaJournal(config, AesGcmSealer(empty)))
        with pytest.raises(KeyMissing):
            other.read(HOME, 0, 10)


def test_a_record_too_large_for_the_topic_is_refused_before_any_is_written(config, journal):
    large = said("large", text="a" * (config.max_record_bytes + 1))
    with pytest.raises(InvalidInput, match="payload"):
        journal.append([said("small"), large])
    assert set(journal.end_positions().values()) == {0}


# Reading.


def test_little_room_loses_nothing_and_keeps_the_order(address, sealer):
    owners = [UserKey("office", f"user{number}") for number in range(12)]
    with KafkaJournal(config_of(address, max_buffered_bytes=2_000, fetch_bytes=4_000), sealer) as journal:
        for number in range(40):
            journal.append([said(f"i{number}", owner, "word " * 20) for owner in owners])
        positions, found = dict.fromkeys(range(NUM_PARTITIONS), 0), {owner: [] for owner in owners}
        while any(positions[partition] < end for partition, end in journal.end_positions().items()):
            for partition in positions:
                for record in journal.read(partition, positions[partition], 7):
                    found[record.owner].append(record.interaction_id)
                    positions[partition] = record.position + 1
        assert found == {owner: [f"i{number}" for number in range(40)] for owner in owners}


def test_who_follows_partitions_reads_each_from_where_it_was_told_to(config, journal, sealer):
    elsewhere = partition_of(BOB, NUM_PARTITIONS)
    journal.append([said(f"i{number}", owner) for number in range(5) for owner in (ADA, BOB)])
    with KafkaJournal(config, sealer) as other:
        with pytest.raises(InvalidInput):
            other.follow({NUM_PARTITIONS: 0})
        other.follow({HOME: 2, elsewhere: 4})
        assert [record.position for record in within_a_minute(lambda: wait_for_more(other, HOME, 2, 3))] == [2, 3, 4]
        assert [record.position for record in within_a_minute(lambda: wait_for_more(other, elsewhere, 4, 1))] == [4]
        assert [record.position for record in other.read(HOME, 0, 2)] == [0, 1]


def wait_for_more(journal, partition, start, count):
    records = []
    while len(records) < count:
        found = journal.read(partition, start, 1_000)
        records += found
        start = found[-1].position + 1 if found else start
    return records


def test_a_look_back_does_not_disturb_who_reads_ahead(journal):
    journal.append([said(f"i{number}") for number in range(30)])
    ahead = [record.position for record in journal.read(HOME, 0, 10)]
    back = [record.position for record in journal.read(HOME, 3, 20)]
    ahead += [record.position for record in journal.read(HOME, 10, 100)]
    assert (ahead, back) == (list(range(30)), list(range(3, 23)))
    assert [record.position for record in journal.read(HOME, 0, 2)] == [0, 1]


def test_what_another_process_writes_is_read_and_counted(durable, sealer):
    config = config_of(f"127.0.0.1:{durable.port}")
    with KafkaJournal(config, sealer) as mine, KafkaJournal(config, sealer) as theirs:
        theirs.append([said(f"i{number}") for number in range(5)])
        assert mine.end_positions()[HOME] == 5
        assert len(within_a_minute(lambda: wait_for(mine, HOME, 5))) == 5
        theirs.append([said("i5")])
        assert [record.position for record in within_a_minute(lambda: wait_for(mine, HOME, 6))] == list(range(6))
        assert set(mine.start_positions().values()) == {0}


def test_a_position_that_the_topic_does_not_have_is_damage(durable, sealer):
    with KafkaJournal(config_of(f"127.0.0.1:{durable.port}"), sealer) as journal:
        journal.append([said("i0"), said("b0", BOB)])
        with pytest.raises(Corrupt, match="not kept"):
            journal.read(HOME, 100, 10)
        # The others go on, and so does this one from where there is something.
        assert len(journal.read(partition_of(BOB, NUM_PARTITIONS), 0, 10)) == 1
        assert len(journal.read(HOME, 0, 10)) == 1


# A broker that is away, and comes back.


@pytest.mark.usefixtures("leaky_client")
def test_a_restarted_broker_has_everything_and_the_journal_goes_on(durable, sealer):
    with KafkaJournal(
        config_of(f"127.0.0.1:{durable.port}", append_timeout_s=1.5, answer_timeout_s=1.0), sealer
    ) as journal:
        journal.append([said(f"i{number}") for number in range(3)])
        assert len(journal.read(HOME, 0, 10)) == 3
        # Asked to end, not killed: this broker forgets a young topic that it is killed with.
        durable.stop()
        for call in (
            lambda: journal.append([said("i3")]),
            lambda: journal.end_positions(),
            lambda: journal.read(HOME, 0, 10),
        ):
            with pytest.raises(Unavailable):
                call()
        with pytest.raises(Unavailable):
            KafkaJournal(journal.config, sealer)
        durable.start()
        receipts = eventually(lambda: journal.append([said("i3"), said("i2")]))
        assert [(receipt.position, receipt.duplicate) for receipt in receipts] == [(3, False), (2, True)]
        records = eventually(lambda: journal.read(HOME, 0, 10))
        assert [record.interaction_id for record in records] == ["i0", "i1", "i2", "i3"]


@pytest.mark.usefixtures("leaky_client")
def test_who_asks_in_vain_leaves_no_thread_behind(sealer):
    """The library leaves one at every try; a journal tries for as long as a broker is away."""
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(Unavailable):
            KafkaJournal(config_of(f"127.0.0.1:{servers.free_port()}", answer_timeout_s=0.2), sealer)
    assert threading.active_count() == before


def eventually(call):
    """What clients need after a restart is a moment, and their callers' patience."""
    for _ in range(20):
        try:
            return call()
        except Unavailable as error:
            last = error
    raise last


@pytest.mark.usefixtures("leaky_client")
def test_what_a_frozen_broker_wrote_after_all_is_known_when_it_is_sent_again(durable, sealer):
    with KafkaJournal(config_of(f"127.0.0.1:{durable.port}"), sealer) as journal:
        journal.append([said("i0")])
        durable.freeze()
        try:
            with pytest.raises(Unavailable):
                journal.append([said("i1"), said("i2")])
        finally:
            durable.thaw()
        eventually(lambda: journal.append([said("i1"), said("i2")]))
        ids = [record.interaction_id for record in all_of(journal, HOME)]
        assert sorted(ids) == ["i0", "i1", "i2"]


def behind_a_proxy(folder, stack):
    """A broker whose clients are told of the proxy before it only: its address, and the proxy."""
    outside = servers.free_port()
    server = stack.enter_context(servers.tansu(folder / "tansu", outside))
    return f"127.0.0.1:{outside}", stack.enter_context(proxy_to(server.port, listen_at=outside))


@pytest.mark.usefixtures("leaky_client")
def test_an_append_whose_answer_is_lost_on_the_way_tells_where_it_is_all_the_same(tmp_path, sealer):
    """The client sends again, and Tansu answers that it has it already, without saying where."""
    with ExitStack() as stack:
        address, between = behind_a_proxy(tmp_path, stack)
        journal = stack.enter_context(KafkaJournal(config_of(address), sealer))
        journal.append([said("i0")])
        between.swallow(1)
        pairs = [("i1", ADA), ("i2", ADA), ("i1", ADA), ("i3", BOB)]
        receipts = journal.append([said(name, owner) for name, owner in pairs])
        assert between.num_swallowed == 1
        assert [(r.position, r.duplicate) for r in receipts] == [(1, False), (2, False), (1, True), (0, False)]
        again = journal.append([said(name, owner) for name, owner in pairs])
        assert again == [replace(receipt, duplicate=True) for receipt in receipts]
        assert [record.interaction_id for record in all_of(journal, HOME)] == ["i0", "i1", "i2"]
        assert journal.end_positions()[HOME] == 3


# The topic.


def make_topic(config, num_partitions=NUM_PARTITIONS, **settings):
    admin = KafkaAdminClient(bootstrap_servers=config.brokers)
    named = {name.replace("_", "."): value for name, value in settings.items()}
    admin.create_topics({config.topic: {"num_partitions": num_partitions, "replication_factor": 1, "configs": named}})
    admin.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_partitions": 3}, "expected 4 partitions, found a topic with 3"),
        ({"cleanup_policy": "compact"}, "cleanup.policy"),
        ({"retention_ms": "1000"}, "retention.ms"),
        ({"retention_bytes": "1000"}, "retention.bytes"),
        ({"compression_type": "zstd"}, "compression.type"),
    ],
)
def test_a_topic_that_would_lose_interactions_is_refused(config, sealer, settings, reason):
    make_topic(config, **settings)
    with pytest.raises(ConfigInvalid, match=reason):
        KafkaJournal(config, sealer)


def test_a_topic_with_too_few_replicas_is_refused(config, sealer):
    make_topic(config, min_insync_replicas="1")
    with pytest.raises(ConfigInvalid, match="expected 3 replicas, found a topic with 1"):
        KafkaJournal(replace(config, replication_factor=3), sealer)


def test_a_topic_that_is_not_there_is_made_only_where_that_is_wished(config, sealer):
    with pytest.raises(NotFound):
        KafkaJournal(replace(config, makes_topic=False), sealer)
    KafkaJournal(config, sealer).close()
    KafkaJournal(replace(config, makes_topic=False), sealer).close()


def test_of_many_who_make_the_topic_at_once_all_have_it(config, sealer):
    errors = []

    def start():
        try:
            KafkaJournal(config, sealer).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_headers_of_an_interaction_hold_no_word_of_it():
    interaction = said("i1", text="Pickle")
    assert b"Pickle" not in b"".join(value for _, value in headers_of(interaction))
