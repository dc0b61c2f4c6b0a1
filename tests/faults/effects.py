"""What became of a stream: what of it was lost, or counted twice, and whose memory is another one than it must be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_cluster import ONE_BY_ONE
from tiny_home import CORE, open_host, tiny_config

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import Overloaded, Unavailable
from siltstone.memory.user_memory import UserMemory, from_blob, to_blob
from siltstone.ports import SnapshotStore
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, UserKey

FIGURES_VARIABLE = "SILTSTONE_FIGURES"
"""File to which a long form adds its figures, one line of JSON each."""

SETTINGS: dict[str, Any] = {
    **ONE_BY_ONE,
    "shard.gather_wait_s": 0.0,
    "store.num_partitions": 16,
    "redis.num_partitions": 16,
    "redis.retry_budget_s": 1.0,
    "kafka.num_partitions": 16,
    "key_store.num_partitions": 16,
    # Fewer steps than elsewhere in the tests: the stream is long.
    "memory.fast.period_tokens": 32,
    "memory.mid.period_tokens": 96,
    "lessons.rehearsals": 0,
    "lessons.replays": 1,
    # When a memory sleeps hangs on when there is time for it: then runs could not be compared to the bit.
    "memory.fast.sleep_tokens": 1_000_000,
    "memory.mid.sleep_tokens": 1_000_000,
}
"""One interaction a round and one thread: whoever absorbs it, in whichever company, makes the same memory of it."""

ROUNDS: dict[str, Any] = {**SETTINGS, "shard.max_round_interactions": 8}
"""Several users to a round and a commit. Memories are then the same within what single precision allows."""
TOLERANCE = 2e-3
"""Of the numbers of a memory that was absorbed in other batches."""

SEED = 4
NUM_INTERACTIONS, NUM_USERS = 10_000, 800
"""Of the stream of the longest forms."""

TEXTS = ("Tea.", "Oslo!", "Ferro barks.", "The blue box.")


def users(num_users: int) -> list[UserKey]:
    return [UserKey("office", f"user-{number:03}") for number in range(num_users)]


def stream_of(num_interactions: int, num_users: int, seed: int) -> list[Interaction]:
    """Returns what users say, in an order drawn by the seed: everybody something, then whoever comes."""
    rng = random.Random(seed)
    everybody = users(num_users)
    owners = everybody + rng.choices(everybody, k=num_interactions - num_users)
    rng.shuffle(owners)
    return [told(owner, f"i{number}", f"{rng.choice(TEXTS)} {number}.") for number, owner in enumerate(owners)]


def told(owner: UserKey, name: str, text: str) -> Interaction:
    """Returns a note of somebody who agreed to have it learned."""
    messages = (Message(Role.USER, text),)
    return Interaction(name, owner, InteractionKind.DOCUMENT, 1_700_000_000_000, messages, consent=Consent(learn=True))


async def faultless(
    home: Path, settings: Mapping[str, Any], stream: Sequence[Interaction]
) -> dict[UserKey, UserMemory]:
    """Returns the memories that one process makes of a stream in which nothing goes wrong."""
    more = {**settings, "shard.max_lag_interactions": len(stream) + 1}
    async with open_host(home, more) as host:
        receipts = await host.record(stream)
        for start in range(0, len(receipts), 200):
            assert await host.wait_absorbed(receipts[start : start + 200]) == []
    config = tiny_config(home, more)
    with SqliteFile(home / "siltstone.db", config.store) as file:
        memories = read_memories(config, SqliteSnapshotStore(file), {one.owner for one in stream})
    assert memories.keys() == {one.owner for one in stream}
    return memories


async def send(host: Any, stream: Sequence[Interaction]) -> None:
    """Sends a stream in order, and waits until it is taken in; a piece is sent again until it was."""
    for start in range(0, len(stream), 10):
        while True:
            try:
                await host.wait_absorbed(await host.record(stream[start : start + 10]))
                break
            except (Overloaded, Unavailable):
                await asyncio.sleep(0.1)


def read_memories(config: Any, store: SnapshotStore, owners: Iterable[UserKey]) -> dict[UserKey, UserMemory]:
    """Returns the stored memory of everybody who has one, read and verified."""
    shape = config.memory.shape_for(CORE)
    found = {}
    for owner in owners:
        snapshot = store.load(owner)
        if snapshot is not None:
            found[owner] = from_blob(owner, snapshot.blob, snapshot.core, shape)
    return found


@dataclass(frozen=True)
class Tally:
    """What became of a stream."""

    users: int
    differing: int
    lost: int
    twice: int


def tally(
    config: Any,
    store: SnapshotStore,
    stream: Sequence[Interaction],
    expected: Mapping[UserKey, UserMemory],
    tolerance: float = 0.0,
) -> Tally:
    """Compares what is stored with the memories of a run without faults.

    By its own ledger a memory tells what it has absorbed: the ids, and how many interactions. With a tolerance, ids,
    counts and the position in the user's tokens must be the same, and the numbers nearly so; without one, every byte.
    """
    found = read_memories(config, store, expected)
    sent: dict[UserKey, set[str]] = {owner: set() for owner in expected}
    for one in stream:
        sent[one.owner].add(one.id)
    lost = twice = 0
    for owner, ids in sent.items():
        memory = found.get(owner)
        absorbed = set(memory.absorbed_ids) if memory else set()
        lost += len(ids - absorbed)
        twice += max(0, memory.num_interactions - len(ids & absorbed)) if memory else 0
    differing = [owner for owner in expected if not _is_same(found.get(owner), expected[owner], tolerance)]
    return Tally(len(expected), len(differing), lost, twice)


def _is_same(found: UserMemory | None, expected: UserMemory, tolerance: float) -> bool:
    if found is None:
        return False
    if not tolerance:
        return to_blob(found) == to_blob(expected)
    told = [(one.absorbed_ids, one.num_interactions, one.position_tokens) for one in (found, expected)]
    return told[0] == told[1] and torch.allclose(found.numbers, expected.numbers, rtol=0, atol=tolerance)


def all_taken_in(journal: Any, store: SnapshotStore) -> bool:
    """Says whether every record of the journal is before its partition's committed position."""
    try:
        return all(store.position(partition) == end for partition, end in journal.end_positions().items())
    except Unavailable:
        return False


def record_figures(case: str, **figures: Any) -> None:
    """Prints the figures of a long form, and adds them to the file that the environment names."""
    line = json.dumps({"case": case, **figures, "commit": _commit()})
    print(f"\n{line}")
    if path := os.environ.get(FIGURES_VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{line}\n")


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
