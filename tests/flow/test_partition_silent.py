"""A partition that stands still though records wait in it and nobody has said why is told of, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_cluster import NUM_PARTITIONS, ONE_BY_ONE, LookedAtJournal, open_cluster
from tiny_home import ADA, add_tiny_core, said

from siltstone.errors import Corrupt, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import JournalRecord
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.router import ClusterHost
from siltstone_services.cluster.silence import Silence

HOME = partition_of(ADA, NUM_PARTITIONS)


class HeldBackJournal(LookedAtJournal):
    """Gives out no more of Ada's partition than the test allows, as a client does that has lost track of it."""

    ends_at: ClassVar[int] = 0
    trouble: ClassVar[Unavailable | None] = None
    is_damaged: ClassVar[bool] = False

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        if self.trouble is not None:
            raise self.trouble
        found = super().ready(positions)
        return {one: ready for one, ready in found.items() if one != HOME or positions[one] < self.ends_at}

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        if partition == HOME and self.is_damaged:
            raise Corrupt("the record", "what was written", "something else")
        allowed = self.ends_at - start if partition == HOME else max_records
        return super().read(partition, start, max(0, min(allowed, max_records)))


class HandClock:
    """Goes on when the test lets it."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def home(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    HeldBackJournal.ends_at, HeldBackJournal.trouble, HeldBackJournal.is_damaged = 0, None, False
    caplog.set_level(logging.INFO)
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    return home


def of_message(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == message]


async def looked(conductor: Conductor) -> None:
    """Returns once the conductor has looked at all ends after now, and for silence."""
    conductor.ends.pop(HOME, None)
    while HOME not in conductor.ends:
        await asyncio.sleep(0.01)


async def record_for_ada(host: ClusterHost, conductor: Conductor, *ids: str) -> None:
    """Records, and returns once the conductor has looked at ends that were asked for afterwards."""
    await host.record([said(ADA, one, "Hello.") for one in ids])
    await looked(conductor)
    await looked(conductor)


async def position(conductor: Conductor, at: int) -> None:
    await conductor.wait_for(lambda: conductor.positions.get(HOME) == at, 30, "the partition", "it does not go on")


async def test_a_partition_that_is_held_back_is_told_once_and_again_when_it_goes_on(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    async with open_cluster(home, ONE_BY_ONE, journal_of=HeldBackJournal, clock=clock) as (host, conductor, _):
        await record_for_ada(host, conductor, "a0", "a1")
        clock.now_s += 59.0
        await looked(conductor)
        assert of_message(caplog, "partition silent") == []
        clock.now_s += 2.0
        await looked(conductor)
        clock.now_s += 1000.0
        await looked(conductor)
        (told,) = of_message(caplog, "partition silent")
        owner = conductor.coordinator.owner_of(HOME)
        assert owner is not None
        assert (told["levelname"], told["partition"], told["shard"]) == ("ERROR", HOME, owner.shard)
        assert (told["position"], told["lag_interactions"]) == (0, 2)
        HeldBackJournal.ends_at = 1
        await position(conductor, 1)
        await looked(conductor)
        assert [one["partition"] for one in of_message(caplog, "partition goes on")] == [HOME]
        # Another spell is told anew.
        clock.now_s += 61.0
        await looked(conductor)
        assert [one["position"] for one in of_message(caplog, "partition silent")] == [0, 1]


async def test_a_partition_that_goes_on_slowly_is_not_told(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with open_cluster(home, ONE_BY_ONE, journal_of=HeldBackJournal, clock=clock) as (host, conductor, _):
        await record_for_ada(host, conductor, *(f"a{number}" for number in range(5)))
        for number in range(1, 5):
            clock.now_s += 59.0
            HeldBackJournal.ends_at = number
            await position(conductor, number)
            await looked(conductor)
        assert conductor.lag_of((HOME,)) == 1
        HeldBackJournal.ends_at = 5
        await position(conductor, 5)
        # Nothing waits: there is nothing to be silent about.
        for _ in range(2):
            clock.now_s += 1000.0
            await looked(conductor)
    assert of_message(caplog, "partition silent") == []


async def test_a_shard_that_says_what_keeps_it_is_not_silent(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with open_cluster(home, ONE_BY_ONE, journal_of=HeldBackJournal, clock=clock) as (host, conductor, _):
        await record_for_ada(host, conductor, "a0")
        HeldBackJournal.trouble = Unavailable("the journal", "it is away")
        for _ in range(4):
            clock.now_s += 50.0
            before = dict(conductor.troubles)
            owner = conductor.coordinator.owner_of(HOME)
            assert owner is not None
            HeldBackJournal.trouble = Unavailable("the journal", "it is away")
            await conductor.wait_for(
                lambda before=before, owner=owner: conductor.troubles.get(owner.shard) is not before.get(owner.shard),
                30,
                "the shard",
                "it tells of no trouble",
            )
            await looked(conductor)
        assert of_message(caplog, "partition silent") == []


async def test_a_damaged_partition_is_told_as_damaged_only(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with open_cluster(home, ONE_BY_ONE, journal_of=HeldBackJournal, clock=clock) as (host, conductor, _):
        HeldBackJournal.ends_at, HeldBackJournal.is_damaged = 1, True
        await record_for_ada(host, conductor, "a0")
        await conductor.wait_for(lambda: HOME in conductor.damaged, 30, "the damage", "it is not found")
        await looked(conductor)
        clock.now_s += 1000.0
        await looked(conductor)
        assert len(of_message(caplog, "partition damaged")) == 1
    assert of_message(caplog, "partition silent") == []


def test_a_partition_without_an_owner_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    silence = Silence(60.0)
    silence.look({3: (7, 9)}, {}, 0.0)
    silence.look({3: (7, 12)}, {}, 61.0)
    (told,) = of_message(caplog, "partition silent")
    assert (told["partition"], told["shard"], told["lag_interactions"]) == (3, "", 5)
