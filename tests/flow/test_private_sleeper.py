"""The users of a home sleep, each alone: what is committed, what is not, and that they go on afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tiny_home import ADA, BEN, CLEO, add_tiny_core, answer, asking, open_host, said, teach, tiny_config

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.crew import Crew, Look, go_on
from siltstone.memory.user_memory import UserMemory, from_blob
from siltstone.values import UserKey
from siltstone_services.bed import Bed
from siltstone_services.home import exclusive
from siltstone_services.night import make_bed
from siltstone_services.nights import NightCancelled
from siltstone_services.private_sleeper import Slept, sleep_privately, sleep_where_free
from siltstone_services.sleeper import make_plan

SETTINGS: dict[str, object] = {
    "memory.fast.sleep_tokens": 16,
    "memory.mid.sleep_tokens": 32,
    "sleep.private.num_steps": 4,
    "sleep.private.num_dreams": 2,
    "sleep.private.max_dream_tokens": 4,
    "sleep.private.max_divergence_nats": 100.0,
    "sleep.private.max_drift_nats": 100.0,
    "sleep.private.max_recall_loss_nats": 100.0,
}
TOLD = ("My boat is called Estrela.", "I was born in Lisbon.", "My sister keeps seven geese.")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)

    async def tell() -> None:
        async with open_host(tmp_path, SETTINGS) as host:
            for owner in (ADA, BEN):
                await teach(host, *[said(owner, f"{owner.user}-{at}", text) for at, text in enumerate(TOLD)])
            await teach(host, said(CLEO, "c", "Hm"))

    asyncio.run(tell())
    return tmp_path


def bed_of(home: Path, settings: dict[str, object]) -> Bed:
    config = tiny_config(home, settings)
    return make_bed(config, CoreStore(home).load(config.core))


def night_in(
    home: Path, changes: dict[str, object] | None = None, num_threads: int = 1, look: Look = go_on
) -> tuple[list[Slept], dict[UserKey, UserMemory]]:
    """Lets the home's users sleep, and returns the sleeps and what is stored of each user."""
    settings = {**SETTINGS, **(changes or {})}
    config, bed = tiny_config(home, settings), bed_of(home, settings)
    with SqliteFile(home / "siltstone.db", config.store) as file:
        store = SqliteSnapshotStore(file)
        plan = make_plan(SqliteJournal(file), store, bed.loaded.digest, 0, 1 << 62, 1)
        done = sleep_privately(plan, store, bed, config, Crew(num_threads, look), lambda _: None)
        stored = {}
        for owner in plan.users:
            snapshot = store.load(owner)
            assert snapshot is not None
            stored[owner] = from_blob(owner, snapshot.blob, bed.ground.version, bed.shape)
            assert snapshot.sequence == stored[owner].sequence
    return done, stored


def test_who_is_due_sleeps_once_and_is_answered_by_the_new_memory(home: Path) -> None:
    done, stored = night_in(home)

    assert [(one.owner, one.level) for one in done] == [(ADA, "mid"), (BEN, "mid")]
    assert all(one.memory is not None for one in done)
    assert stored[ADA].slow_N is not None
    assert stored[CLEO].slow_N is None
    assert stored[ADA].sleeps.at_tokens == (stored[ADA].position_tokens,) * 2
    assert night_in(home)[0] == []

    async def go_on() -> tuple[list[str], int, int]:
        async with open_host(home, SETTINGS) as host:
            levels = [level.name for level in (await host.memory(ADA)).levels]
            _, end = await answer(host, asking(ADA, "Where was I born?"))
            await teach(host, said(ADA, "later", "My cat is grey and old."))
            return levels, end.snapshot_sequence, (await host.memory(ADA)).sequence

    levels, answered_by, learned_to = asyncio.run(go_on())
    assert levels == ["fast", "mid", "slow"]
    assert answered_by == stored[ADA].sequence
    assert learned_to == answered_by + 1


def test_a_refused_sleep_leaves_the_stored_memory_as_it_was(home: Path) -> None:
    _, before = night_in(home, {"memory.fast.sleep_tokens": 1 << 20, "memory.mid.sleep_tokens": 1 << 20})

    done, after = night_in(home, {"sleep.private.max_drift_nats": 0.0})

    assert len(done) == 2
    assert all(one.memory is None and "drift" in one.outcome.refusals[0] for one in done)
    for owner, memory in before.items():
        assert after[owner].sequence == memory.sequence
        assert after[owner].slow_N is None


def test_a_private_sleep_that_is_ended_leaves_every_memory_as_it_was(home: Path) -> None:
    _, before = night_in(home, {"memory.fast.sleep_tokens": 1 << 20, "memory.mid.sleep_tokens": 1 << 20})
    num_looks = 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        # The first before the call, then between the readings of the first user's sleep.
        if num_looks == 4:
            raise NightCancelled(1)

    with pytest.raises(NightCancelled):
        night_in(home, look=look)

    assert num_looks == 4
    _, after = night_in(home, {"memory.fast.sleep_tokens": 1 << 20, "memory.mid.sleep_tokens": 1 << 20})
    assert [memory.sequence for memory in after.values()] == [memory.sequence for memory in before.values()]


def test_users_who_sleep_side_by_side_sleep_as_they_would_alone(home: Path) -> None:
    settings = {**SETTINGS, "sleep.private.max_drift_nats": 0.0}
    alone, _ = night_in(home, settings)

    together, _ = night_in(home, settings, num_threads=2)

    assert [one.owner for one in together] == [one.owner for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.outcome.after is not None
        assert other.outcome.after is not None
        assert one.outcome.after.drift_nats == pytest.approx(other.outcome.after.drift_nats, rel=1e-3)


def test_a_night_lets_a_home_sleep_only_where_nobody_else_uses_it(home: Path) -> None:
    config, bed = tiny_config(home, SETTINGS), bed_of(home, SETTINGS)
    told: list[str] = []
    with SqliteFile(home / "siltstone.db", config.store) as file:
        store = SqliteSnapshotStore(file)
        plan = make_plan(SqliteJournal(file), store, bed.loaded.digest, 0, 1 << 62, 1)

        def digests() -> list[str]:
            return [found.digest for owner in plan.users if (found := store.load(owner)) is not None]

        before = digests()
        with exclusive(home):
            sleep_where_free(plan, store, bed, config, told.append)
        assert digests() == before
        assert "in use" in told[0]

        sleep_where_free(plan, store, bed, config, told.append)
        after = digests()
    assert len(after) == len(before)
    assert sum(new != old for new, old in zip(after, before, strict=True)) == 2
    assert any("accepted" in one for one in told)
