"""What a sealed thing is: the words it is bound to, the same in every store. Standard library only."""

from __future__ import annotations


def snapshot_context(core: str, sequence: int) -> str:
    """Returns the context of a memory. No earlier one of the same user can be put in its place."""
    return f"snapshot {sequence} {core}"


def parked_context(partition: int, position: int) -> str:
    """Returns the context of a parked interaction's payload."""
    return f"parked {partition} {position}"


def journal_context(interaction_id: str) -> str:
    """Returns the context of a journal record's payload. Its position is not known when it is sealed."""
    return f"journal {interaction_id}"
