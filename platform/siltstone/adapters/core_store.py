"""A content-addressed store of cores: a folder for each, named by the digest of its manifest. Never pickle.

    <home>/cores/<digest>/manifest.json     what the core is, with the sha256 of every other file
    <home>/cores/<digest>/core.safetensors  its tensors
    <home>/cores/<digest>/tokenizer.json    its tokenizer
    <home>/cores/<digest>/...               extras
    <home>/cores/names.json                 short names, and which core is the default

safetensors alone notices almost no flipped bit, so nothing is read here without its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from siltstone.adapters.core_names import CoreNames, check_name
from siltstone.adapters.imported_core import ImportedCore, check_config, check_tensors, tensor_shapes
from siltstone.adapters.tokenizer import ChatFormat, CoreTokenizer, chat_from_json, chat_to_json, shared_tokenizer
from siltstone.errors import Corrupt, InvalidInput, NotFound, Unavailable
from siltstone.model.config import CoreConfig

_SCHEMA: Final = 1
_MANIFEST: Final = "manifest.json"
_WEIGHTS: Final = "core.safetensors"
_TOKENIZER: Final = "tokenizer.json"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SHORT_DIGEST: Final = re.compile(r"[0-9a-f]{8,63}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.[a-z0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class LoadedCore:
    """A core as it was stored, every byte verified. `tensors` are mapped from the file, so do not write to them."""

    digest: str
    name: str
    config: CoreConfig
    tensors: dict[str, torch.Tensor]
    tokenizer: CoreTokenizer
    chat: ChatFormat
    extras: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreListing:
    """One stored core. `damage` says what is wrong with its manifest; then only the digest is known."""

    digest: str
    names: tuple[str, ...]
    source: str
    num_parameters: int
    size_bytes: int
    is_default: bool
    damage: str = ""


@dataclass(frozen=True, slots=True)
class _Manifest:
    name: str
    source: str
    config: CoreConfig
    chat: ChatFormat
    files: dict[str, tuple[str, int]]
    """File name to sha256 and size in bytes."""


class CoreStore:
    """The cores under one home folder. Several processes may use it at once."""

    def __init__(self, home: Path) -> None:
        self._cores = home / "cores"
        self._names = CoreNames(self._cores / "names.json")

    def add(self, imported: ImportedCore, name: str) -> str:
        """Stores a core durably under a short name and returns its digest.

        The same core twice is stored once, and repaired if it was damaged. A name that was another core's moves to this
        one; the other stays, under its digest. The first core of a store becomes its default. Until the core is whole,
        nothing of it can be seen.

        Raises: InvalidInput when a part of the core is not what it must be; Unavailable when it cannot be written.
        """
        check_name(name)
        _check_imported(imported)
        try:
            with self._locked():
                # 1. Write everything into a folder no reader looks at, and flush it.
                incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._cores))
                digest = _write_core(incoming, imported, name)
                # 2. Make it visible in one rename, unless an intact copy is there already.
                if not self._is_intact(digest):
                    self._take_away(digest)
                    incoming.rename(self._cores / digest)
                    _flush(self._cores)
                # 3. Name it.
                self._names.point(name, digest)
                return digest
        except (OSError, SafetensorError) as error:
            raise Unavailable("the core store", str(error)) from error

    def list(self) -> list[CoreListing]:
        """Returns the stored cores by their first name; one whose manifest is damaged is listed with its damage."""
        names = self._names.read()
        listings = [self._describe(digest, names.of(digest), names.default == digest) for digest in self._digests()]
        return sorted(listings, key=lambda listing: (listing.names or ("~",), listing.digest))

    def default(self) -> str | None:
        """Returns the digest of the default core, or None in a store without one."""
        return self._names.read().default

    def set_default(self, name_or_digest: str) -> None:
        """Makes a stored core the default.

        Raises: NotFound.
        """
        with self._locked():
            self._names.set_default(self.resolve(name_or_digest))

    def resolve(self, name_or_digest: str) -> str:
        """Returns the digest of a core by name, by digest, by the start of one (8 digits or more), or by "default".

        Raises: NotFound; InvalidInput when the start fits more than one.
        """
        names, digests = self._names.read(), self._digests()
        wanted = names.default if name_or_digest == "default" else names.digests.get(name_or_digest, name_or_digest)
        if wanted is not None and wanted in digests:
            return wanted
        if _SHORT_DIGEST.fullmatch(name_or_digest):
            fitting = [digest for digest in digests if digest.startswith(name_or_digest)]
            if len(fitting) > 1:
                raise InvalidInput("core", "the start of one digest", f"{len(fitting)} that start with it")
            if fitting:
                return fitting[0]
        raise NotFound("core", name_or_digest)

    def load(self, name_or_digest: str) -> LoadedCore:
        """Returns a core, everything about it verified.

        Raises: NotFound; Corrupt when a file is not what was written; InvalidInput for a newer schema.
        """
        digest = self.resolve(name_or_digest)
        folder, manifest = self._cores / digest, self._read_manifest(digest)
        _verify_files(folder, manifest)
        try:
            tensors = load_file(folder / _WEIGHTS)
            check_tensors(manifest.config, tensors)
            tokenizer = shared_tokenizer((folder / _TOKENIZER).read_text(encoding="utf-8"), manifest.chat)
            extras = {f: (folder / f).read_bytes() for f in manifest.files if f not in (_WEIGHTS, _TOKENIZER)}
        except InvalidInput as error:
            raise Corrupt(f"core {digest[:12]}, {error.field}", error.expected, error.found) from error
        except (SafetensorError, UnicodeDecodeError) as error:
            raise Corrupt(f"core {digest[:12]}", "readable files", str(error)) from error
        return LoadedCore(digest, manifest.name, manifest.config, tensors, tokenizer, manifest.chat, extras)

    def verify(self, name_or_digest: str) -> None:
        """Reads every byte of a core and compares it with its digest.

        Raises: NotFound; Corrupt with what was expected and found; InvalidInput for a newer schema.
        """
        digest = self.resolve(name_or_digest)
        _verify_files(self._cores / digest, self._read_manifest(digest))

    def tensors_file(self, name_or_digest: str) -> Path:
        """Returns the safetensors file of a core, to be linked or copied.

        Raises: NotFound.
        """
        return self._cores / self.resolve(name_or_digest) / _WEIGHTS

    def remove(self, name_or_digest: str) -> None:
        """Removes a core and all its names. A default that goes leaves the store without one.

        Raises: NotFound; Unavailable when it cannot be removed.
        """
        try:
            with self._locked():
                digest = self.resolve(name_or_digest)
                self._names.forget(digest)
                self._take_away(digest)
        except OSError as error:
            raise Unavailable("the core store", str(error)) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the store's write lock, and sweeps at both ends what a writer left behind, also a killed one."""
        self._cores.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cores.mkdir(mode=0o700, exist_ok=True)
        with open(self._cores / ".lock", "w") as lock:
            flock(lock, LOCK_EX)
            self._sweep()
            try:
                yield
            finally:
                self._sweep()

    def _sweep(self) -> None:
        for left in (*self._cores.glob(".incoming-*"), *self._cores.glob(".leaving-*")):
            shutil.rmtree(left, ignore_errors=True)

    def _take_away(self, digest: str) -> None:
        """Makes a core's folder invisible in one rename; the sweep at the end deletes it."""
        if (self._cores / digest).exists():
            leaving = Path(tempfile.mkdtemp(prefix=".leaving-", dir=self._cores))
            (self._cores / digest).rename(leaving / digest)
            _flush(self._cores)

    def _is_intact(self, digest: str) -> bool:
        try:
            self.verify(digest)
        except (NotFound, Corrupt):
            return False
        return True

    def _digests(self) -> tuple[str, ...]:
        if not self._cores.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self._cores.iterdir() if _DIGEST.fullmatch(entry.name)))

    def _describe(self, digest: str, names: tuple[str, ...], is_default: bool) -> CoreListing:
        try:
            manifest = self._read_manifest(digest)
        except (Corrupt, InvalidInput) as error:
            return CoreListing(digest, names, "", 0, 0, is_default, str(error))
        num_parameters = sum(_count(shape) for shape in tensor_shapes(manifest.config).values())
        size_bytes = sum(size for _, size in manifest.files.values())
        return CoreListing(digest, names, manifest.source, num_parameters, size_bytes, is_default)

    def _read_manifest(self, digest: str) -> _Manifest:
        what = f"manifest of core {digest[:12]}"
        try:
            raw = _open_regular(self._cores / digest / _MANIFEST)
        except OSError as error:
            raise Corrupt(what, "a readable file", str(error.strerror)) from error
        if (found := hashlib.sha256(raw).hexdigest()) != digest:
            raise Corrupt(what, f"sha256 {digest}", found)
        try:
            content: Any = json.loads(raw)
            if content["schema"] != _SCHEMA:
                raise InvalidInput(f"schema of core {digest[:12]}", str(_SCHEMA), str(content["schema"]))
            return _parse_manifest(content, what)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(what, "a manifest of schema 1", f"{type(error).__name__}: {error}") from error


