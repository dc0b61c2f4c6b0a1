"""Signatures over whole folders, with `model-signing` and an elliptic-curve key of this home."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from siltstone.adapters.key_file import load_or_make
from siltstone.errors import Corrupt, Unavailable

SIGNATURE: Final = "version.sig"
_MOST_NAMED: Final = 3


class FolderSigner:
    """Signs and verifies folders. The key is made at first use, in `<home>/keys`, with its public half beside it."""

    def __init__(self, home: Path) -> None:
        self._private = home / "keys" / "signing.pem"
        self._public = home / "keys" / "signing.pub.pem"

    def sign(self, folder: Path) -> str:
        """Writes the signature of everything in a folder into it and returns the signature's sha256, the seal.

        Raises: ConfigInvalid when others may read the key; Unavailable.
        """
        self._prepare_keys()
        config = signing.Config().use_elliptic_key_signer(private_key=self._private)
        try:
            config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
            return _sha256(folder / SIGNATURE)
        except OSError as error:
            raise Unavailable("the signature", error.strerror or str(error)) from error

    def verify(self, folder: Path, seal: str) -> None:
        """Reads every byte of a folder and compares it with the signature, which must be the one with this seal.

        The seal is what refuses a replay: an older folder is just as validly signed.

        Raises: Corrupt when the folder is unsigned, was signed at another time or with another key, or when a file was
        changed, added, removed, or is no plain file; Unavailable when it cannot be read.
        """
        what = f"folder {folder.name}"
        try:
            _refuse_what_cannot_be_signed(folder)
            if not (folder / SIGNATURE).is_file():
                raise Corrupt(what, "a signature", "none")
            if (found := _sha256(folder / SIGNATURE)) != seal:
                raise Corrupt(what, f"the signature with sha256 {seal}", found)
            self._prepare_keys()
            config = verifying.Config().use_elliptic_key_verifier(public_key=self._public)
            config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
        except Corrupt:
            raise
        except OSError as error:
            raise Unavailable(what, error.strerror or str(error)) from error
        except Exception as error:
            # The library lets whatever it stumbles over escape: any of it means that the signature does not hold.
            raise Corrupt(what, "what was signed", _told(error)) from error

    def _prepare_keys(self) -> None:
        private_pem = load_or_make(self._private, _make_key)
        if not self._public.exists():
            try:
                key = serialization.load_pem_private_key(private_pem, None)
            except ValueError as error:
                raise Corrupt("the signing key", "a private key in PEM", str(error)) from error
            public_pem = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            descriptor, beside = tempfile.mkstemp(prefix=".public-", dir=self._public.parent)
            with open(descriptor, "wb") as file:
                file.write(public_pem)
            os.replace(beside, self._public)


def _make_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _hashing() -> hashing.Config:
    # By default the library overlooks .git and the like, so that files could be added unseen.
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _refuse_what_cannot_be_signed(folder: Path) -> None:
    """Refuses links, devices and empty folders: the signature is over the content of plain files."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise Corrupt(f"folder {folder.name}", "a folder", "something else")
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = (Path(parent) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Corrupt(f"folder {folder.name}", "plain files", f"a link or device {name}")
        if not folders and not files:
            raise Corrupt(f"folder {folder.name}", "no empty folders", Path(parent).name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _told(error: Exception) -> str:
    """Says what the library found, without its digests."""
    if found := re.findall(r"Hash mismatch for '([^']+)'", str(error)):
        return f"other content in {', '.join(sorted(set(found))[:_MOST_NAMED])}"
    return f"{type(error).__name__}: {error}"
