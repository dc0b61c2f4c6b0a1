"""An export is one file that proves itself."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from siltstone.errors import Corrupt, InvalidInput
from siltstone.journal.admit import encode
from siltstone.values import (
    Interaction,
    InteractionKind,
    JournalRecord,
    MemoryCard,
    Message,
    Parked,
    ParkReason,
    Role,
    Snapshot,
    SnapshotDamage,
    UserExport,
    UserKey,
)
from siltstone_services.export_archive import read_archive, write_archive

ADA = UserKey("office", "ada")
NOTE = Interaction("a", ADA, InteractionKind.DOCUMENT, 1, (Message(Role.USER, "Zwölf Boxkämpfer"),))
EXPORT = UserExport(
    MemoryCard(ADA, "core", 3, 12, 1, 6, (), 0),
    Snapshot.seal(ADA, "core", 3, b"\0\1\2\3\4\5"),
    (JournalRecord(2, 0, ADA, "a", encode(NOTE)), JournalRecord(2, 1, ADA, "b", b"")),
    (Parked(2, 2, ADA, "c", ParkReason.UNDECODABLE, "expected this, found that", b"\xff\xfe"),),
)


def test_an_archive_holds_everything(tmp_path: Path) -> None:
    write_archive(tmp_path / "ada.zip", EXPORT)
    files = read_archive(tmp_path / "ada.zip")
    records = [json.loads(line) for line in files["journal.jsonl"].decode().splitlines()]
    assert records[0]["interaction"]["messages"][0]["text"] == "Zwölf Boxkämpfer"
    assert records[1]["payload_base64"] == ""
    (parked,) = [json.loads(line) for line in files["parked.jsonl"].decode().splitlines()]
    assert (parked["payload_base64"], parked["reason"], parked["position"]) == ("//4=", "undecodable", 2)
    assert files["snapshot.bin"] == b"\0\1\2\3\4\5"
    assert json.loads(files["card.json"])["sequence"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "ada.zip"]


def test_an_archive_says_what_is_wrong_with_a_damaged_snapshot(tmp_path: Path) -> None:
    damage = SnapshotDamage("memory of office/ada", "sha256 a", "sha256 b")
    for name, export in (("whole", EXPORT), ("damaged", replace(EXPORT, snapshot=None, damage=damage))):
        write_archive(tmp_path / name, export)
    told = [json.loads(read_archive(tmp_path / name)["manifest.json"]) for name in ("whole", "damaged")]
    assert told[0]["snapshot_damage"] is None
    assert told[1]["snapshot_damage"] == {"what": damage.what, "expected": "sha256 a", "found": "sha256 b"}
    assert len(read_archive(tmp_path / "damaged")["journal.jsonl"].splitlines()) == 2


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"output: expected a file that can be written, found .*ada\.zip: No such"):
        write_archive(tmp_path / "none" / "ada.zip", EXPORT)


def test_equal_exports_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_archive(tmp_path / name, EXPORT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_that_is_there_stays_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "ada.zip").write_text("mine")
    with pytest.raises(InvalidInput):
        write_archive(tmp_path / "ada.zip", EXPORT)
    assert (tmp_path / "ada.zip").read_text() == "mine"
    write_archive(tmp_path / "ada.zip", EXPORT, overwrite=True)
    assert read_archive(tmp_path / "ada.zip")


def test_a_changed_archive_is_found(tmp_path: Path) -> None:
    write_archive(tmp_path / "ada.zip", EXPORT)
    files = read_archive(tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        for name, data in {**files, "snapshot.bin": b"\0\1\2\3\4\6"}.items():
            archive.writestr(name, data)
    with pytest.raises(Corrupt, match=r"snapshot\.bin"):
        read_archive(tmp_path / "changed.zip")
    (tmp_path / "none.zip").write_bytes(b"no zip")
    with pytest.raises(Corrupt):
        read_archive(tmp_path / "none.zip")
