"""What went wrong at others does not go wrong here: each test is an incident of a system that serves many users."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from pathlib import Path

import pytest
from tiny_home import (
    ADA,
    BEN,
    CLEO,
    DORA,
    add_tiny_core,
    answer,
    asking,
    blob,
    open_host,
    said,
    scores,
    teach,
)

from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.values import AnswerEnd, AnswerPart, Interaction, JournalRecord, UserKey
from siltstone_services.shard import EmbeddedHost

OTHERS = (BEN, CLEO, DORA)
LINES = [
    "I was born in Lisbon and I live in Oslo now.",
    "My dog is called Ferro and he is nine years old.",
    "I keep the keys of the depot in the blue box.",
    "On Fridays I take the early train home.",
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)
    return tmp_path


@pytest.fixture
def other_home(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    add_tiny_core(folder)
    return folder


async def digests(host: EmbeddedHost, *owners: UserKey) -> list[str]:
    return [hashlib.sha256(await blob(host, owner)).hexdigest() for owner in owners]


def about(owner: UserKey, round_: int = 0) -> list[Interaction]:
    return [said(owner, f"{owner.user}-{round_}-{n}", f"{line} So says {owner.user}.") for n, line in enumerate(LINES)]


async def while_running(host: EmbeddedHost, owner: UserKey, disturb: Awaitable[None]) -> tuple[str, AnswerEnd]:
    """Returns a long answer that was being given from before the disturbance until after it."""
    items = host.generate(asking(owner, "Tell me of your day.", 450))
    first = await anext(items)
    await disturb
    assert (await host.status()).num_answers_running == 1, "the answer ended before the disturbance did"
    *rest, end = [item async for item in items]
    assert isinstance(end, AnswerEnd)
    return "".join(part.text for part in (first, *rest) if isinstance(part, AnswerPart)), end


EAGER = {"shard.answers_before_absorb": 1}
"""Absorbing has its turn after every token, so that much happens during one answer."""


async def test_an_answer_under_way_is_not_touched_by_users_who_come_learn_and_leave(home: Path) -> None:
    # A budget of one user: every other one is loaded anew, and drives out the one before.
    async with open_host(home, {**EAGER, "shard.max_resident_bytes": 1}) as host:
        await teach(host, *about(ADA))
        for owner in OTHERS:
            await teach(host, about(owner)[0])
        quiet = [await answer(host, asking(ADA, "Tell me of your day.", 450)) for _ in range(2)]
        assert quiet[0] == quiet[1], "two quiet references differ"
        quiet_scores = await scores(host, ADA)

        async def disturb() -> None:
            for owner in OTHERS:
                await teach(host, about(owner)[1])
                await asyncio.gather(scores(host, owner), answer(host, asking(owner, "And yours?", 4)))
                assert await scores(host, ADA) == quiet_scores
                assert (await host.status()).num_users_resident == 1

        assert await while_running(host, ADA, disturb()) == quiet[0]


async def test_an_answer_keeps_the_state_it_began_with_while_its_own_user_learns(home: Path) -> None:
    async with open_host(home, EAGER) as host:
        await teach(host, *about(ADA))
        quiet = await answer(host, asking(ADA, "Tell me of your day.", 450))
        assert await while_running(host, ADA, teach(host, *about(ADA, 1))) == quiet
        changed = await answer(host, asking(ADA, "Tell me of your day.", 450))
        assert changed[0] != quiet[0]
        assert (quiet[1].snapshot_sequence, changed[1].snapshot_sequence) == (1, 2)


async def test_a_changed_state_never_meets_what_was_cached_for_the_old_one(home: Path, other_home: Path) -> None:
    request = asking(ADA, "Tell me of your day.", 40)
    one = {"shard.max_round_interactions": 1}
    async with open_host(home, one) as host:
        told = [await answer(host, request)]
        for interaction in about(ADA):
            await teach(host, interaction)
            told.append(await answer(host, request))
            assert (await answer(host, request)) == told[-1]
        assert len({text for text, _ in told}) > 1
    async with open_host(other_home, one) as fresh:
        await teach(fresh, *about(ADA))
        assert await answer(fresh, request) == told[-1]


async def test_two_users_with_one_question_get_two_answers(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *about(ADA), *about(BEN, 5), *about(BEN, 6))
        question = "Tell me of your day."
        alone = [await answer(host, asking(owner, question, 40)) for owner in (ADA, BEN, CLEO)]
        assert len({text for text, _ in alone}) == 3
        together = await asyncio.gather(*[answer(host, asking(owner, question, 40)) for owner in (ADA, BEN, CLEO)])
        assert together == alone


async def test_a_new_user_after_a_deleted_active_one_is_exactly_the_core(home: Path) -> None:
    async with open_host(home) as host:
        bare = await answer(host, asking(ADA, "Tell me of your day.", core_only=True))
        await teach(host, *about(ADA))
        running = host.generate(asking(ADA, "Tell me of your day.", 400))
        await anext(running)
        await host.forget(ADA)
        for owner in (BEN, ADA):
            assert (await answer(host, asking(owner, "Tell me of your day.")))[0] == bare[0]
            assert all(user == core for user, core in await scores(host, owner))
            assert (await host.memory(owner)).sequence == 0
        await running.aclose()


async def test_what_is_exported_is_the_users_own_while_another_is_active(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *about(ADA), *about(BEN))
        quiet = await digests(host, ADA)

        async def be_ben() -> None:
            for number in range(3):
                await teach(host, *about(BEN, number + 1))
                await answer(host, asking(BEN, "Hello", 4))

        active = asyncio.ensure_future(be_ben())
        num_exports = 0
        while not active.done():
            export = await host.export(ADA)
            assert export.snapshot is not None
            assert [export.snapshot.digest] == quiet
            assert (export.snapshot.owner, export.card.owner) == (ADA, ADA)
            assert export.snapshot.sequence == export.card.sequence
            assert {record.owner for record in export.journal} == {ADA}
            num_exports += 1
        await active
        assert num_exports > 3
        assert (await host.memory(BEN)).num_interactions == 16


async def test_an_export_during_learning_is_of_one_state(home: Path) -> None:
    async with open_host(home, {"shard.max_round_interactions": 1}) as host:
        receipts = await host.record([*about(ADA), *about(ADA, 1)])
        seen = set()
        while (await host.memory(ADA)).num_interactions < 8:
            export = await host.export(ADA)
            sequence = export.snapshot.sequence if export.snapshot is not None else 0
            assert sequence == export.card.sequence
            seen.add(sequence)
        await host.wait_absorbed(receipts)
        assert len(seen) > 1


async def test_an_evicted_user_comes_back_and_answers_as_before(home: Path) -> None:
    async with open_host(home, {"shard.max_resident_bytes": 1}) as host:
        await teach(host, *about(ADA))
        before = await answer(host, asking(ADA, "Tell me of your day.", 40)), await scores(host, ADA)
        for owner in OTHERS:
            await teach(host, *about(owner))
        assert (await host.status()).num_users_resident == 1
        assert (await host.status()).num_users_stored == 4
        assert (await answer(host, asking(ADA, "Tell me of your day.", 40)), await scores(host, ADA)) == before


async def test_whatever_is_sent_up_to_three_times_is_learned_once(home: Path, other_home: Path) -> None:
    one = {"shard.max_round_interactions": 1}
    stream = [interaction for owner in (ADA, BEN) for interaction in about(owner)[:3]]
    async with open_host(home, one) as host:
        await teach(host, *stream)
        once = await digests(host, ADA, BEN)
    async with open_host(other_home, one) as host:
        for number, interaction in enumerate(stream):
            await teach(host, *[interaction] * (number % 3 + 1))
            await host.record(stream[: number + 1])
        await teach(host, *stream, *stream)
        assert await digests(host, ADA, BEN) == once
        assert (await host.status()).num_absorbed == len(stream)


class StutteringJournal(SqliteJournal):
    """Gives every record twice and more, at new positions, as a broker does whose client sent again."""

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        real = super().read(partition, 0, 1_000_000)
        stuttered = [record for record in real for _ in range(3)]
        moved = [
            JournalRecord(partition, position, record.owner, record.interaction_id, record.payload)
            for position, record in enumerate(stuttered)
        ]
        return moved[start : start + max_records]

    def end_positions(self) -> dict[int, int]:
        return {partition: 3 * end for partition, end in super().end_positions().items()}


@pytest.mark.parametrize("at_once", [1, 64])
async def test_a_journal_that_repeats_itself_gives_the_same_memory(home: Path, other_home: Path, at_once: int) -> None:
    stream = about(ADA)
    async with open_host(home, {"shard.max_round_interactions": 1}) as host:
        await teach(host, *stream)
        expected = await host.memory(ADA)
        once = await scores(host, ADA)
    async with open_host(other_home, {"shard.max_round_interactions": at_once}, StutteringJournal) as host:
        await host.record(stream)
        while (await host.status()).lag_interactions:
            await asyncio.sleep(0.01)
        card = await host.memory(ADA)
        assert (card.num_interactions, card.position_tokens) == (4, expected.position_tokens)
        assert [level.num_updates for level in card.levels] == [level.num_updates for level in expected.levels]
        for (found, _), (wanted, _) in zip(await scores(host, ADA), once, strict=True):
            assert found == pytest.approx(wanted, abs=1e-3)
        if at_once == 1:
            # What was known already is not written again.
            assert card == expected


async def test_forgetting_one_user_leaves_every_other_to_the_bit(home: Path) -> None:
    async with open_host(home) as host:
        for owner in (ADA, *OTHERS):
            await teach(host, *about(owner))
        before = await digests(host, *OTHERS)
        journals = [len((await host.export(owner)).journal) for owner in OTHERS]
        assert (await host.forget(ADA)).had_memory
        assert await digests(host, *OTHERS) == before
        assert [len((await host.export(owner)).journal) for owner in OTHERS] == journals == [4, 4, 4]
        assert (await host.status()).num_users_stored == 3
    async with open_host(home) as host:
        assert await digests(host, *OTHERS) == before


async def test_what_is_shorter_than_a_chunk_is_not_lost(home: Path, other_home: Path) -> None:
    long_periods = {"memory.fast.period_tokens": 200, "memory.mid.period_tokens": 400}
    bits = [said(ADA, f"a{n}", text) for n, text in enumerate(["Hi.", "I am Ada.", "Oslo!", "My dog is called Ferro."])]
    async with open_host(home, {**long_periods, "shard.max_round_interactions": 1}) as host:
        tokens = []
        for interaction in bits:
            await teach(host, interaction)
            card = await host.memory(ADA)
            tokens.append(card.levels[0].open_tokens + 200 * card.levels[0].num_updates)
            assert tokens[-1] == card.position_tokens
        assert tokens == sorted(set(tokens)), "a write left no trace"
        assert tokens[0] < 200
        many = [said(ADA, f"b{n}", LINES[n % 4]) for n in range(4)]
        await teach(host, *many)
        assert (await host.memory(ADA)).levels[0].num_updates > 0
        bit_by_bit = await scores(host, ADA)
    async with open_host(other_home, long_periods) as host:
        await teach(host, *bits, *many)
        for (found, core), (wanted, _) in zip(await scores(host, ADA), bit_by_bit, strict=True):
            assert found == pytest.approx(wanted, abs=1e-3)
            assert found != core


async def test_a_long_stream_stays_finite_and_bounded(home: Path) -> None:
    async with open_host(home, {"memory.fast.max_norm": 2.0, "memory.mid.max_norm": 2.0}) as host:
        sizes = []
        for number in range(5):
            await teach(host, *about(ADA, number))
            card = await host.memory(ADA)
            sizes.append(card.size_bytes)
            assert all(level.drift <= 2.0 * 1.0001 for level in card.levels)
        assert (await host.status()).num_parked == 0
        assert sizes[-1] - sizes[0] < 65_536
