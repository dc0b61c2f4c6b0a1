"""A version's folder is what was signed for this version, byte for byte, or it is refused."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
from dataclasses import replace

import pytest
from tiny_versions import accept, record, sqlite_registry, verdict

from siltstone.adapters.key_file import lineage_key
from siltstone.adapters.signing import SIGNATURE, FolderSigner
from siltstone.adapters.version_folders import VersionFolders
from siltstone.errors import ConfigInvalid, Corrupt, SiltstoneError

NUM_FLIPS = 100


@pytest.fixture
def registry(tmp_path):
    with sqlite_registry(tmp_path) as registry:
        accept(registry, tmp_path, 1)
        accept(registry, tmp_path, 2)
        registry.promote(1, 0)
        yield registry


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_refused(registry, number):
    with pytest.raises(Corrupt):
        registry.artefact(number)
    before = registry.champion()
    with pytest.raises(Corrupt):
        registry.promote(number, before.epoch)
    assert registry.champion() == before


def test_a_refusal_names_the_file_and_no_digests(registry):
    folder = registry.artefact(2)
    path = next(path for path in files_of(folder) if path.suffix == ".md")
    path.write_bytes(path.read_bytes() + b".")

    with pytest.raises(Corrupt) as refused:
        registry.artefact(2)

    assert f"other content in {path.relative_to(folder)}" in str(refused.value)
    assert "digest" not in str(refused.value).casefold()


def test_a_flipped_bit_anywhere_is_refused(registry):
    folder, rng = registry.artefact(2), random.Random(17)
    files = files_of(folder)
    for number in range(NUM_FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        at = rng.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(Corrupt):
            registry.artefact(2)
        path.write_bytes(content)
    assert registry.artefact(2) == folder


@pytest.mark.parametrize("name", ["core.safetensors", "manifest.json", "version.json", "evidence.json", "verdict.json"])
def test_a_file_swapped_with_another_versions_is_refused(registry, name):
    (own,), (other,) = (list(registry.artefact(number).rglob(name)) for number in (2, 1))
    other_content = other.read_bytes()
    own.unlink()
    own.write_bytes(other_content if name != "evidence.json" else b"{}")
    assert_refused(registry, 2)


def test_a_missing_file_is_refused(registry):
    folder = registry.artefact(2)
    for path in files_of(folder):
        content = path.read_bytes()
        path.unlink()
        assert_refused(registry, 2)
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["extra.json", ".gitignore", ".git/config", "cores/more.txt"])
def test_an_added_file_is_refused(registry, name):
    added = registry.artefact(2) / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("more")
    assert_refused(registry, 2)


def test_an_empty_folder_a_link_and_a_pipe_are_refused(registry):
    folder = registry.artefact(2)
    (folder / "empty").mkdir()
    assert_refused(registry, 2)
    (folder / "empty").rmdir()
    os.mkfifo(folder / "pipe")
    assert_refused(registry, 2)
    (folder / "pipe").unlink()
    (folder / "card.md").rename(folder.parent / "card.md")
    (folder / "card.md").symlink_to(folder.parent / "card.md")
    assert_refused(registry, 2)


def test_an_unsigned_folder_is_refused(registry):
    (registry.artefact(2) / SIGNATURE).unlink()
    assert_refused(registry, 2)


def test_a_folder_signed_with_another_key_is_refused(registry, tmp_path):
    FolderSigner(tmp_path / "elsewhere").sign(registry.artefact(2))
    assert_refused(registry, 2)


def test_a_missing_folder_is_refused(registry):
    shutil.rmtree(registry.artefact(2))
    assert_refused(registry, 2)


def test_an_older_version_replayed_in_place_of_a_newer_is_refused(registry):
    old, new = registry.artefact(1), registry.artefact(2)
    shutil.rmtree(new)
    shutil.copytree(old, new)
    assert_refused(registry, 2)


def test_the_signature_alone_does_not_refuse_a_replay_but_the_seal_and_the_signed_number_do(registry, tmp_path):
    """The control: an older folder is just as validly signed. Its number is signed with it."""
    old, new = registry.show(1), registry.show(2)
    folder, signer = registry.artefact(1), FolderSigner(tmp_path)
    signer.verify(folder, old.seal)
    with pytest.raises(Corrupt, match="sha256"):
        signer.verify(folder, new.seal)
    folders = VersionFolders(tmp_path, signer)
    as_new = replace(new, seal=old.seal)
    shutil.copytree(folder, folders.path(as_new))
    with pytest.raises(Corrupt, match="version 1"):
        folders.verify(as_new)


def test_the_candidate_replayed_in_place_of_the_judged_version_is_refused(tmp_path):
    with sqlite_registry(tmp_path) as registry:
        version = record(registry, tmp_path, 1)
        shutil.copytree(registry.folder(1), tmp_path / "kept")
        registry.set_verdict(1, verdict(version))
        shutil.rmtree(registry.artefact(1))
        shutil.copytree(tmp_path / "kept", tmp_path / "versions" / f"000001-{registry.show(1).seal[:16]}")
        with pytest.raises(Corrupt):
            registry.artefact(1)


def test_a_candidate_tampered_with_before_its_verdict_is_not_judged(tmp_path):
    with sqlite_registry(tmp_path) as registry:
        version = record(registry, tmp_path, 1)
        (registry.folder(1) / "evidence.json").write_bytes(b"{}")
        with pytest.raises(Corrupt):
            registry.set_verdict(1, verdict(version))
        assert registry.show(1) == version


def test_keys_are_made_once_and_are_their_owners_only(tmp_path):
    first = FolderSigner(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("text")
    seal = first.sign(tmp_path / "folder")
    FolderSigner(tmp_path).verify(tmp_path / "folder", seal)
    assert lineage_key(tmp_path) == lineage_key(tmp_path)
    for name in ("signing.pem", "lineage.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [
        "lineage.key",
        "signing.pem",
        "signing.pub.pem",
    ]


def test_a_key_that_others_may_read_is_not_used(tmp_path):
    lineage_key(tmp_path)
    (tmp_path / "keys" / "lineage.key").chmod(0o644)
    with pytest.raises(ConfigInvalid, match="644"):
        lineage_key(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE version SET state = 'accepted' WHERE number = 1",
        "UPDATE version SET seal = (SELECT seal FROM version WHERE number = 1) WHERE number = 2",
        "DELETE FROM version WHERE number = 2",
        "UPDATE head SET number = 2, core = (SELECT core FROM version WHERE number = 2)",
        "UPDATE head SET epoch = 0",
        "DELETE FROM head",
    ],
)
def test_a_changed_row_of_the_registry_is_refused(registry, tmp_path, change):
    connection = sqlite3.connect(tmp_path / "versions" / "registry.db", isolation_level=None)
    connection.execute(change)
    connection.close()
    with pytest.raises(Corrupt):
        (registry.champion(), registry.list())
    with pytest.raises(Corrupt):
        registry.promote(2, 1)


def test_history_is_only_added_to(registry, tmp_path):
    connection = sqlite3.connect(tmp_path / "versions" / "registry.db", isolation_level=None)
    for change in ("DELETE FROM move WHERE sequence = 5", "UPDATE move SET epoch = 9"):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            connection.execute(change)
    connection.execute("DROP TRIGGER move_is_kept")
    connection.execute("DELETE FROM move WHERE sequence = (SELECT max(sequence) FROM move)")
    connection.close()
    with pytest.raises(Corrupt, match="history"):
        registry.history()


def test_what_a_killed_writer_left_is_swept_and_what_is_a_versions_stays(tmp_path):
    with sqlite_registry(tmp_path) as registry:
        accept(registry, tmp_path, 1)
        root = tmp_path / "versions"
        kept = {path.name for path in root.iterdir()}
        (root / ".incoming-left").mkdir()
        shutil.copytree(registry.artefact(1), root / ("000002-" + "0" * 16))
    with sqlite_registry(tmp_path) as registry:
        left = {path.name for path in root.iterdir() if not path.name.startswith("registry.db-")}
        assert left == {name for name in kept if not name.startswith("registry.db-")}
        assert registry.artefact(1).is_dir()


def test_another_programs_file_is_not_taken_over(tmp_path):
    (tmp_path / "versions").mkdir()
    with sqlite3.connect(tmp_path / "versions" / "registry.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(ConfigInvalid, match="registry"), sqlite_registry(tmp_path):
        pass


def test_a_closed_registry_says_so(tmp_path):
    with sqlite_registry(tmp_path) as registry:
        pass
    with pytest.raises(SiltstoneError, match="closed"):
        registry.list()
