"""Every error Siltstone raises, sorted by what the caller can do.

Arguments are positional and kept, so that every error survives pickling.
"""

from __future__ import annotations


class SiltstoneError(Exception):
    """Base of all errors of Siltstone."""


# The caller can change the request.


class InvalidInput(SiltstoneError):
    """A field of a request is not what it must be. Args: field, expected, found."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(field, expected, found)
        self.field, self.expected, self.found = field, expected, found

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, found {self.found}"


class NotFound(SiltstoneError):
    """The named thing does not exist. Args: kind, name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"no such {self.kind}: {self.name}"


class WrongState(SiltstoneError):
    """A thing stands where this cannot be done with it. Args: what, state, action."""

    def __init__(self, what: str, state: str, action: str) -> None:
        super().__init__(what, state, action)
        self.what, self.state, self.action = what, state, action

    def __str__(self) -> str:
        return f"{self.what} is {self.state}: not to {self.action}"


class ConfigInvalid(SiltstoneError):
    """The configuration cannot be used. Args: where, reason."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


# The caller can try again later.


class Overloaded(SiltstoneError):
    """A queue is full. Args: what, limit, retry_after_s."""

    def __init__(self, what: str, limit: int, retry_after_s: float) -> None:
        super().__init__(what, limit, retry_after_s)
        self.what, self.limit, self.retry_after_s = what, limit, retry_after_s

    def __str__(self) -> str:
        return f"{self.what} is at its limit of {self.limit}; try again in {self.retry_after_s:g} s"


class Unavailable(SiltstoneError):
    """A part that is needed does not answer. Args: what, reason."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what, self.reason = what, reason

    def __str__(self) -> str:
        return f"{self.what} is unavailable: {self.reason}"


# Somebody asked for it.


class Cancelled(SiltstoneError):
    """Work was given up because somebody asked for that. Args: what, done, whole: how much of it was done."""

    def __init__(self, what: str, done: int, whole: int) -> None:
        super().__init__(what, done, whole)
        self.what, self.done, self.whole = what, done, whole

    def __str__(self) -> str:
        return f"{self.what} was cancelled after {self.done} of {self.whole} steps"


# The writer has lost its right, or its place.


class StaleLease(SiltstoneError):
    """A write came under an epoch that is no longer the newest. Args: partition, epoch, newest."""

    def __init__(self, partition: int, epoch: int, newest: int) -> None:
        super().__init__(partition, epoch, newest)
        self.partition, self.epoch, self.newest = partition, epoch, newest

    def __str__(self) -> str:
        return f"partition {self.partition}: epoch {self.epoch} was fenced by epoch {self.newest}"


class PositionConflict(SiltstoneError):
    """A commit expected another position. Args: partition, expected, stored."""

    def __init__(self, partition: int, expected: int, stored: int) -> None:
        super().__init__(partition, expected, stored)
        self.partition, self.expected, self.stored = partition, expected, stored

    def __str__(self) -> str:
        return f"partition {self.partition}: commit expected position {self.expected}, the store is at {self.stored}"


class NotOwner(SiltstoneError):
    """A shard was asked about a partition that it does not own, or not any more. Args: partition."""

    def __init__(self, partition: int) -> None:
        super().__init__(partition)
        self.partition = partition

    def __str__(self) -> str:
        return f"partition {self.partition} is not here; it has moved, or is about to"


class StaleEpoch(SiltstoneError):
    """A change of champion expected another champion. Args: expected, newest."""

    def __init__(self, expected: int, newest: int) -> None:
        super().__init__(expected, newest)
        self.expected, self.newest = expected, newest

    def __str__(self) -> str:
        return f"the champion has moved: expected epoch {self.expected}, it is at {self.newest}"


# What is stored cannot be trusted.


class Corrupt(SiltstoneError):
    """Stored bytes are not what was written. Args: what, expected, found."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(what, expected, found)
        self.what, self.expected, self.found = what, expected, found

    def __str__(self) -> str:
        return f"{self.what} is damaged: expected {self.expected}, found {self.found}"


def records_not_kept(partition: int, start: int) -> Corrupt:
    """Returns what a journal says that has forgotten what is asked for, or never had it."""
    return Corrupt(f"partition {partition}", f"records from position {start} on", "they are not kept (any more)")


class KeyMissing(Corrupt):
    """What sealed bytes were sealed with is not there, and was never destroyed. Args: what, expected, found."""


class SnapshotMismatch(SiltstoneError):
    """A memory was learned under another core or shape. Args: owner, expected, found."""

    def __init__(self, owner: str, expected: str, found: str) -> None:
        super().__init__(owner, expected, found)
        self.owner, self.expected, self.found = owner, expected, found

    def __str__(self) -> str:
        return f"memory of {self.owner}: expected {self.expected}, found {self.found}"
