"""Users who are not in memory: bringing one in, verified; putting one out, durably; and many of them."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import Corrupt
from siltstone.journal.admit import AdmissionLimits, Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.absorber import Absorbers
from siltstone.memory.shard import Shard, ShardConfig
from siltstone.memory.user_memory import UserMemory, from_blob, to_blob
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked, Snapshot, UserKey
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_least, at_most
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.update import LEARNED_TOKENS
from siltstone_services.benchmark.world import CORE_NAME, World

SMALL_BYTES: Final = 1_000_000
"""Size of a memory up to which the targets hold."""
SWAP_IN: Final = at_most(0.6, "ms")
EVICT: Final = at_most(5.0, "ms")
FLAT: Final = at_least(0.9, "x")
_FILL_BATCH: Final = 500


@dataclass(slots=True)
class Stored:
    """An embedded store and the right to write all its partitions."""

    file: SqliteFile
    store: SqliteSnapshotStore
    leases: dict[int, Lease]

    def commit(self, snapshots: Sequence[Snapshot]) -> None:
        """Writes snapshots, one commit a partition."""
        by_partition: dict[int, list[Snapshot]] = {}
        for snapshot in snapshots:
            by_partition.setdefault(partition_of(snapshot.owner, len(self.leases)), []).append(snapshot)
        for partition, part in by_partition.items():
            at = self.store.position(partition)
            self.store.commit(Commit(self.leases[partition], at, at, tuple(part)))


@contextmanager
def stored(folder: Path) -> Iterator[Stored]:
    """Opens a store in a folder that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as name, SqliteFile(Path(name) / "store.db") as file:
        store = SqliteSnapshotStore(file)
        yield Stored(file, store, {p: store.acquire(p, "bench") for p in range(file.config.num_partitions)})


def _seal(memory: UserMemory) -> Snapshot:
    return Snapshot.seal(memory.owner, memory.core, memory.sequence, to_blob(memory))


def _bring_in(stored: Stored, world: World, owner: UserKey) -> tuple[UserMemory, torch.Tensor]:
    snapshot = stored.store.load(owner)
    if snapshot is None:
        raise Corrupt(f"memory of {owner}", "a snapshot", "none")
    memory = from_blob(owner, snapshot.blob, CORE_NAME, world.deltas)
    return memory, memory.coefficients()


def check_swap(stored: Stored, world: World, memory: UserMemory) -> str:
    """Says what is wrong with putting a memory out and bringing it in again, or nothing."""
    stored.commit([_seal(memory)])
    back, coefficients = _bring_in(stored, world, memory.owner)
    if not torch.equal(back.numbers, memory.numbers) or not torch.equal(coefficients, memory.coefficients()):
        return "a memory did not come back as it was put out"
    sound = _seal(memory)
    flipped = bytes([sound.blob[-1] ^ 1])
    try:
        stored.commit([replace(sound, blob=sound.blob[:-1] + flipped)])
    except Corrupt:
        return ""
    return "a memory with a flipped bit was taken for whole"


def run_swap(world: World, num_users: int, repeats: int, folder: Path, say: Say) -> Outcome:
    """Times single users, one after another: load, verify and make ready; then to bytes, seal and commit.

    The file is in the system's cache, so bringing in waits for nothing and is timed as computing is. Putting out waits
    for the disk.
    """
    size = world.memory_of(0)
    case = f"{len(to_blob(size)) / 1e6:.3g} MB memory"
    is_small = len(to_blob(size)) <= SMALL_BYTES
    with stored(folder) as place:
        if complaint := check_swap(place, world, size):
            return Outcome(f"swap, {case}", refusal=complaint)
        say(f"swap, {case}: {num_users} users stored")
        memories = [world.memory_of(number) for number in range(num_users)]
        for memory in memories:
            place.commit([_seal(memory)])
        draw = random.Random(1)
        swapped_in_ms, evicted_ms = [], []
        for memory in draw.choices(memories, k=repeats):
            start_s = time.thread_time()
            _bring_in(place, world, memory.owner)
            swapped_in_ms.append((time.thread_time() - start_s) * 1e3)
        for memory in draw.choices(memories, k=repeats):
            start_s = time.perf_counter()
            place.commit([_seal(memory)])
            evicted_ms.append((time.perf_counter() - start_s) * 1e3)
    return Outcome(
        f"swap, {case}",
        (
            Reading(f"verified swap-in, {case}", tuple(swapped_in_ms), "ms", SWAP_IN if is_small else None),
            Reading(f"durable evict, {case}", tuple(evicted_ms), "ms", EVICT if is_small else None),
        ),
    )


