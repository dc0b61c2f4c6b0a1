"""The folders of the versions: each whole, signed, and never changed once it can be seen.

<home>/versions/000007-<seal>/cores/<digest>/...  the core, as a core store keeps it
<home>/versions/000007-<seal>/version.json        number, digest and state when signed
<home>/versions/000007-<seal>/lineage.json        where it comes from, with configuration, seeds and code revision
<home>/versions/000007-<seal>/evidence.json       what was measured
<home>/versions/000007-<seal>/verdict.json        what the gate said; not there for a candidate
<home>/versions/000007-<seal>/card.md             the card for a person
<home>/versions/000007-<seal>/version.sig         the signature over all of it; the seal is its sha256
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Final

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.signing import FolderSigner
from siltstone.adapters.version_json import canonical, write_lineage, write_verdict
from siltstone.errors import Corrupt, NotFound, Unavailable
from siltstone.sleep_values import CoreVersion
from siltstone.versions.card import write_card

_FOLDER: Final = re.compile(r"[0-9]{6,}-[0-9a-f]{16}")


class VersionFolders:
    """The folders under one home. Writers hold the lock of `writing`; readers need none."""

    def __init__(self, home: Path, signer: FolderSigner) -> None:
        self.root = home / "versions"
        self._signer = signer

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the write lock of the folders; waits for it.

        Raises: Unavailable when the folder cannot be made.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Unavailable("the versions", error.strerror or str(error)) from error
        try:
            flock(descriptor, LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def write(self, version: CoreVersion, core: Path, evidence: bytes) -> CoreVersion:
        """Writes and signs the folder of a version and returns the version with its seal. Until whole, it is not seen.

        Raises: NotFound when there is no core folder; Corrupt when it is not what its digest says; Unavailable.
        """
        try:
            with self._incoming() as incoming:
                _link_core(core, incoming / "cores" / version.digest)
                CoreStore(incoming).verify(version.digest)
                (incoming / "version.json").write_bytes(_place(version))
                (incoming / "lineage.json").write_bytes(write_lineage(version.lineage))
                (incoming / "evidence.json").write_bytes(evidence)
                if version.verdict is not None:
                    (incoming / "verdict.json").write_bytes(write_verdict(version.verdict))
                (incoming / "card.md").write_bytes(write_card(version).encode())
                sealed = replace(version, seal=self._signer.sign(incoming))
                self._show(incoming, sealed)
                return sealed
        except OSError as error:
            raise Unavailable("the versions", error.strerror or str(error)) from error

    def path(self, version: CoreVersion) -> Path:
        """Returns where the folder of a version lies."""
        return self.root / f"{version.number:06d}-{version.seal[:16]}"

    def core(self, version: CoreVersion) -> Path:
        """Returns where the core of a version lies."""
        return self.path(version) / "cores" / version.digest

    def verify(self, version: CoreVersion) -> Path:
        """Reads every byte of a version's folder and returns it.

        Raises: Corrupt; Unavailable when it cannot be read.
        """
        folder = self.path(version)
        try:
            self._verify(folder, version)
        except OSError as error:
            raise Unavailable(f"version {version.number}", error.strerror or str(error)) from error
        return folder

    def adopt(self, version: CoreVersion, folder: Path) -> None:
        """Puts a copy of a version's folder, verified here, in the place of a damaged or missing one.

        Raises: Corrupt when the copy is not what was signed either; Unavailable.
        """
        self._verify(folder, version)
        try:
            with self._incoming() as incoming:
                shutil.copytree(folder, incoming, dirs_exist_ok=True)
                self._show(incoming, version)
        except OSError as error:
            raise Unavailable("the versions", error.strerror or str(error)) from error

    def sweep(self, kept: Collection[CoreVersion]) -> None:
        """Removes the folders that are no version's: what a killed writer left, or a verdict has replaced."""
        wanted = {self.path(version).name for version in kept}
        for entry in self.root.iterdir():
            if entry.name.startswith(".incoming-") or (_FOLDER.fullmatch(entry.name) and entry.name not in wanted):
                shutil.rmtree(entry, ignore_errors=True)

    def _verify(self, folder: Path, version: CoreVersion) -> None:
        if not folder.is_dir():
            raise Corrupt(f"version {version.number}", "its folder", "none")
        self._signer.verify(folder, version.seal)
        # The seal already ties the folder to the version; this says the same to who has only the folder and the key.
        place = json.loads((folder / "version.json").read_bytes())
        if (place["number"], place["digest"]) != (version.number, version.digest):
            raise Corrupt(f"version {version.number}", version.digest, f"version {place['number']}, {place['digest']}")
        manifest = folder / "cores" / version.digest / "manifest.json"
        if not manifest.is_file() or hashlib.sha256(manifest.read_bytes()).hexdigest() != version.digest:
            raise Corrupt(f"version {version.number}", f"the core {version.digest}", "another")

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.root))
        try:
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _show(self, incoming: Path, version: CoreVersion) -> None:
        """Makes a whole folder durable, then visible in one rename."""
        for parent, _, files in os.walk(incoming):
            for name in (*files, ""):
                _flush(Path(parent) / name)
        shutil.rmtree(self.path(version), ignore_errors=True)
        incoming.rename(self.path(version))
        _flush(self.root)


def _place(version: CoreVersion) -> bytes:
    place = {"schema": 1, "number": version.number, "digest": version.digest, "state": version.state.value}
    return canonical({**place, "parent": version.lineage.parent, "created_ms": version.created_ms})


def _link_core(core: Path, target: Path) -> None:
    """Puts a core's files into another folder. Links cost no disk; stored cores are never written in place."""
    if not core.is_dir():
        raise NotFound("core", core.name)
    target.mkdir(parents=True)
    for source in core.iterdir():
        try:
            os.link(source, target / source.name, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target / source.name, follow_symlinks=False)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