def _check_imported(imported: ImportedCore) -> None:
    check_config(imported.config)
    check_tensors(imported.config, imported.tensors)
    tokenizer = shared_tokenizer(imported.tokenizer_json, imported.chat)
    if tokenizer.vocab_size > imported.config.vocab_size:
        raise InvalidInput("tokenizer", f"at most {imported.config.vocab_size} tokens", str(tokenizer.vocab_size))
    for name in imported.extras:
        if not _FILE_NAME.fullmatch(name) or name in (_MANIFEST, _WEIGHTS, _TOKENIZER):
            raise InvalidInput("extra file of a core", "a plain file name, not one of the core's own", repr(name[:80]))


def _write_core(folder: Path, imported: ImportedCore, name: str) -> str:
    save_file({key: tensor.detach().contiguous() for key, tensor in imported.tensors.items()}, folder / _WEIGHTS)
    (folder / _TOKENIZER).write_text(imported.tokenizer_json, encoding="utf-8")
    for extra, content in imported.extras.items():
        (folder / extra).write_bytes(content)
    files = sorted((_WEIGHTS, _TOKENIZER, *imported.extras))
    manifest = _canonical(
        {
            "schema": _SCHEMA,
            "name": name,
            "source": imported.source,
            "config": asdict(imported.config),
            "chat": chat_to_json(imported.chat),
            "files": {f: {"sha256": _hash_file(folder / f), "size": (folder / f).stat().st_size} for f in files},
            "tensors": _tensor_table(imported.config),
        }
    )
    (folder / _MANIFEST).write_bytes(manifest)
    for written in (*files, _MANIFEST):
        _flush(folder / written)
    folder.chmod(0o755)
    _flush(folder)
    return hashlib.sha256(manifest).hexdigest()


