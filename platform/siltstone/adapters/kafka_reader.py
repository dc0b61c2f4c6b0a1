"""Reads the partitions of a topic from where it is told to, ahead of what is asked, within bounds.

What this works around, in kafka-python 3.0.12: once a record's frame could not be read, the next `poll` of the same
consumer never returns. So a consumer that has raised is thrown away, and the partitions it read are read one by one,
each by a consumer of its own, until one of them has shown the record and the others that they are sound. For the same
reason partitions are held back by taking them from the consumer: one that is paused hides what it has raised.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import kafka
import kafka.errors

from siltstone.adapters.kafka_client import ask_offsets, make_consumer, translated
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_records import Unreadable
from siltstone.errors import Corrupt, Unavailable, records_not_kept

_LOG = logging.getLogger(__name__)
_POLL_RECORDS: Final = 1_000
_POLL_MS: Final = 250

Fetched = Any
"""A Kafka record as the client gives it, or Unreadable."""


@dataclass(slots=True)
class _Cursor:
    """What is known of a partition: what is asked next, what was fetched of it, where it goes on, where it ends."""

    front: int
    next_position: int
    known_end: int
    records: deque[Fetched] = field(default_factory=deque)
    num_bytes: int = 0
    is_lost: bool = False


class KafkaReader:
    """One consumer for many partitions. Safe for the threads of a process: one reads at a time."""

    def __init__(self, config: KafkaConfig, appended_end: Callable[[int], int] = lambda _: 0) -> None:
        """`appended_end` tells how far this process itself has written a partition."""
        self._config, self._appended_end = config, appended_end
        self._lock = threading.Lock()
        self._consumer: Any = None
        self._cursors: dict[int, _Cursor] = {}
        self._assigned: set[int] = set()
        self._to_seek: set[int] = set()
        self._apart: set[int] = set()

    def close(self) -> None:
        """Closes the consumer."""
        with self._lock:
            self._drop_consumer()

    def follow(self, positions: Mapping[int, int], ends: Mapping[int, int] | None = None) -> None:
        """Begins to read ahead of many partitions at once: asked for one by one, each waits for an answer of its own.

        Without `ends`, where they end is learned in reading them: nobody is asked, so nobody is waited for.
        """
        with self._lock:
            for partition, start in positions.items():
                known_end = start if ends is None else max(start, ends[partition])
                self._cursors[partition] = _Cursor(start, start, known_end)
                self._to_seek.add(partition)

    def leave(self, *partitions: int) -> None:
        """Reads no more of partitions ahead."""
        with self._lock:
            for partition in partitions:
                self._cursors.pop(partition, None)
                self._apart.discard(partition)

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Returns those partitions of which records are here, and how many: none is waited for.

        One that has to be read apart, or cannot be read on, counts as one that has a record.
        Raises: Unavailable.
        """
        strangers = {
            partition: position
            for partition, position in positions.items()
            if partition not in self._apart and self.front_of(partition) != position
        }
        if strangers:
            self.follow(strangers)
        with self._lock, translated():
            readable = (partition for partition in positions if self._is_readable(partition))
            if (one := next(readable, None)) is not None:
                self._poll(one, 0)
            found = {}
            for partition in positions:
                cursor = self._cursors.get(partition)
                if partition in self._apart or (cursor is not None and cursor.is_lost and not cursor.records):
                    found[partition] = 1
                elif cursor is not None and cursor.records:
                    found[partition] = len(cursor.records)
            return found

    def front_of(self, partition: int) -> int | None:
        """Returns the position behind the last record that was read of a partition; None before the first read."""
        cursor = self._cursors.get(partition)
        return None if cursor is None else cursor.front

    def end_of(self, partition: int) -> int:
        """Returns the highest end of a partition that was seen in reading it."""
        cursor = self._cursors.get(partition)
        return 0 if cursor is None else cursor.known_end

    def read(self, partition: int, start: int, max_records: int) -> list[Fetched]:
        """Returns up to `max_records` from position `start` on: all there are, as far as is known.

        Raises: Corrupt when what is stored is damaged or no longer kept; Unavailable.
        """
        with self._lock, translated():
            if partition in self._apart:
                return self._read_apart(partition, start, max_records)
            cursor = self._cursor_at(partition, start)
            self._fill(partition, cursor, max_records)
            if partition in self._apart and not cursor.records:
                return self._read_apart(partition, start, max_records)
            if cursor.is_lost and not cursor.records:
                del self._cursors[partition]
                raise records_not_kept(partition, start)
            found = [cursor.records.popleft() for _ in range(min(max_records, len(cursor.records)))]
            cursor.num_bytes -= sum(map(_size, found))
            if found:
                cursor.front = found[-1].offset + 1
            return found

    def _is_readable(self, partition: int) -> bool:
        cursor = self._cursors.get(partition)
        return cursor is not None and not cursor.is_lost and partition not in self._apart

    def _cursor_at(self, partition: int, start: int) -> _Cursor:
        cursor = self._cursors.get(partition)
        if cursor is None or cursor.front != start:
            cursor = _Cursor(start, start, self._ask_ends([partition])[partition])
            self._cursors[partition] = cursor
            self._to_seek.add(partition)
        cursor.known_end = max(cursor.known_end, self._appended_end(partition))
        return cursor

    def _fill(self, partition: int, cursor: _Cursor, max_records: int) -> None:
        """Polls until there are as many as are wanted, or all there are."""
        give_up_at = time.monotonic() + self._config.answer_timeout_s
        is_first = True
        while len(cursor.records) < max_records and not cursor.is_lost and partition not in self._apart:
            # Beyond the end is no place to wait at: the next answer tells of a later end, or that nothing is kept here.
            is_settled = cursor.next_position == cursor.known_end
            if is_settled and not is_first:
                return
            is_first = False
            if time.monotonic() > give_up_at:
                # Either nobody answers, which this tells, or what is there may not be read yet.
                cursor.known_end = self._ask_ends([partition])[partition]
                return
            self._poll(partition, 0 if is_settled else _POLL_MS)

    def _poll(self, wanted: int, timeout_ms: int) -> None:
        self._assign(wanted)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=_POLL_RECORDS)
        except kafka.errors.OffsetOutOfRangeError as error:
            # The next assignment leaves them out.
            for place in error.args[0]:
                self._cursors[place.partition].is_lost = True
            return
        except kafka.errors.AuthorizationError:
            raise
        except Exception as error:
            _LOG.warning("partitions read apart", extra={"num_partitions": len(self._assigned), "error": str(error)})
            self._apart |= self._assigned
            self._drop_consumer()
            return
        for place, records in fetched.items():
            cursor = self._cursors[place.partition]
            cursor.records += records
            cursor.num_bytes += sum(map(_size, records))
            cursor.next_position = records[-1].offset + 1
            self._note_end(cursor, place)
        if self._place(wanted) not in fetched:
            # The end of a partition may be a mark of the broker's, which is no record: only the consumer knows.
            cursor, place = self._cursors[wanted], self._place(wanted)
            cursor.next_position = max(cursor.next_position, self._consumer.position(place, timeout_ms=_POLL_MS) or 0)
            self._note_end(cursor, place)

    def _note_end(self, cursor: _Cursor, place: Any) -> None:
        cursor.known_end = max(cursor.known_end, self._consumer.highwater(place) or 0)

    def _assign(self, wanted: int) -> None:
        """Gives the consumer the partition that is wanted, and all that have room for more."""
        share = self._config.max_buffered_bytes // max(1, len(self._cursors))
        roomy = {
            partition
            for partition, cursor in self._cursors.items()
            if partition not in self._apart and not cursor.is_lost and (cursor.num_bytes < share or partition == wanted)
        }
        if self._consumer is None:
            self._consumer = make_consumer(self._config)
        if roomy != self._assigned:
            self._consumer.assign([self._place(partition) for partition in roomy])
        for partition in roomy & self._to_seek | roomy - self._assigned:
            self._consumer.seek(self._place(partition), self._cursors[partition].next_position)
        self._to_seek -= roomy
        self._assigned = roomy

    def _read_apart(self, partition: int, start: int, max_records: int) -> list[Fetched]:
        """Reads one partition by a consumer that nothing else depends on."""
        place, found = self._place(partition), list[Any]()
        self._cursors.pop(partition, None)
        consumer = make_consumer(self._config)
        try:
            consumer.assign([place])
            consumer.seek(place, start)
            give_up_at = time.monotonic() + self._config.answer_timeout_s
            end = ask_offsets(consumer.end_offsets, [place], self._config.answer_timeout_s)[partition]
            end = max(end, self._appended_end(partition))
            while not found and consumer.position(place, timeout_ms=_POLL_MS) < end and time.monotonic() < give_up_at:
                found = consumer.poll(timeout_ms=_POLL_MS, max_records=min(max_records, _POLL_RECORDS)).get(place, [])
                end = max(end, consumer.highwater(place) or 0)
        except kafka.errors.OffsetOutOfRangeError:
            raise records_not_kept(partition, start) from None
        except (kafka.errors.RetriableError, Unavailable):
            raise
        except Exception as error:
            if _is_damage(error):
                what = f"record {start} of partition {partition}"
                raise Corrupt(what, "a batch that can be read", str(error)[:160]) from error
            return [Unreadable(start, type(error).__name__)]
        finally:
            consumer.close(timeout_ms=0)
        # It was sound, or sound so far: if not, the next read meets it again.
        self._apart.discard(partition)
        return found

    def _ask_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        if self._consumer is None:
            self._consumer = make_consumer(self._config)
        places = [self._place(partition) for partition in partitions]
        return ask_offsets(self._consumer.end_offsets, places, self._config.answer_timeout_s)

    def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._assigned = set()
        if consumer is not None:
            consumer.close(timeout_ms=0)

    def _place(self, partition: int) -> Any:
        return kafka.TopicPartition(self._config.topic, partition)


def _is_damage(error: Exception) -> bool:
    """Says whether a whole batch cannot be read, for its checksum or its codec: not for what one record holds."""
    return "crc check" in str(error) or isinstance(error, kafka.errors.UnsupportedCodecError)


def _size(record: Fetched) -> int:
    return 0 if isinstance(record, Unreadable) else len(record.value or b"") + len(record.key or b"") + 256
