"""What goes wrong stays where it went wrong: poison is parked, damage is one user's, a full disk is waited for."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_home import ADA, BEN, CLEO, add_tiny_core, answer, asking, blob, open_host, said, scores, teach, tiny_config

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_partitions import read_partition, write_partition
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import Corrupt, Unavailable
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of, row_of
from siltstone.memory.absorber import Absorber
from siltstone.values import (
    Commit,
    Consent,
    Interaction,
    JournalRecord,
    Message,
    Parked,
    ParkReason,
    Receipt,
    Role,
    UserKey,
)
from siltstone_services import lanes

NUM_PARTITIONS = 4
SOUND = "My dog is called Ferro and he is nine years old."
USERS = (UserKey("office", f"user{number}") for number in range(100))
FRIEND = next(user for user in USERS if partition_of(user, NUM_PARTITIONS) == partition_of(ADA, NUM_PARTITIONS))
"""Somebody else in Ada's partition."""
STRANGER = next(user for user in USERS if partition_of(user, NUM_PARTITIONS) != partition_of(ADA, NUM_PARTITIONS))
"""Somebody in another partition."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)
    return tmp_path


def append_raw(file: SqliteFile, owner: UserKey, id_: str, payload: bytes) -> Receipt:
    """Writes a payload into the journal as no client of ours would."""
    partition = partition_of(owner, file.config.num_partitions)
    with file.writing(len(payload)) as connection:
        row = read_partition(connection, partition)
        fields = (partition, row.end_position, owner.tenant, owner.user, id_, payload)
        connection.execute("INSERT INTO journal_record VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))
        write_partition(connection, replace(row, end_position=row.end_position + 1))
    return Receipt(id_, partition, row.end_position, duplicate=False)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(said(ADA, "poison", SOUND))), **fields}).encode()


POISON: list[tuple[bytes, ParkReason]] = [
    (b"\xff\xfe not text", ParkReason.UNDECODABLE),
    (b"{", ParkReason.UNDECODABLE),
    (b"null", ParkReason.UNDECODABLE),
    (b"[" * 100_000, ParkReason.UNDECODABLE),
    (changed(id="\ud800"), ParkReason.UNDECODABLE),
    (changed(user="ben"), ParkReason.UNDECODABLE),
    (changed(id="another"), ParkReason.UNDECODABLE),
    (changed(schema_version=99), ParkReason.UNKNOWN_SCHEMA),
    (changed(kind="dance"), ParkReason.UNKNOWN_KIND),
    (changed(consent={"learn": False, "share": False}), ParkReason.NO_CONSENT),
    (changed(messages=[{"role": "user", "text": "x" * 70_000}]), ParkReason.TOO_LARGE),
    (b'"' + b"x" * 600_000 + b'"', ParkReason.TOO_LARGE),
    (changed(messages=[{"role": "user", "text": " \n"}]), ParkReason.EMPTY),
    (changed(messages=[{"role": "king", "text": "x"}]), ParkReason.WRONG_ROLES),
    (changed(messages=[{"role": "system", "text": "x"}]), ParkReason.WRONG_ROLES),
]


async def test_poison_is_parked_once_with_its_reason_and_harms_no_neighbour(home: Path) -> None:
    def stream(with_poison: bool) -> Callable[[SqliteFile], list[Receipt]]:
        def write(file: SqliteFile) -> list[Receipt]:
            journal, receipts = SqliteJournal(file), []
            for number, (payload, _) in enumerate(POISON):
                for owner in (ADA, FRIEND):
                    receipts += journal.append([said(owner, f"{owner.user}{number}", SOUND)])
                if with_poison:
                    receipts.append(append_raw(file, ADA, "poison" if number == 5 else f"p{number}", payload))
            return receipts

        return write

    clean_home = home / "clean"
    clean_home.mkdir()
    add_tiny_core(clean_home)
    one = {"shard.max_round_interactions": 1}
    blobs: dict[bool, list[bytes]] = {}
    for here, with_poison in ((home, True), (clean_home, False)):
        with SqliteFile(here / "siltstone.db", tiny_config(here).store) as file:
            receipts = stream(with_poison)(file)
        async with open_host(here, one) as host:
            await host.wait_absorbed(receipts)
            blobs[with_poison] = [await blob(host, owner) for owner in (ADA, FRIEND, BEN)]
            assert all(blobs[with_poison][:2])
            if with_poison:
                parked = (await host.export(ADA)).parked
                assert [item.reason for item in parked] == [reason for _, reason in POISON]
                assert [item.payload for item in parked] == [payload for payload, _ in POISON]
                assert all("expected" in item.detail for item in parked)
                assert (await host.status()).num_parked == len(POISON)
    assert blobs[True] == blobs[False]
    async with open_host(home, one) as host:
        assert len((await host.export(ADA)).parked) == len(POISON)


class WildAbsorber(Absorber):
    """Learns the word that overflows as numbers that are none, as a rate without bounds would."""

    def absorb(self, work: Any) -> Iterator[Any]:
        wild = [any("overflow" in message.text for one in batch for message in one.messages) for _, batch in work]
        for done in super().absorb(work):
            if isinstance(done, list):
                for is_wild, memory in zip(wild, done, strict=True):
                    if is_wild:
                        memory.numbers[0, 1, 3] = float("nan")
            yield done


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "Absorber", WildAbsorber)


@pytest.mark.usefixtures("wild")
async def test_what_is_parked_is_told_to_who_waits_and_logged_once_without_content(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_host(home) as host:
        receipts = await host.record(
            [said(ADA, "a0", SOUND), said(ADA, "a1", "An overflow."), said(FRIEND, "f0", SOUND)]
        )
        (parked,) = await host.wait_absorbed(receipts)
        assert (parked.owner, parked.interaction_id, parked.reason) == (ADA, "a1", ParkReason.NOT_FINITE)
        await teach(host, said(ADA, "a2", SOUND), said(FRIEND, "f1", SOUND))
        assert await host.wait_absorbed(receipts) == [parked]
        assert await host.wait_absorbed([receipts[0], receipts[2]]) == []
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (told.message, vars(told)["owner"]) == ("interaction parked", "office/ada")
    assert (vars(told)["interaction_id"], vars(told)["reason"]) == ("a1", "not_finite")
    assert "overflow" not in str(vars(told))


class ForgetfulStore(SqliteSnapshotStore):
    """Cannot say what it parked."""

    def parked_at(self, partition: int, positions: Sequence[int]) -> list[Parked]:
        raise Unavailable("the store", "disk I/O error")


@pytest.mark.usefixtures("wild")
async def test_what_is_parked_is_logged_also_when_the_store_cannot_name_it(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_host(home, store_of=ForgetfulStore) as host:
        receipts = await host.record([said(ADA, "a0", "An overflow.")])
        with pytest.raises(Unavailable, match="disk I/O error"):
            await host.wait_absorbed(receipts)
        assert (await host.status()).num_parked == 1
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (told.message, vars(told)["interaction_id"]) == ("interaction parked", "a0")


@pytest.mark.usefixtures("wild")
async def test_what_gives_no_numbers_is_parked_alone_and_the_memory_stays(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", SOUND))
        before = await host.memory(ADA)
        await teach(
            host,
            said(ADA, "a1", "This is an overflow of everything."),
            said(ADA, "a2", "I live in Oslo now, near the old harbour."),
            said(FRIEND, "f0", SOUND),
        )
        (parked,) = (await host.export(ADA)).parked
        assert (parked.interaction_id, parked.reason) == ("a1", ParkReason.NOT_FINITE)
        after = await host.memory(ADA)
        assert (after.num_interactions, after.sequence) == (before.num_interactions + 1, before.sequence + 1)
        assert (await host.memory(FRIEND)).num_interactions == 1
        status = await host.status()
        assert (status.num_absorbed, status.num_parked) == (3, 1)
        await teach(host, said(ADA, "a3", "Only an overflow this time."))
        assert await host.memory(ADA) == after


async def test_a_rate_without_bounds_parks_what_it_cannot_learn_and_keeps_the_memory(home: Path) -> None:
    async with open_host(home, {"memory.fast.rate": 1e18, "memory.fast.max_norm": 1e18}) as host:
        for number in range(6):
            await teach(host, said(ADA, f"a{number}", SOUND))
        parked = (await host.export(ADA)).parked
        assert parked
        assert {item.reason for item in parked} == {ParkReason.NOT_FINITE}
        assert (await host.memory(ADA)).num_interactions == 6 - len(parked)
        assert (await answer(host, asking(CLEO, "Where?")))[1].num_answer_tokens > 0


async def test_an_answer_that_is_no_numbers_is_an_error_of_that_user_only(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", SOUND), said(FRIEND, "f0", SOUND))
        quiet, _ = await answer(host, asking(FRIEND, "Where?"))
        host._shard.memory_of(ADA).numbers.fill_(float("nan"))
        mine, others = (asyncio.ensure_future(answer(host, asking(who, "Where?"))) for who in (ADA, FRIEND))
        with pytest.raises(Corrupt, match="memory of office/ada is damaged: expected an answer"):
            await mine
        assert (await others)[0] == quiet
        assert (await answer(host, asking(ADA, "Where?", core_only=True)))[1].num_answer_tokens > 0


def flip_blob(home: Path, owner: UserKey) -> None:
    with sqlite3.connect(home / "siltstone.db") as connection:
        (content,) = connection.execute(
            "SELECT blob FROM snapshot_blob WHERE owner_row = ?", (row_of(owner),)
        ).fetchone()
        content = bytearray(content)
        content[len(content) // 2] ^= 16
        connection.execute("UPDATE snapshot_blob SET blob = ? WHERE owner_row = ?", (bytes(content), row_of(owner)))
    connection.close()


def flip_row(home: Path, owner: UserKey) -> None:
    with sqlite3.connect(home / "siltstone.db") as connection:
        connection.execute("UPDATE snapshot SET sequence = sequence + 1 WHERE owner_row = ?", (row_of(owner),))
    connection.close()


@pytest.mark.parametrize("damage", [flip_blob, flip_row])
@pytest.mark.parametrize("is_resident", [False, True])
async def test_a_flipped_bit_in_a_memory_is_that_users_trouble_only(
    home: Path, damage: Callable[[Path, UserKey], None], is_resident: bool
) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", SOUND), said(FRIEND, "f0", SOUND))
        if is_resident:
            damage(home, ADA)
            await teach(host, said(ADA, "a1", SOUND), said(FRIEND, "f1", SOUND))
            heals = damage is flip_blob
            # A damaged blob under a memory still held is written over; a damaged row is not believed any more.
            assert (await host.status()).num_parked == (0 if heals else 1)
            if heals:
                assert (await host.memory(ADA)).num_interactions == 2
                return
    if not is_resident:
        damage(home, ADA)
    async with open_host(home) as host:
        for ask in (host.memory(ADA), scores(host, ADA), answer(host, asking(ADA, "Hi"))):
            with pytest.raises(Corrupt, match="memory of office/ada"):
                await ask
        kept = await host.export(ADA)
        assert kept.damage is not None
        assert (kept.snapshot, kept.damage.what, kept.card.size_bytes) == (None, "memory of office/ada", 0)
        assert kept.journal[0].interaction_id == "a0"
        assert len(kept.parked) == (1 if is_resident else 0)
        assert (await host.export(FRIEND)).damage is None
        assert (await answer(host, asking(ADA, "Hi", core_only=True)))[1].snapshot_sequence == 0
        await teach(host, said(ADA, "a2", SOUND), said(FRIEND, "f2", SOUND))
        assert (await host.memory(FRIEND)).num_interactions == (3 if is_resident else 2)
        erasure = await host.forget(ADA)
        assert erasure.had_memory
        await teach(host, said(ADA, "a3", SOUND))
        assert (await host.memory(ADA)).num_interactions == 1


async def test_what_came_for_a_damaged_memory_is_parked_with_that_reason(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", SOUND))
    flip_blob(home, ADA)
    async with open_host(home) as host:
        await teach(host, said(ADA, "a1", SOUND), said(ADA, "a2", SOUND), said(FRIEND, "f0", SOUND))
        assert (await host.status()).num_parked == 2
    with SqliteFile(home / "siltstone.db", tiny_config(home).store) as file:
        parked = list(SqliteSnapshotStore(file).parked(ADA))
    assert [(item.interaction_id, item.reason) for item in parked] == [
        ("a1", ParkReason.CORRUPT_MEMORY),
        ("a2", ParkReason.CORRUPT_MEMORY),
    ]


async def test_a_damaged_journal_record_stops_its_partition_and_no_other(home: Path) -> None:
    with SqliteFile(home / "siltstone.db", tiny_config(home).store) as file:
        journal = SqliteJournal(file)
        receipts = journal.append([said(owner, f"{n}", SOUND) for n in range(3) for owner in (ADA, FRIEND, STRANGER)])
    damaged = next(receipt for receipt in receipts[6:] if receipt.partition == receipts[0].partition)
    with sqlite3.connect(home / "siltstone.db") as connection:
        place = (damaged.partition, damaged.position)
        connection.execute(
            "UPDATE journal_record SET payload = payload || 'x' WHERE partition = ? AND position = ?", place
        )
    connection.close()
    async with open_host(home) as host:
        await host.wait_absorbed([receipt for receipt in receipts if receipt.partition != damaged.partition])
        await host.wait_absorbed(receipts[:2])
        assert (await host.memory(STRANGER)).num_interactions == 3
        assert (await host.memory(ADA)).num_interactions == 2
        with pytest.raises(Corrupt, match="record"):
            await host.wait_absorbed(receipts)
        with pytest.raises(Corrupt, match="record"):
            await host.record([said(ADA, "late", SOUND)])
        with pytest.raises(Corrupt, match="record"):
            await answer(host, asking(ADA, "Hi", interaction_id="x", consent=Consent(learn=True)))
        assert (await answer(host, asking(ADA, "Hi")))[1].snapshot_sequence > 0
        await teach(host, said(STRANGER, "late", SOUND))


class Disk:
    """Whether there is room on it."""

    is_full = False


class FillingStore(SqliteSnapshotStore):
    """Cannot write while the disk is full."""

    def commit(self, commit: Commit) -> None:
        if Disk.is_full:
            raise Unavailable("the store", "database or disk is full")
        super().commit(commit)

    def load(self, owner: UserKey) -> Any:
        if Disk.is_full:
            raise Unavailable("the store", "disk I/O error")
        return super().load(owner)


class FillingJournal(SqliteJournal):
    """Cannot write while the disk is full."""

    def append(self, interactions: Any) -> list[Receipt]:
        if Disk.is_full:
            raise Unavailable("the store", "database or disk is full")
        return super().append(interactions)


@pytest.fixture
def full_disk() -> Iterator[type[Disk]]:
    yield Disk
    Disk.is_full = False


async def test_a_full_disk_is_told_waited_for_and_nothing_is_lost(home: Path, full_disk: type[Disk]) -> None:
    async with open_host(home, {"shard.max_round_interactions": 2}, FillingJournal, FillingStore) as host:
        await teach(host, said(ADA, "a0", SOUND))
        receipts = await host.record([said(ADA, f"a{n}", SOUND) for n in range(1, 6)])
        full_disk.is_full = True
        with pytest.raises(Unavailable, match="disk is full"):
            await host.wait_absorbed(receipts)
        with pytest.raises(Unavailable, match="disk is full"):
            await host.record([said(ADA, "a6", SOUND)])
        # Who is in memory is answered all the same; who is not cannot be.
        assert (await answer(host, asking(ADA, "Where?")))[1].snapshot_sequence >= 1
        with pytest.raises(Unavailable, match="disk I/O error"):
            await host.memory(BEN)
        full_disk.is_full = False
        await teach(host, said(ADA, "a6", SOUND))
        assert (await host.memory(ADA)).num_interactions == 7
        assert (await host.status()).num_parked == 0


async def test_a_round_that_waited_for_the_disk_gives_what_it_would_have_given(
    home: Path, full_disk: type[Disk]
) -> None:
    quiet = home / "quiet"
    quiet.mkdir()
    add_tiny_core(quiet)
    blobs = []
    for here, is_full in ((home, True), (quiet, False)):
        async with open_host(here, {"shard.max_round_interactions": 1}, FillingJournal, FillingStore) as host:
            receipts = await host.record([said(owner, f"a{n}", SOUND) for n in range(3) for owner in (ADA, FRIEND)])
            full_disk.is_full = is_full
            if is_full:
                with pytest.raises(Unavailable):
                    await host.wait_absorbed(receipts)
                full_disk.is_full = False
            await host.wait_absorbed(receipts)
            blobs.append([await blob(host, owner) for owner in (ADA, FRIEND)])
    assert blobs[0] == blobs[1]


class HalfStore(SqliteSnapshotStore):
    """Refuses the first commit of one partition, after that of another has been made."""

    num_refused = 0

    def commit(self, commit: Commit) -> None:
        if commit.lease.partition == partition_of(STRANGER, NUM_PARTITIONS) and not HalfStore.num_refused:
            HalfStore.num_refused += 1
            raise Unavailable("the store", "database or disk is full")
        super().commit(commit)


async def test_a_round_committed_by_half_is_finished_and_no_part_of_it_twice(home: Path) -> None:
    HalfStore.num_refused = 0
    async with open_host(home, None, store_of=HalfStore) as host:
        receipts = await host.record([said(owner, f"a{n}", SOUND) for n in range(2) for owner in (ADA, STRANGER)])
        with pytest.raises(Unavailable):
            await host.wait_absorbed(receipts)
        await host.wait_absorbed(receipts)
        for owner in (ADA, STRANGER):
            card = await host.memory(owner)
            assert (card.num_interactions, card.sequence) == (2, 1)
        assert (HalfStore.num_refused, (await host.status()).num_absorbed) == (1, 4)


async def test_what_a_full_disk_held_up_is_absorbed_after_a_restart(home: Path, full_disk: type[Disk]) -> None:
    async with open_host(home, None, FillingJournal, FillingStore) as host:
        receipts = await host.record([said(ADA, f"a{n}", SOUND) for n in range(4)])
        full_disk.is_full = True
        with pytest.raises(Unavailable):
            await host.wait_absorbed(receipts)
    full_disk.is_full = False
    async with open_host(home) as host:
        await host.wait_absorbed(receipts)
        assert (await host.memory(ADA)).num_interactions == 4


class BrokenJournal(SqliteJournal):
    """Fails in a way nobody foresaw."""

    is_broken = False

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        if self.is_broken:
            raise RuntimeError("a user's words: my dog is called Ferro")
        return super().read(partition, start, max_records)


async def test_a_worker_that_ended_is_told_to_everybody_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_host(home, None, BrokenJournal) as host:
        items = host.generate(asking(ADA, "Tell me.", 450))
        await anext(items)
        monkeypatch.setattr(BrokenJournal, "is_broken", True)
        receipts = await host.record([said(ADA, "a0", SOUND)])
        questions = [asyncio.ensure_future(host.memory(BEN)) for _ in range(50)]
        with pytest.raises(Unavailable, match="the shard is unavailable: RuntimeError"):
            await host.wait_absorbed(receipts)
        with pytest.raises(Unavailable):
            async for _ in items:
                pass
        for done in await asyncio.gather(*questions, return_exceptions=True):
            assert isinstance(done, Unavailable) or done.owner == BEN
        for _ in range(2):
            with pytest.raises(Unavailable, match="RuntimeError"):
                await host.record([said(ADA, "a1", SOUND)])
    assert "worker ended" in caplog.text
    assert "Ferro" not in caplog.text
    monkeypatch.setattr(BrokenJournal, "is_broken", False)
    async with open_host(home) as host:
        await host.wait_absorbed(receipts)
        assert (await host.memory(ADA)).num_interactions == 1


async def test_without_consent_nothing_that_reaches_the_journal_is_learned(home: Path) -> None:
    async with open_host(home) as host:
        secret = replace(said(ADA, "a0", SOUND), consent=Consent(learn=False))
        await teach(host, secret)
        (parked,) = (await host.export(ADA)).parked
        assert parked.reason is ParkReason.NO_CONSENT
        assert (await host.memory(ADA)).num_interactions == 0
        assert [user == core for user, core in await scores(host, ADA)] == [True] * 3


def test_the_poison_is_poison_by_its_own_fault() -> None:
    sound: Interaction = said(ADA, "poison", SOUND)
    assert changed() != b""
    assert json.loads(changed()) == json.loads(encode(sound))
    assert sound.messages == (Message(Role.USER, SOUND),)
