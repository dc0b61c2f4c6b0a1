"""What every reader of other people's data shares: its options, what it leaves out, and how it names people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from siltstone.values import Consent

_BLAKE_PERSON = b"siltstone-replay"


class SkipReason(StrEnum):
    """Why a piece of a source gave no interaction."""

    SYSTEM_LINE = "system_line"
    EMPTY = "empty"
    MALFORMED = "malformed"
    NO_DATE = "no_date"
    TOO_LARGE = "too_large"
    INVALID_ID = "invalid_id"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A piece of a source that gave no interaction. `where` is a place (file and line, message, node), never text."""

    reason: SkipReason
    where: str


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read. Every reader uses the part that concerns it."""

    tenant: str = "replay"
    """The tenant of every user read."""
    user: str = ""
    """Whose data it is, for a source of one person (chatgpt-export, which needs it)."""
    salt: str = ""
    """Key of the hash that replaces names and addresses. Keep it secret: without it, names can be guessed and tried."""
    merge_gap_s: int = 120
    """Seconds between chat lines of one person, with nobody in between, that still make one message; 0 merges none."""
    consent: Consent = field(default_factory=Consent)
    """What the people are taken to have agreed to, where the source itself does not say."""
    default_at_ms: int = 0
    """UTC milliseconds since 1970 given to an entry without a readable date."""
    max_entry_bytes: int = 1 << 20
    """Bytes of one line, mail or conversation as it is stored; a larger one is skipped."""
    max_merged_bytes: int = 16_384
    """Bytes of text up to which chat lines are merged."""
    max_log_bytes: int = 64 << 20
    """Bytes of one day's chat log, which is held in memory whole."""
    max_archive_bytes: int = 4 << 30
    """Bytes an archive may unpack to, on disk, in an unnamed temporary file."""


def pseudonym(name: str, salt: str) -> str:
    """Returns the user id that stands for a real name: the same for the same name (upper or lower case) and salt."""
    key = hashlib.blake2b(salt.encode()).digest() if salt else b""
    folded = name.casefold().encode("utf-8", "surrogatepass")
    return "u_" + hashlib.blake2b(folded, digest_size=6, key=key, person=_BLAKE_PERSON).hexdigest()


def sendable(text: str) -> str:
    """Returns `text` without what no interaction may hold: NUL characters and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def stable_id(prefix: str, *parts: str | bytes | int) -> str:
    """Returns an interaction id that depends on `parts` alone, so that reading a source twice applies it once."""
    digest = hashlib.blake2b(digest_size=12, person=_BLAKE_PERSON)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return f"{prefix}-{digest.hexdigest()}"
