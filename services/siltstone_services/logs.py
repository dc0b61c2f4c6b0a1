"""One JSON object a line: the constant message and its fields."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Final

_NOT_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_TALKATIVE: Final = ("kafka", "ray")


class JsonLines(logging.Formatter):
    """Writes a record with everything given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        told_of = vars(record).items()
        # Ray marks every record of its process.
        fields = {name: value for name, value in told_of if name not in _NOT_FIELDS and not name.startswith("_")}
        told = {
            "at_ms": round(record.created * 1000),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps({**told, **fields}, default=str)


def log_to_stderr(level: str) -> None:
    """Sends the log of this process to the standard error output."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    # The root's level does not bind a library that sets its own.
    handler.setLevel(level.upper())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _TALKATIVE:
        # They tell of every connection and every slow moment; what came of it, we tell.
        logging.getLogger(name).setLevel(logging.ERROR)


def frames_of(error: BaseException) -> list[str]:
    """Returns where an error came from, without its message: that may hold a user's words."""
    return [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
