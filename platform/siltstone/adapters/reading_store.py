"""What cores have said to the gate's questions, on disk, so that a core that stays is asked once.

    <home>/readings/<core>/<question>.json   the numbers, sealed with their sha256

A file that is not what was written is as good as none: the core is asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from siltstone.errors import InvalidInput, Unavailable

_log = logging.getLogger(__name__)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class ReadingStore:
    """The readings under one home folder, by the digests of the core and of what it was asked."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "readings"

    def get(self, core: str, question: str) -> tuple[float, ...] | None:
        """Returns what a core said; None when it was not asked, or the file is damaged."""
        path = self._path(core, question)
        try:
            content = json.loads(path.read_bytes())
            sealed, numbers = content["sealed"], tuple(map(float, content["sealed"]["numbers"]))
            is_whole = (sealed["core"], sealed["question"], content["sha256"]) == (core, question, _seal(sealed))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            _log.warning("reading damaged", extra={"core": core[:12], "question": question[:12]})
            return None
        return numbers

    def put(self, core: str, question: str, numbers: Sequence[float]) -> None:
        """Keeps what a core said.

        Raises: Unavailable when it cannot be written.
        """
        path = self._path(core, question)
        sealed = {"core": core, "question": question, "numbers": list(numbers)}
        content = json.dumps({"sealed": sealed, "sha256": _seal(sealed)}).encode()
        partial = path.with_name(f"{question}.{os.getpid()}.part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise Unavailable("the readings", error.strerror or str(error)) from error

    def keep_only(self, cores: Collection[str]) -> None:
        """Removes what all other cores have said."""
        for entry in self._folder.iterdir() if self._folder.is_dir() else ():
            if entry.name not in cores:
                shutil.rmtree(entry, ignore_errors=True)

    def _path(self, core: str, question: str) -> Path:
        for field, digest in (("core", core), ("question", question)):
            if not _DIGEST.fullmatch(digest):
                raise InvalidInput(field, "a digest", repr(digest[:80]))
        return self._folder / core / f"{question}.json"


def _seal(sealed: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
