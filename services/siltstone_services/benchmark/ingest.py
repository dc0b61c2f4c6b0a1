"""How fast interactions get into the journal: checked, sealed under their user's key, routed, and written durably."""

from __future__ import annotations

import base64
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.kafka_client import has_fast_checksums, make_producer, translated
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.adapters.kafka_records import headers_of, key_of
from siltstone.adapters.kafka_topic import ensure_topic
from siltstone.adapters.master_key import open_master_key
from siltstone.adapters.seal_contexts import journal_context
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
from siltstone.journal.admit import AdmissionLimits, admit, encode
from siltstone.journal.partition import partition_of
from siltstone.ports import Journal, Sealer
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, UserKey
from siltstone_services.admission import check_interaction
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_least, ratio_readings

PER_CORE: Final = at_least(20_000, "/s")
_TEXT: Final = "On Thursday I moved my desk to the window on the third floor, beside the plant that nobody waters."


Alone = Callable[[Sequence[Interaction]], float]
"""Writes interactions as something else than our journal does, and returns its seconds of processor time."""


def run_ingest(brokers: str, num_users: int, batch: int, rounds: int, folder: Path, say: Say) -> Iterator[Outcome]:
    """Times batches into the embedded journal, and into Kafka where brokers are given.

    Per second of this process's processor time, all of its threads: what a gateway can take in on one core when the
    broker is elsewhere. By the clock beside it, the broker on the same machine. Into Kafka by turns with the client
    library alone, which is handed the same records, sealed before: no journal on it can be faster.
    """
    with _sealer(folder) as sealer:
        with (
            tempfile.TemporaryDirectory(dir=folder) as name,
            SqliteFile(Path(name) / "journal.db", SqliteConfig(), sealer) as file,
        ):
            yield _run("embedded journal", SqliteJournal(file), num_users, batch, rounds, say)
        if not brokers:
            yield Outcome("ingest, Kafka journal", absence="no brokers were given")
            return
        config = KafkaConfig(
            brokers,
            topic=f"bench-{uuid.uuid4().hex}",
            num_partitions=16,
            replication_factor=1,
            min_insync_replicas=1,
        )
        what = "Kafka journal" if has_fast_checksums() else "Kafka journal (checksums in Python)"
        with KafkaJournal(config, sealer) as journal, _client_alone(config, sealer) as alone:
            yield _run(what, journal, num_users, batch, rounds, say, alone)


@contextmanager
def _sealer(folder: Path) -> Iterator[Sealer]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        key = Path(name) / "master.key"
        key.write_text(base64.b64encode(os.urandom(32)).decode(), encoding="ascii")
        config = SealingConfig(master_key_file=str(key), cached_for_s=3600.0)
        vault = stack.enter_context(SqliteKeyVault(Path(name) / "keys.db", open_master_key(config)))
        yield AesGcmSealer(vault, config)


@contextmanager
def _client_alone(config: KafkaConfig, sealer: Sealer) -> Iterator[Alone]:
    """Hands records to the producer and waits for its answers: nothing is checked, encoded, sealed or remembered."""
    config = replace(config, topic=f"{config.topic}-alone")
    ensure_topic(config)
    with translated():
        producer = make_producer(config)

    def write(said: Sequence[Interaction]) -> float:
        records = [
            {
                "value": sealer.seal(one.owner, journal_context(one.id), encode(one)),
                "key": key_of(one.owner),
                "headers": headers_of(one),
                "partition": partition_of(one.owner, config.num_partitions),
            }
            for one in said
        ]
        start_s = time.process_time()
        for answer in [producer.send(config.topic, **record) for record in records]:
            answer.get(config.append_timeout_s)
        return time.process_time() - start_s

    try:
        yield write
    finally:
        producer.close(timeout=0)


def _run(
    what: str, journal: Journal, num_users: int, batch: int, rounds: int, say: Say, alone: Alone | None = None
) -> Outcome:
    case, chance, limits = f"ingest, {what}", random.Random(1), AdmissionLimits()
    say(case)
    took_s, alone_s, by_clock = list[float](), list[float](), list[float]()
    for number in range(rounds + 1):
        said = [_said(f"{number}-{at}", chance.randrange(num_users)) for at in range(batch)]
        clock_s, processor_s = time.perf_counter(), time.process_time()
        for one in said:
            check_interaction(one, limits)
        receipts = journal.append(said)
        processor_s, clock_s = time.process_time() - processor_s, time.perf_counter() - clock_s
        if any(receipt.duplicate for receipt in receipts) or len(receipts) != batch:
            return Outcome(case, refusal="what was said once was taken for a repeat")
        alone_took_s = alone(said) if alone else 0.0
        # The first round makes the users' keys and the connections.
        if number:
            took_s.append(processor_s)
            alone_s.append(alone_took_s)
            by_clock.append(batch / clock_s)
    if complaint := _check(journal, said):
        return Outcome(case, refusal=complaint)
    readings = [
        Reading(f"{case}, of one core", tuple(batch / one for one in took_s), "/s", PER_CORE),
        Reading(f"{case}, by the clock", tuple(by_clock), "/s"),
    ]
    if alone:
        name = f"{case}, the client library alone"
        readings.append(Reading(f"{name}, of one core", tuple(batch / one for one in alone_s), "/s"))
        readings += ratio_readings(f"{name} / all of it, processor time", alone_s, took_s)
    return Outcome(case, tuple(readings))


def _said(id_: str, user: int) -> Interaction:
    owner, message = UserKey("bench", f"user-{user}"), Message(Role.USER, f"{_TEXT} ({id_})")
    return Interaction(id_, owner, InteractionKind.CONVERSATION, 1, (message,), consent=Consent(learn=True))


def _check(journal: Journal, said: Sequence[Interaction]) -> str:
    """Says what is missing of the last batch in the journal, or nothing."""
    wanted = {(one.owner, one.id): encode(one) for one in said}
    ends = journal.end_positions()
    for partition, start in journal.start_positions().items():
        while start < ends[partition] and (records := journal.read(partition, start, 1024)):
            for record in records:
                if wanted.get((record.owner, record.interaction_id)) == record.payload:
                    assert isinstance(admit(record.payload, AdmissionLimits()), Interaction)
                    del wanted[record.owner, record.interaction_id]
            start = records[-1].position + 1
    return f"{len(wanted)} of {len(said)} interactions are not in the journal" if wanted else ""