def _parse_manifest(content: Mapping[str, Any], what: str) -> _Manifest:
    config = CoreConfig(**content["config"])
    check_config(config)
    if content["tensors"] != _tensor_table(config):
        raise Corrupt(what, "the tensors its config says", "others")
    files = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in content["files"].items()}
    for name in files:
        if not _FILE_NAME.fullmatch(name) or name == _MANIFEST:
            raise Corrupt(what, "plain file names", repr(name))
    if missing := {_WEIGHTS, _TOKENIZER} - files.keys():
        raise Corrupt(what, f"an entry for {min(missing)}", "none")
    name, source = content["name"], content["source"]
    return _Manifest(str(name), str(source), config, chat_from_json(content["chat"]), files)


def _verify_files(folder: Path, manifest: _Manifest) -> None:
    what = f"core {folder.name[:12]}"
    expected, found = {_MANIFEST, *manifest.files}, {entry.name for entry in folder.iterdir()}
    if missing := sorted(expected - found):
        raise Corrupt(what, f"a file {missing[0]}", "none")
    if extra := sorted(found - expected):
        raise Corrupt(what, "no files but those of its manifest", repr(extra[0]))
    for name, (digest, size) in manifest.files.items():
        status = (folder / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"{what}, {name}", "a plain file", "a link, folder or device")
        if status.st_size != size:
            raise Corrupt(f"{what}, {name}", f"{size} bytes", f"{status.st_size} bytes")
        if (actual := _hash_file(folder / name)) != digest:
            raise Corrupt(f"{what}, {name}", f"sha256 {digest}", actual)


def _tensor_table(config: CoreConfig) -> dict[str, dict[str, Any]]:
    return {name: {"shape": list(shape), "dtype": "float32"} for name, shape in tensor_shapes(config).items()}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _open_regular(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        return file.read()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
