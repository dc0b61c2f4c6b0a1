"""A partition of which most is parked is told of, once while it lasts, and goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_home import ADA, BEN, add_tiny_core, open_host, said

from siltstone.memory.parking import ParkingLog
from siltstone.values import Consent, Interaction, Parked, ParkReason

ONE_PARTITION = {"store.num_partitions": 1, "memory.fast.period_tokens": 1000, "memory.mid.period_tokens": 1000}
NUM_RECORDS = 300


def stream(bad_of_100: int) -> list[Interaction]:
    """Returns what two people say, of which so much must not be learned, evenly spread."""
    told = [said((ADA, BEN)[number % 2], f"i{number}", "Yes.") for number in range(NUM_RECORDS)]
    return [
        replace(one, consent=Consent(learn=False)) if number * 37 % 100 < bad_of_100 else one
        for number, one in enumerate(told)
    ]


def of_message(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == message]


@pytest.mark.parametrize(("bad_of_100", "is_told"), [(60, True), (1, False)])
async def test_more_than_half_is_told_once_and_one_percent_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad_of_100: int, is_told: bool
) -> None:
    add_tiny_core(tmp_path)
    async with open_host(tmp_path, ONE_PARTITION) as host:
        sent = stream(bad_of_100)
        for start in range(0, NUM_RECORDS, 50):
            await host.wait_absorbed(await host.record(sent[start : start + 50]))
        num_bad = sum(not one.consent.learn for one in sent)
        (shard,) = await host.shards()
        # It goes on all the same, and the rest is learned.
        assert (shard.num_parked, (await host.status()).num_absorbed) == (num_bad, NUM_RECORDS - num_bad)
    assert len(of_message(caplog, "interaction parked")) == num_bad
    told = of_message(caplog, "much is parked")
    assert len(told) == is_told
    if is_told:
        assert (told[0]["levelname"], told[0]["partition"], told[0]["reason"]) == ("ERROR", 0, "no_consent")
        assert 0.5 < told[0]["share"] < 0.7


class Bench:
    """Brings records to a log, as commits do."""

    def __init__(self) -> None:
        self.log = ParkingLog()
        self._ends = [0, 0]

    def bring(self, partition: int, reasons: Sequence[ParkReason | None]) -> None:
        start = self._ends[partition]
        self._ends[partition] = end = start + len(reasons)
        places = [(start + number, reason) for number, reason in enumerate(reasons) if reason is not None]
        parked = [Parked(partition, at, ADA, f"i{at}", reason, "", b"") for at, reason in places]
        self.log.note(partition, start, end, parked)


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Bench:
    caplog.set_level(logging.INFO)
    return Bench()


BAD, WORSE = ParkReason.UNDECODABLE, ParkReason.TOO_LARGE


def test_each_spell_of_each_partition_is_told_once_with_its_most_frequent_reason(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        bench.bring(0, [BAD, WORSE, BAD, None, None])
        bench.bring(1, [None, None, None, None, BAD])
    (told,) = of_message(caplog, "much is parked")
    assert (told["partition"], told["reason"]) == (0, "undecodable")
    assert of_message(caplog, "little is parked again") == []
    # About the half is not over yet; a quarter is.
    bench.bring(0, [BAD, None] * 50)
    bench.bring(0, [BAD, BAD, None] * 34)
    assert len(of_message(caplog, "much is parked")) == 1
    bench.bring(0, [None] * 75)
    assert [one["partition"] for one in of_message(caplog, "little is parked again")] == [0]
    bench.bring(0, [WORSE] * 100)
    assert [one["reason"] for one in of_message(caplog, "much is parked")] == ["undecodable", "too_large"]
    assert {one["partition"] for one in of_message(caplog, "much is parked")} == {0}


def test_what_was_given_away_counts_for_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.bring(0, [BAD] * 40)
    bench.log.leave(0)
    bench.bring(0, [BAD] * 50)
    assert of_message(caplog, "much is parked") == []
    bench.bring(0, [BAD])
    assert len(of_message(caplog, "much is parked")) == 1


def test_of_many_at_once_the_newest_count(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.bring(0, [BAD] * 200 + [None] * 50)
    assert of_message(caplog, "much is parked") == []
    bench.bring(1, [BAD] * 200 + [None] * 49)
    assert [one["share"] for one in of_message(caplog, "much is parked")] == [0.51]
