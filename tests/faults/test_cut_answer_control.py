"""The control to a commit whose answer is cut off: what it would be, did the store not know the commit it did last."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers
from effects import Tally, tally
from proxy import proxy_to
from shard_fleet import place_at
from test_outages import AWAY, NUM_USERS, CutStore, NewHome, Run, host_at, short_run

from siltstone.adapters.redis_scripts import SCRIPTS, Script

__all__ = ["short_run"]

NOTES_ITSELF = "part.last_commit = ARGV[4]"
EVERY = 3


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's memory of its last commit is taken away; everything else of a commit is as it is."""
    text = SCRIPTS["commit"].text
    assert text.count(NOTES_ITSELF) == 1
    monkeypatch.setitem(SCRIPTS, "commit", Script(text.replace(NOTES_ITSELF, "part.last_commit = ''")))


async def conflicts_and_cuts(
    new_home: NewHome, folder: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> tuple[int, int]:
    """Returns how often the host lost a partition to a conflict, and how many answers were cut off."""
    stream, expected = run
    settings = {**AWAY, "redis.retry_budget_s": 10.0, "shard.max_lag_interactions": 1_000}
    with servers.valkey(folder / "valkey") as server, proxy_to(server.port) as between:
        settings["redis.address"] = f"redis://127.0.0.1:{between.port}"
        with place_at(new_home(), "valkey", settings) as place:
            async with host_at(place, store=CutStore(place.store, between, every=EVERY)) as host:
                assert await host.wait_absorbed(await host.record(stream)) == []
            # The check of the position stands: what was done is not done again.
            assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)
        lost = [vars(one)["error"] for one in caplog.records if one.message == "partition lost"]
        assert all("position" in error for error in lost), lost
        return len(lost), between.num_swallowed


@pytest.mark.usefixtures("forgetful")
async def test_a_store_that_forgets_its_last_commit_answers_a_repeat_with_a_conflict(
    new_home: NewHome, tmp_path: Path, short_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    num_conflicts, num_cut = await conflicts_and_cuts(new_home, tmp_path, short_run, caplog)
    # Some answers that are cut off are those to other questions, which are asked while a commit is on its way.
    assert 0 < num_conflicts <= num_cut


async def test_a_store_that_knows_it_answers_with_none(
    new_home: NewHome, tmp_path: Path, short_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    num_conflicts, num_cut = await conflicts_and_cuts(new_home, tmp_path, short_run, caplog)
    assert (num_conflicts, num_cut) == (0, len(short_run[0]) // EVERY)
