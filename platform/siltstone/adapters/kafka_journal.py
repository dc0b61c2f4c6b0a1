"""The clustered journal: interactions in a Kafka topic, keyed by user, sealed under the user's key."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import kafka
import kafka.errors

from siltstone.adapters.kafka_client import ask_offsets, has_fast_checksums, make_consumer, make_producer, translated
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_reader import Fetched, KafkaReader
from siltstone.adapters.kafka_records import (
    Unreadable,
    claimed_id,
    headers_of,
    key_of,
    parked_headers,
    parked_value,
    read_record,
)
from siltstone.adapters.kafka_topic import ensure_topic
from siltstone.adapters.seal_contexts import journal_context
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, Unavailable
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.ports import Sealer
from siltstone.values import NOBODY, Interaction, JournalRecord, Parked, Receipt, UserKey

_LOG = logging.getLogger(__name__)
_SCAN_RECORDS: Final = 1_000
_OVERHEAD_BYTES: Final = 512
"""What a record's frame and the names of its headers may take beside what is in it."""
_PARKED_BYTES: Final = 2_048
"""What the headers of a parked one may take."""

_OVERDUE_SHARE: Final = 0.25
_HOUR_MS: Final = 3_600_000

Name = tuple[UserKey, str]


@dataclass(slots=True)
class _Sent:
    """What became of one interaction of an append: where it is, or the answer that is waited for."""

    name: Name
    partition: int
    position: int = -1
    answer: Any = None
    is_duplicate: bool = False


