"""A replay writes what can be written, counts what cannot, and waits when it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from echo_host import EchoHost

from siltstone.adapters.system_clock import SystemClock
from siltstone.evaluation.figures import Origin
from siltstone.journal.sources import Skipped, SkipReason, SourceOptions, open_source
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, UserKey
from siltstone_services.client import SiltstoneClient
from siltstone_services.replay import Replay, ReplayPlan, ReplayProgress, pause_s

ORIGIN = Origin("siltstone replay", "0123456789ab", "one processor", "2026-01-01T00:00:00+00:00")


def document(number: int, text: str = "A line.", user: str = "ada") -> Interaction:
    return Interaction(f"d{number}", UserKey("office", user), InteractionKind.DOCUMENT, 1, (Message(Role.USER, text),))


async def replay(
    client: SiltstoneClient, source: Iterator[Interaction | Skipped], **plan: object
) -> tuple[ReplayProgress, int]:
    """Replays, and returns the progress and how often it was told."""
    told: list[int] = []
    settings = ReplayPlan(**{"batch": 8, **plan})  # type: ignore[arg-type]
    run = Replay(client, source, settings, SystemClock(), lambda progress: told.append(progress.num_recorded))
    return await run.run(), len(told)


async def test_everything_is_written_and_counted(client: SiltstoneClient, host: EchoHost) -> None:
    items = [document(n, user=f"u{n % 3}") for n in range(20)]
    source = [*items, Skipped(SkipReason.MALFORMED, "line 21"), items[0]]
    progress, num_told = await replay(client, iter(source), is_waiting=True)
    assert (progress.num_recorded, progress.num_duplicates, progress.num_refused) == (20, 1, 0)
    assert (len(progress.users), progress.skipped) == (3, Counter({SkipReason.MALFORMED: 1}))
    assert (progress.num_absorbed, progress.lag) == (20, 0)
    assert num_told >= 3
    assert (await host.status()).num_absorbed == 20


@pytest.mark.parametrize("is_shared", [False, True])
async def test_only_what_people_agreed_to_share_is_shared(
    client: SiltstoneClient, host: EchoHost, is_shared: bool
) -> None:
    agreed = replace(document(1), consent=Consent(learn=True, share=True))
    await replay(client, iter([document(0), agreed]), is_shared=is_shared)

    shares = {one.id: one.consent.share for one in host.recorded}
    assert shares == {"d0": is_shared, "d1": True}


async def test_what_is_refused_is_left_out_and_the_rest_of_its_batch_is_not(client: SiltstoneClient) -> None:
    bad = {3: document(3, " "), 4: document(4, "x" * 70_000), 11: document(11, "a\0b")}
    source = [bad.get(n) or document(n) for n in range(16)]
    progress, _ = await replay(client, iter(source))
    assert (progress.num_recorded, progress.num_refused) == (13, 3)
    assert progress.refusals == Counter({"interactions[].messages[0].text": 2, "interactions[].text": 1})


async def test_a_message_too_large_to_send_is_refused_alone(client: SiltstoneClient) -> None:
    source = [document(n, "x" * (5 << 20) if n == 2 else "A line.") for n in range(8)]
    progress, _ = await replay(client, iter(source))
    assert (progress.num_recorded, progress.num_refused) == (7, 1)


async def test_a_server_that_lags_is_tried_again_until_it_takes_everything(
    client: SiltstoneClient, host: EchoHost
) -> None:
    host.is_paused, host.max_lag = True, 10
    tries = 0
    refuse = host.record

    async def record(interactions):  # type: ignore[no-untyped-def]
        nonlocal tries
        tries += 1
        if tries % 4 == 0:
            await host.absorb()
        return await refuse(interactions)

    host.record = record  # type: ignore[method-assign]
    progress, _ = await replay(client, iter([document(n) for n in range(40)]))
    assert progress.num_recorded == 40
    assert progress.num_retries > 0
    assert progress.max_lag > 0


async def test_a_plan_bounds_users_and_interactions(client: SiltstoneClient) -> None:
    items = [document(n, user=f"u{n % 10}") for n in range(100)]
    progress, _ = await replay(client, iter(items), max_users=2)
    assert (len(progress.users), progress.num_recorded) == (2, 20)
    progress, _ = await replay(client, iter(items), max_interactions=7)
    assert progress.num_recorded + progress.num_duplicates == 7


async def test_a_rate_bounds_the_size_of_a_batch(client: SiltstoneClient) -> None:
    progress, num_told = await replay(client, iter([document(n) for n in range(6)]), rate=100.0, batch=2)
    assert progress.num_recorded == 6
    assert num_told >= 3


def test_a_rate_is_kept_by_waiting_as_long_as_it_takes() -> None:
    assert pause_s(100, 50.0, 0.5) == 1.5
    assert pause_s(100, 50.0, 2.5) == 0.0
    assert pause_s(100, None, 0.0) == 0.0


async def test_the_figures_tell_what_was_measured(client: SiltstoneClient) -> None:
    progress, _ = await replay(client, iter([document(n) for n in range(5)]))
    figures = {figure.name: figure for figure in progress.figures(ORIGIN)}
    assert figures["replay recorded"].value == 5
    assert figures["replay record rate"].unit == "interactions/s"
    assert all(figure.commit == ORIGIN.commit for figure in figures.values())


async def test_nothing_to_replay_has_figures_too(client: SiltstoneClient) -> None:
    progress, _ = await replay(client, iter([]))
    assert {figure.value for figure in progress.figures(ORIGIN) if "rate" in figure.name} == {0.0}


@pytest.mark.data
async def test_the_ubuntu_archive_goes_through(client: SiltstoneClient, data_folder: Path) -> None:
    archive = data_folder / "personalization" / "ubuntu-irc" / "ubuntu-irc.tar.gz"
    source = open_source("irc", archive, SourceOptions(salt="test"))
    progress, _ = await replay(client, source, max_interactions=400, is_waiting=True)
    assert (progress.num_recorded, progress.num_refused) == (400, 0)
    assert len(progress.users) > 20
