"""A user's export as one zip file that people and programs can read."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from siltstone.errors import Corrupt, InvalidInput
from siltstone.values import JournalRecord, Parked, UserExport

FORMAT: Final = "siltstone-export"
VERSION: Final = 1
_TIME: Final = (1980, 1, 1, 0, 0, 0)


def write_archive(path: Path, export: UserExport, *, overwrite: bool = False) -> None:
    """Writes an export, readable by this user only; equal exports give equal files.

    manifest.json has the sha256 of every other file: card.json (the memory without its content), journal.jsonl and
    parked.jsonl (one entry a line), and snapshot.bin where there is a snapshot. It also says what is wrong with the
    stored snapshot, where that is damaged.

    Raises: InvalidInput when there is a file already and `overwrite` was not asked for, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise InvalidInput("output", "a file that is not there yet", str(path))
    files = {
        "card.json": _json(asdict(export.card)),
        "journal.jsonl": b"".join(_line(_describe(record)) for record in export.journal),
        "parked.jsonl": b"".join(
            _line({**_describe(parked), "reason": parked.reason, "detail": parked.detail}) for parked in export.parked
        ),
    }
    snapshot = export.snapshot
    if snapshot is not None:
        files["snapshot.bin"] = snapshot.blob
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "owner": asdict(export.card.owner),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        },
        "snapshot": None if snapshot is None else {"core": snapshot.core, "sequence": snapshot.sequence},
        "snapshot_damage": None if export.damage is None else asdict(export.damage),
        "num_journal": len(export.journal),
        "num_parked": len(export.parked),
    }
    try:
        _write(path, {"manifest.json": _json(manifest), **files})
    except OSError as error:
        raise InvalidInput("output", "a file that can be written", f"{path}: {error.strerror or error}") from error


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(_entry(name), data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_archive(path: Path) -> dict[str, bytes]:
    """Returns the files of an archive, every one verified.

    Raises: Corrupt.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(files["manifest.json"])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise Corrupt(path.name, "a zip file with a manifest", str(error)) from error
    for name, told in manifest["files"].items():
        found = hashlib.sha256(files.get(name, b"")).hexdigest()
        if found != told["sha256"]:
            raise Corrupt(f"{path.name}, {name}", f"sha256 {told['sha256']}", found)
    return files


def _describe(kept: JournalRecord | Parked) -> dict[str, Any]:
    told: dict[str, Any] = {
        "partition": kept.partition,
        "position": kept.position,
        "interaction_id": kept.interaction_id,
    }
    try:
        return {**told, "interaction": json.loads(kept.payload)}
    except ValueError:
        # Erased, or parked because it could not be read.
        return {**told, "payload_base64": base64.b64encode(kept.payload).decode()}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o600 << 16
    return entry