class KafkaJournal:
    """`ports.Journal` on a Kafka topic. Positions are offsets. Safe for the threads of a process."""

    def __init__(self, config: KafkaConfig, sealer: Sealer) -> None:
        """Checks the topic, and makes it where there is none and it may be made.

        Raises: ConfigInvalid when the brokers refuse us or the topic cannot be a journal; NotFound; Unavailable.
        """
        self.config = config
        self._sealer = sealer
        ensure_topic(config)
        if not has_fast_checksums():
            _LOG.warning("checksums in Python", extra={"missing": "crc32c"})
        self._lock = threading.Lock()
        self._producer: Any = None
        self._ends: dict[int, int] = {}
        self._recent: dict[int, OrderedDict[Name, int]] = {}
        self._pending: dict[Name, _Sent] = {}
        self._reader = KafkaReader(config, self._appended_end)
        self._scanner = KafkaReader(config, self._appended_end)
        self._asker: Any = None
        self._asking = threading.Lock()

    def close(self) -> None:
        """Closes all connections. What was appended is written: an append returns only then."""
        with self._lock:
            self._drop_producer()
        self._reader.close()
        self._scanner.close()
        with self._asking:
            if self._asker is not None:
                self._asker.close(timeout_ms=0)
                self._asker = None

    def __enter__(self) -> KafkaJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """See `ports.Journal.append`.

        1. Write every interaction as bytes, and seal it: what cannot be written is refused before anything is.
        2. Under a lock, look for repeats and hand the others to the producer, in order.
        3. Wait until all replicas have them.

        Raises: InvalidInput also for one larger than the topic takes.
        """
        # 1.
        payloads = [encode(interaction) for interaction in interactions]
        if not payloads:
            return []
        self._sealer.prepare([interaction.owner for interaction in interactions])
        values = [
            self._sealer.seal(interaction.owner, journal_context(interaction.id), payload)
            for interaction, payload in zip(interactions, payloads, strict=True)
        ]
        largest = max(map(len, values))
        if largest > self.config.max_record_bytes - _OVERHEAD_BYTES:
            limit = self.config.max_record_bytes - _OVERHEAD_BYTES
            raise InvalidInput("payload", f"at most {limit} bytes", f"{largest} bytes")
        # 2.
        with self._lock, translated():
            sent = self._send(interactions, values)
        # 3.
        self._wait(sent)
        return [Receipt(one.name[1], one.partition, one.position, one.is_duplicate) for one in sent]

    def _send(self, interactions: Sequence[Interaction], values: Sequence[bytes]) -> list[_Sent]:
        owners = {interaction.owner for interaction in interactions}
        # Once for each user, not for each record: hashing a key takes as long as checking an interaction.
        homes = {owner: (partition_of(owner, self.config.num_partitions), key_of(owner)) for owner in owners}
        self._learn_recent({partition for partition, _ in homes.values()})
        if self._producer is None:
            self._producer = make_producer(self.config)
        sent = list[_Sent]()
        for interaction, value in zip(interactions, values, strict=True):
            name = (interaction.owner, interaction.id)
            partition, key = homes[interaction.owner]
            position = self._recent[partition].get(name)
            if position is not None:
                sent.append(_Sent(name, partition, position, is_duplicate=True))
                continue
            if (pending := self._pending.get(name)) is not None:
                sent.append(_Sent(name, partition, answer=pending.answer, is_duplicate=True))
                continue
            one = _Sent(name, partition)
            try:
                one.answer = self._producer.send(
                    self.config.topic,
                    value=value,
                    key=key,
                    headers=headers_of(interaction),
                    partition=partition,
                )
            except (kafka.errors.KafkaError, ValueError) as error:
                # A partition the cluster does not know (now) is a ValueError to the client. What was sent before may
                # be on its way: it is waited for, and then this is told.
                one.answer = _Failed(kafka.errors.KafkaError(str(error)) if isinstance(error, ValueError) else error)
            self._pending[name] = one
            sent.append(one)
            if isinstance(one.answer, _Failed):
                break
        return sent

    def _wait(self, sent: list[_Sent]) -> None:
        give_up_at, failure = time.monotonic() + self.config.append_timeout_s + 1.0, None
        for one in sent:
            if one.answer is not None:
                try:
                    one.position = _answered(one.answer, give_up_at)
                except kafka.errors.KafkaError as error:
                    failure = failure or error
        with self._lock:
            for one in sent:
                if one.answer is not None and not one.is_duplicate:
                    self._pending.pop(one.name, None)
            if failure is None and any(one.position < 0 for one in sent):
                failure = self._look_for(sent)
            for one in sent:
                if one.answer is not None and not one.is_duplicate and one.position >= 0:
                    self._remember(one.partition, one.name, one.position)
                    self._ends[one.partition] = max(self._ends.get(one.partition, 0), one.position + 1)
            if failure is not None:
                # Nobody knows what of it was written. The topic does: it is asked before the next append.
                self._drop_producer()
                for one in sent:
                    self._recent.pop(one.partition, None)
        if failure is not None:
            with translated():
                raise failure

    def _look_for(self, sent: Sequence[_Sent]) -> kafka.errors.KafkaError | None:
        """Finds the places of what was written and not told where; returns the error when one is not there.

        An answer was lost, the client sent again, and the broker said that it has it already (its sequence number is
        known), without its place. The client gives -1 for it.
        """
        untold = [one for one in sent if one.position < 0]
        partitions = {one.partition for one in untold}
        for partition in partitions:
            self._recent.pop(partition, None)
        with translated():
            self._learn_recent(partitions)
        for one in untold:
            one.position = self._recent[one.partition].get(one.name, -1)
        if any(one.position < 0 for one in untold):
            return kafka.errors.KafkaError("the broker says that it has a record, and it is not found")
        return None

    def _learn_recent(self, partitions: set[int]) -> None:
        """Reads the ids of partitions' newest records, once, so that a repeat after a restart is known as one."""
        missing = partitions - self._recent.keys()
        if not missing:
            return
        window, bounds = self.config.id_window, self._ask(sorted(missing))
        starts = {partition: max(start, end - window) for partition, (start, end) in bounds.items() if start < end}
        if window and starts:
            self._scanner.follow(starts, {partition: bounds[partition][1] for partition in starts})
        for partition in missing:
            recent: OrderedDict[Name, int] = OrderedDict()
            # A batch that cannot be read hides the ids behind it from us, not from the store: an append goes on.
            with suppress(Corrupt):
                for record in self._scan(partition, starts[partition]) if window and partition in starts else ():
                    if not isinstance(record, Unreadable) and (name := claimed_id(record)) is not None:
                        recent.setdefault(name, record.offset)
            self._recent[partition] = recent

    def _remember(self, partition: int, name: Name, position: int) -> None:
        recent = self._recent.get(partition)
        if recent is not None:
            recent[name] = position
            while len(recent) > self.config.id_window:
                recent.popitem(last=False)

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=0)

    def follow(self, positions: Mapping[int, int]) -> None:
        """See `ports.Journal.follow`. `read` does without, slower.

        Raises: InvalidInput for a partition that does not exist.
        """
        for partition in positions:
            self._check_partition(partition)
        self._reader.follow(positions)

    def leave(self, partitions: Sequence[int]) -> None:
        """See `ports.Journal.leave`."""
        self._reader.leave(*partitions)

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """See `ports.Journal.ready`."""
        return self._reader.ready(positions)

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        """See `ports.Journal.overdue`: by the record's time, which is its producer's or the broker's."""
        since_ms = now_ms - int(self.config.retention_hours * _HOUR_MS * _OVERDUE_SHARE)
        found = []
        for partition, position in positions.items():
            try:
                records = self._scanner.read(partition, position, 1)
            except Corrupt:
                # It is not kept any more, or cannot be read: it is too late, or somebody must look anyway.
                found.append(partition)
                continue
            finally:
                self._scanner.leave(partition)
            found += [partition for one in records if not isinstance(one, Unreadable) and one.timestamp < since_ms]
        return found

    @property
    def look_every_s(self) -> float:
        """See `ports.Journal.look_every_s`: gateways and other producers append."""
        return self.config.look_every_s

    def park(self, parked: Sequence[Parked]) -> None:
        """See `ports.Journal.park`: one record each in the dead-letter topic, if there is one.

        A payload that no record has room for is left out: the store keeps it.
        """
        if not self.config.parked_topic or not parked:
            return
        self._sealer.prepare([one.owner for one in parked if one.owner != NOBODY])
        try:
            self._park(parked)
        except (ConfigInvalid, InvalidInput) as error:
            # It is a service to others, and no reason to end: the owner goes on trying until somebody mends it.
            raise Unavailable("the dead-letter topic", str(error)) from error

    def _park(self, parked: Sequence[Parked]) -> None:
        most = self.config.max_record_bytes - _OVERHEAD_BYTES - _PARKED_BYTES
        with self._lock, translated():
            if self._producer is None:
                self._producer = make_producer(self.config)
            answers = [
                self._producer.send(
                    self.config.parked_topic,
                    value=value if len(value := parked_value(one, self._sealer)) <= most else b"",
                    key=key_of(one.owner) if one.owner != NOBODY else None,
                    headers=parked_headers(one, self.config.topic),
                )
                for one in parked
            ]
        give_up_at = time.monotonic() + self.config.append_timeout_s + 1.0
        with translated():
            for answer in answers:
                answer.get(max(0.0, give_up_at - time.monotonic()))

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        """See `ports.Journal.read`.

        Raises: InvalidInput for a partition that does not exist; KeyMissing when a record's key is not in the vault.
        """
        self._check_partition(partition)
        if max_records <= 0:
            return []
        reader = self._reader_for(partition, max(start, 0))
        num_partitions, accepts_plain = self.config.num_partitions, self.config.accepts_plain
        return [
            read_record(partition, num_partitions, record, self._sealer, accepts_plain)
            for record in reader.read(partition, max(start, 0), max_records)
        ]

    def _reader_for(self, partition: int, start: int) -> KafkaReader:
        """Returns who reads from here: whoever stands there; for a look back, not the one who reads ahead."""
        front = self._reader.front_of(partition)
        if front is None or start >= front:
            return self._reader
        return self._scanner

    def start_positions(self) -> dict[int, int]:
        """See `ports.Journal.start_positions`."""
        with self._asking, translated():
            return ask_offsets(self._asked().beginning_offsets, self._places(), self.config.answer_timeout_s)

    def end_positions(self) -> dict[int, int]:
        """See `ports.Journal.end_positions`: the high watermarks, and what this process has itself seen beyond."""
        with self._asking, translated():
            told = ask_offsets(self._asked().end_offsets, self._places(), self.config.answer_timeout_s)
        return {
            partition: max(
                end, self._appended_end(partition), self._reader.end_of(partition), self._scanner.end_of(partition)
            )
            for partition, end in told.items()
        }

    def erase(self, owner: UserKey) -> int:
        """See `ports.Journal.erase`: destroys the key, then counts what it had sealed by reading the partition once."""
        name = self._sealer.forget(owner)
        if not name:
            return 0
        partition = partition_of(owner, self.config.num_partitions)
        ((start, _),) = self._ask([partition]).values()
        key = key_of(owner)
        return sum(
            1
            for record in self._scan(partition, start)
            if not isinstance(record, Unreadable)
            and record.key == key
            and self._sealer.name_of_key(record.value or b"") == name
        )

    def _scan(self, partition: int, start: int) -> Iterator[Fetched]:
        try:
            while found := self._scanner.read(partition, start, _SCAN_RECORDS):
                yield from found
                start = found[-1].offset + 1
        finally:
            self._scanner.leave(partition)

    def _ask(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Returns, of each partition, the position of its oldest record and of its next one."""
        places = [kafka.TopicPartition(self.config.topic, partition) for partition in partitions]
        timeout_s = self.config.answer_timeout_s
        with self._asking, translated():
            asker = self._asked()
            starts = ask_offsets(asker.beginning_offsets, places, timeout_s)
            ends = ask_offsets(asker.end_offsets, places, timeout_s)
        return {partition: (starts[partition], ends[partition]) for partition in partitions}

    def _asked(self) -> Any:
        if self._asker is None:
            self._asker = make_consumer(self.config)
        return self._asker

    def _places(self) -> list[Any]:
        return [kafka.TopicPartition(self.config.topic, partition) for partition in range(self.config.num_partitions)]

    def _appended_end(self, partition: int) -> int:
        return self._ends.get(partition, 0)

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self.config.num_partitions:
            raise InvalidInput("partition", f"0 to {self.config.num_partitions - 1}", str(partition))


def _answered(answer: Any, give_up_at: float) -> int:
    """Returns the offset that a record got. One batch answers for all of its records: most need no waiting."""
    if not answer.succeeded():
        answer.get(max(0.0, give_up_at - time.monotonic()))
    offset: int = answer.value.offset
    return offset


class _Failed:
    """The answer to what was not even sent."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def succeeded(self) -> bool:
        return False

    def get(self, _: float) -> Any:
        raise self._error
