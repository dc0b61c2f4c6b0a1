"""Eight kinds of what is no interaction, and how it comes into a journal that others write to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shard_fleet import Place
from tiny_home import said

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.kafka_client import make_producer
from siltstone.adapters.kafka_records import headers_of, key_of
from siltstone.adapters.seal_contexts import journal_context
from siltstone.adapters.sqlite_partitions import read_partition, write_partition
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import Consent, Interaction, ParkReason, UserKey


@dataclass(frozen=True)
class Poison:
    """A record that is no sound interaction: whose it says it is, what is in it, and what it must be parked as."""

    kind: str
    owner: UserKey
    name: str
    payload: bytes
    reason: ParkReason
    has_key: bool = True


@dataclass(frozen=True)
class Injected:
    """Where a poison is."""

    poison: Poison
    partition: int
    position: int


def _changed(owner: UserKey, name: str, **fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(said(owner, name, "Tea."))), **fields}).encode()


def _without_kind(owner: UserKey, name: str) -> bytes:
    fields = json.loads(encode(said(owner, name, "Tea.")))
    del fields["kind"]
    return json.dumps(fields).encode()


def _without_consent(owner: UserKey, name: str) -> bytes:
    return encode(replace(said(owner, name, "The safe's number is 4711."), consent=Consent(learn=False)))


KINDS: dict[str, tuple[Callable[[UserKey, str, int], bytes], ParkReason]] = {
    "bad JSON": (lambda owner, name, size: b'{"id": "' + name.encode(), ParkReason.UNDECODABLE),
    "wrong schema": (lambda owner, name, size: _without_kind(owner, name), ParkReason.UNDECODABLE),
    "NaN": (lambda owner, name, size: _changed(owner, name, occurred_at_ms=float("nan")), ParkReason.UNDECODABLE),
    "infinity": (lambda owner, name, size: _changed(owner, name, occurred_at_ms=float("inf")), ParkReason.UNDECODABLE),
    "too large": (
        lambda owner, name, size: _changed(owner, name, messages=[{"role": "user", "text": "x" * size}]),
        ParkReason.TOO_LARGE,
    ),
    "no key": (lambda owner, name, size: _changed(UserKey("office", "nobody"), name), ParkReason.UNDECODABLE),
    "unknown version": (lambda owner, name, size: _changed(owner, name, schema_version=99), ParkReason.UNKNOWN_SCHEMA),
    "no consent": (lambda owner, name, size: _without_consent(owner, name), ParkReason.NO_CONSENT),
}


def mixed(stream: Sequence[Interaction], share: float, large_bytes: int, seed: int) -> list[Interaction | Poison]:
    """Returns the stream with so much of every kind of poison in it, at places and of users drawn by the seed."""
    rng = random.Random(seed)
    owners = sorted({one.owner for one in stream})
    places: list[tuple[float, Interaction | Poison]] = [(float(at), one) for at, one in enumerate(stream)]
    for kind, (make, reason) in KINDS.items():
        for number in range(round(share * len(stream))):
            owner, name = rng.choice(owners), f"p{list(KINDS).index(kind)}-{number}"
            poison = Poison(kind, owner, name, make(owner, name, large_bytes), reason, has_key=kind != "no key")
            places.append((rng.uniform(0, len(stream)), poison))
    return [one for _, one in sorted(places, key=lambda place: place[0])]


class Injector:
    """Writes a mixed stream as it comes, and keeps where the poison went."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.injected: list[Injected] = []
        self.ends: dict[int, int] = {}

    def put(self, piece: Sequence[Interaction | Poison]) -> list[tuple[int, int]]:
        """Writes a piece; returns the (partition, position)s of its records."""
        places = []
        for one in piece:
            if isinstance(one, Poison):
                at = self._put_poison(one)
                self.injected.append(at)
                partition, position = at.partition, at.position
            else:
                (receipt,) = self._place.journal.append([one])
                partition, position = receipt.partition, receipt.position
            self.ends[partition] = max(self.ends.get(partition, 0), position + 1)
            places.append((partition, position))
        return places

    def _put_poison(self, poison: Poison) -> Injected:
        """Writes into the embedded file as no client of ours would: there every record has an owner."""
        file: Any = self._place.journal._file  # type: ignore[attr-defined]
        owner, partition = poison.owner, partition_of(poison.owner, file.config.num_partitions)
        with file.writing(len(poison.payload)) as connection:
            row = read_partition(connection, partition)
            fields = (partition, row.end_position, owner.tenant, owner.user, poison.name, poison.payload)
            connection.execute(
                "INSERT INTO journal_record VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields))
            )
            write_partition(connection, replace(row, end_position=row.end_position + 1))
        return Injected(poison, partition, row.end_position)

    def close(self) -> None:
        pass


class TopicInjector(Injector):
    """The same into a topic, where another producer may write what it likes."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._config = place.config.kafka
        self._producer = make_producer(self._config)
        self._sealer: Any = place.journal._sealer  # type: ignore[attr-defined]

    def _put_poison(self, poison: Poison) -> Injected:
        owner, name = poison.owner, poison.name
        partition = partition_of(owner, self._config.num_partitions)
        sent = self._producer.send(
            self._config.topic,
            key=key_of(owner) if poison.has_key else None,
            value=self._sealer.seal(owner, journal_context(name), poison.payload),
            headers=headers_of(said(owner, name, "Tea.")),
            partition=partition,
        ).get(20)
        return Injected(poison, partition, int(sent.offset))

    def close(self) -> None:
        self._producer.close(timeout=5)
