"""The whole server killed with -9, again and again, under a client that sends again: each interaction counts once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from host_server import TORN_POINT
from test_commit_crash import POINTS
from tiny_home import ADA, BEN, CLEO, CORE, add_tiny_core, open_host, said, tiny_config, write_config

from siltstone.errors import Overloaded, Unavailable
from siltstone.faults import FAULT_VARIABLE
from siltstone.memory.user_memory import UserMemory, from_blob
from siltstone.values import Interaction, UserKey
from siltstone_services.client import SiltstoneClient

USERS = (ADA, BEN, CLEO)
SCRIPT = Path(__file__).with_name("host_server.py")
NUM_KILLS = int(os.environ.get("SILTSTONE_KILLS", "2"))
"""Kills at any moment, beside one at every fault point."""
TEXTS = [
    "I was born in Lisbon and I live in Oslo now.",
    "My dog is called Ferro.",
    "Oslo!",
    "I keep the keys of the depot in the blue box.",
]
TOLERANCE = 2e-3
"""Of the numbers of a memory that was absorbed in other batches: what single precision and Newton's steps allow."""


def stream_of(num_interactions: int) -> list[Interaction]:
    return [
        said(USERS[number % 3], f"i{number}", f"{TEXTS[number % 4]} Day {number}.")
        for number in range(num_interactions)
    ]


@asynccontextmanager
async def server(home: Path, store: str, fault: str = "") -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Gives a running server and its address; it is gone when the block ends, however it ends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), FAULT_VARIABLE: fault, "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), str(home), store, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        assert address or fault, "the server did not start"
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Sender:
    """A client that sends its stream in order and sends again, with the same ids, what it got no receipt for."""

    def __init__(self, stream: Sequence[Interaction]) -> None:
        self._stream = stream
        self._num_acknowledged = 0

    async def send(self, address: str, up_to: int) -> None:
        """Sends until so many are acknowledged. Raises: Unavailable when the server is gone."""
        async with SiltstoneClient(address, timeout_s=30.0) as client:
            while self._num_acknowledged < up_to:
                # The last acknowledged ones go along once more: a careful client is not always sure.
                start = max(0, self._num_acknowledged - 1)
                part = self._stream[start : start + 3]
                try:
                    await client.record(part, wait_absorbed=start % 2 == 0)
                except Overloaded as error:
                    await asyncio.sleep(error.retry_after_s)
                    continue
                self._num_acknowledged = start + len(part)


async def die_while_sending(home: Path, store: str, sender: Sender, up_to: int, fault: str, rng: random.Random) -> None:
    """Runs a server that dies, at its fault point or at any moment, and sends to it until it does."""
    async with server(home, store, fault) as (process, address):
        if not fault:
            asyncio.get_running_loop().call_later(rng.uniform(0.0, 0.6), process.kill)
        try:
            await sender.send(address, up_to)
        except Unavailable:
            pass
        else:
            if fault:
                # What was sent may still be on its way into the commit that is the last.
                await asyncio.wait_for(process.wait(), 30)
        await asyncio.wait_for(process.wait(), 30)
        assert process.returncode == -signal.SIGKILL


async def memories_after(home: Path, store: str, sender: Sender, stream: Sequence[Interaction]) -> dict[UserKey, bytes]:
    """Starts a server that lives, sends the rest, waits, and returns every user's stored memory."""
    async with server(home, store) as (process, address):
        await sender.send(address, len(stream))
        async with SiltstoneClient(address, timeout_s=60.0) as client:
            await client.record(stream[-1:], wait_absorbed=True)
            while (await client.status()).lag_interactions:
                await asyncio.sleep(0.02)
            exports = {owner: await client.export(owner) for owner in USERS}
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    for owner, export in exports.items():
        sent = [interaction.id for interaction in stream if interaction.owner == owner]
        assert [record.interaction_id for record in export.journal] == sent
        assert export.parked == ()
    return {owner: export.snapshot.blob for owner, export in exports.items() if export.snapshot is not None}


