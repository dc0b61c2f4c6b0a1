"""Memories sleep in a server that nobody talks to, and wake with all they were told meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from test_private_sleeper import SETTINGS, TOLD
from tiny_home import ADA, BEN, add_tiny_core, answer, asking, open_host, said, teach

from siltstone_services.shard import EmbeddedHost


async def until_slept(host: EmbeddedHost, count: int) -> None:
    async with asyncio.timeout(120):
        while host._upkeep.num_slept < count:
            await asyncio.sleep(0.02)


async def test_due_memories_sleep_once_nobody_talks_any_more(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    async with open_host(tmp_path, {**SETTINGS, "sleep.private.quiet_s": 0.05}) as host:
        await teach(host, *[said(ADA, f"a{at}", text) for at, text in enumerate(TOLD)])
        awake = (await host.memory(ADA)).sequence
        await until_slept(host, 1)
        slept = await host.memory(ADA)
        assert slept.sequence > awake
        assert slept.num_interactions == len(TOLD)
        assert [level.name for level in slept.levels] == ["fast", "mid", "slow"]
        # It goes on: what is told now is learned on top, and is there after a restart.
        await teach(host, said(ADA, "later", "I moved to Porto."))
        assert (await host.memory(ADA)).num_interactions == len(TOLD) + 1
        text, end = await answer(host, asking(ADA, "Where do I live?", max_tokens=4))
    async with open_host(tmp_path, SETTINGS) as host:
        again, same = await answer(host, asking(ADA, "Where do I live?", max_tokens=4))
        assert (again, same.snapshot_sequence) == (text, end.snapshot_sequence)


async def test_while_somebody_talks_nobody_sleeps_and_who_was_refused_is_left_alone(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    async with open_host(tmp_path, {**SETTINGS, "sleep.private.quiet_s": 3600.0}) as host:
        await teach(host, *[said(ADA, f"a{at}", text) for at, text in enumerate(TOLD)])
        assert host._upkeep.wait_s() is not None
        for _ in range(5):
            await answer(host, asking(BEN, "Hello?", max_tokens=2))
        assert host._upkeep.num_slept == 0
    never = {**SETTINGS, "sleep.private.quiet_s": 0.0, "sleep.private.max_divergence_nats": 0.0}
    async with open_host(tmp_path, never) as host:
        awake = await host.memory(ADA)
        await teach(host, said(ADA, "later", "I moved to Porto."))
        async with asyncio.timeout(120):
            while host._upkeep._sleepless.get(ADA) is None:
                await asyncio.sleep(0.02)
        assert (await host.memory(ADA)).sequence == awake.sequence + 1
        assert host._upkeep.wait_s() is None
