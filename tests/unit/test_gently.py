"""Work that gives way to others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from siltstone_services.gently import NICENESS, gently


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
async def test_work_gives_way_and_whoever_waits_for_it_does_not() -> None:
    before = niceness()
    assert await gently(niceness) == min(19, before + NICENESS)
    assert niceness() == before


async def test_what_work_raises_is_raised_where_it_is_waited_for() -> None:
    def fails() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        await gently(fails)


async def test_work_that_nobody_waits_for_any_more_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    has_begun, may_end, threads = asyncio.Event(), threading.Event(), list[threading.Thread]()
    loop = asyncio.get_running_loop()

    def work() -> None:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(has_begun.set)
        may_end.wait(30)

    waiting = asyncio.create_task(gently(work))
    await has_begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    may_end.set()
    await asyncio.to_thread(threads[0].join, 30)
    assert not threads[0].is_alive()
    assert failures == []


def test_a_shard_has_next_to_nothing_imported_when_its_actor_begins() -> None:
    """What is imported with the actor's class does not give way to those who serve."""
    code = "import siltstone_services.cluster.shard_actor, sys; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "kafka", "redis", "ray", "siltstone.config", "siltstone_services.node"}
    assert heavy.isdisjoint(told.stdout.split())