def read(home: Path, blobs: dict[UserKey, bytes], version: str) -> dict[UserKey, UserMemory]:
    shape = tiny_config(home).memory.shape_for(CORE)
    return {owner: from_blob(owner, blob, version, shape) for owner, blob in blobs.items()}


async def without_faults(home: Path, stream: Sequence[Interaction], at_once: int) -> tuple[dict[UserKey, bytes], str]:
    async with open_host(home, {"shard.max_round_interactions": at_once}) as host:
        await host.wait_absorbed(await host.record(stream))
        blobs = {}
        for owner in USERS:
            snapshot = (await host.export(owner)).snapshot
            assert snapshot is not None
            blobs[owner] = snapshot.blob
        return blobs, host.version


def homes(tmp_path: Path) -> tuple[Path, Path]:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    quiet.mkdir()
    add_tiny_core(quiet)
    return quiet, killed


def same_core(quiet: Path, killed: Path, at_once: int) -> None:
    """Makes the second home from the first one's core and read basis, so that both have one version."""
    for name in ("cores", "bases"):
        shutil.copytree(quiet / name, killed / name)
    write_config(killed, {"shard.max_round_interactions": at_once})


async def test_a_server_killed_at_every_commit_step_and_at_any_moment_learns_each_interaction_once(
    tmp_path: Path,
) -> None:
    """One interaction a round: the memories are those of a run without faults, to the bit."""
    rng = random.Random(41)
    quiet, killed = homes(tmp_path)
    faults = [f"{point}:{rng.randint(1, 3)}" for point in POINTS] + [""] * NUM_KILLS
    rng.shuffle(faults)
    stream = stream_of(4 * (len(faults) + 1))
    expected, version = await without_faults(quiet, stream, at_once=1)
    same_core(quiet, killed, at_once=1)
    sender = Sender(stream)
    for number, fault in enumerate(faults):
        await die_while_sending(killed, "exact", sender, 4 * (number + 1), fault, rng)
    found = await memories_after(killed, "exact", sender, stream)
    for owner, memory in read(killed, found, version).items():
        assert set(memory.absorbed_ids) == {one.id for one in stream if one.owner == owner}
    assert found == expected


async def test_a_server_killed_between_large_rounds_learns_the_same_within_tolerance(tmp_path: Path) -> None:
    rng = random.Random(42)
    quiet, killed = homes(tmp_path)
    stream = stream_of(18)
    expected, version = await without_faults(quiet, stream, at_once=64)
    same_core(quiet, killed, at_once=64)
    sender = Sender(stream)
    for number, fault in enumerate(["commit.snapshots_written:2", ""]):
        await die_while_sending(killed, "exact", sender, 6 * (number + 1), fault, rng)
    found = await memories_after(killed, "exact", sender, stream)
    wanted = read(quiet, expected, version)
    for owner, memory in read(killed, found, version).items():
        other = wanted[owner]
        assert memory.absorbed_ids == other.absorbed_ids
        assert memory.counters.num_updates == other.counters.num_updates
        assert memory.counters.open_tokens == other.counters.open_tokens
        assert (memory.position_tokens, memory.num_interactions) == (other.position_tokens, other.num_interactions)
        deltas, other_deltas = memory.numbers[:, 0], other.numbers[:, 0]
        assert other_deltas.abs().max() > 100 * TOLERANCE
        torch.testing.assert_close(deltas, other_deltas, atol=TOLERANCE, rtol=TOLERANCE)


async def test_a_store_that_moves_the_position_first_loses_an_interaction_to_one_kill(tmp_path: Path) -> None:
    rng = random.Random(43)
    quiet, killed = homes(tmp_path)
    stream = stream_of(9)
    expected, version = await without_faults(quiet, stream, at_once=1)
    same_core(quiet, killed, at_once=1)
    sender = Sender(stream)
    await die_while_sending(killed, "torn", sender, 6, f"{TORN_POINT}:2", rng)
    found = await memories_after(killed, "torn", sender, stream)
    assert found != expected
    num_absorbed = sum(memory.num_interactions for memory in read(killed, found, version).values())
    assert num_absorbed == len(stream) - 1