def _admit(record: JournalRecord) -> Interaction | Parked:
    decided = admit(record.payload, AdmissionLimits())
    if isinstance(decided, Refusal):
        raise Corrupt("a benchmark's interaction", "one that is admitted", decided.detail)
    return decided


@dataclass(slots=True)
class Town:
    """A shard whose users are all in the store but one."""

    world: World
    journal: SqliteJournal
    shard: Shard
    owners: list[UserKey]
    draw: random.Random
    num_said: int = 0

    def hear(self, num_users: int) -> None:
        """Lets users drawn at random say something."""
        chosen = self.draw.sample(self.owners, num_users)
        self.num_said += 1
        said = [self.world.said(owner, f"said-{self.num_said}", LEARNED_TOKENS) for owner in chosen]
        self.journal.append(said)

    def absorb(self) -> None:
        """Takes in what was said, absorbs it and commits."""
        before = self.shard.num_absorbed
        while (taken := self.shard.gather()) is not None:
            for _ in self.shard.absorb(taken):
                pass
            self.shard.commit(taken)
        if self.shard.num_absorbed == before or self.shard.num_parked:
            raise Corrupt("the shard's round", "all absorbed", f"{self.shard.num_parked} parked")


def _town(world: World, place: Stored, num_users: int, num_drawn: int) -> Town:
    owners = [UserKey("bench", f"user-{number}") for number in range(num_users)]
    memory = world.memory_of(0)
    for start in range(0, num_users, _FILL_BATCH):
        place.commit([_seal(memory.next(owner=owner)) for owner in owners[start : start + _FILL_BATCH]])
    journal = SqliteJournal(place.file)
    config = ShardConfig(max_resident_bytes=1, max_round_interactions=num_drawn)
    shard = Shard(
        journal,
        place.store,
        _admit,
        Absorbers({CORE_NAME: world.absorber()}),
        CORE_NAME,
        world.deltas,
        lambda owner: partition_of(owner, len(place.leases)),
        config,
    )
    shard.take(tuple(place.leases.values()))
    return Town(world, journal, shard, owners, random.Random(2))


def run_stored_users(
    world: World, counts: Sequence[int], num_drawn: int, rounds: int, folder: Path, say: Say
) -> Outcome:
    """Times absorbing and committing for users drawn at random, by how many are stored, in turns."""
    case = f"{num_drawn} of many stored users"
    with ExitStack() as stack:
        turns = {}
        for count in counts:
            say(f"{case}: storing {count:,}")
            town = _town(world, stack.enter_context(stored(folder)), count, num_drawn)
            turns[str(count)] = Turn(town.absorb, partial(town.hear, num_drawn), warm=False)
            town.hear(num_drawn)
            town.absorb()
        say(f"{case}: absorbing")
        seconds = take_turns(turns, rounds, waits=True)
    first = seconds[str(counts[0])]
    readings = []
    for count in counts:
        rates = tuple(num_drawn / one for one in seconds[str(count)])
        readings.append(Reading(f"absorb and commit, {count:,} stored users", rates, "users/s"))
    for count in counts[1:]:
        name = f"absorb and commit, {count:,} stored users / {counts[0]:,}"
        ratios = tuple(one / many for one, many in zip(first, seconds[str(count)], strict=True))
        readings.append(Reading(name, ratios, "x", FLAT))
        fastest = min(first) / min(seconds[str(count)])
        readings.append(Reading(f"{name}, fastest / fastest", (fastest,), "x"))
    return Outcome(case, tuple(readings))
