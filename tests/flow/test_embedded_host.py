"""The host in one process, over the real core store, journal and snapshot store: what is said is learned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_home import (
    ADA,
    BEN,
    CLEO,
    add_tiny_core,
    answer,
    asking,
    blob,
    open_host,
    said,
    scores,
    teach,
    tiny_config,
)

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, Overloaded, SnapshotMismatch, Unavailable
from siltstone.memory.user_memory import from_blob
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Consent,
    FinishReason,
    Interaction,
    Message,
    Receipt,
    Role,
    UserKey,
)
from siltstone_services.prompts import with_recalled

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


async def test_what_is_absorbed_changes_the_next_answer_of_that_user_only(home: Path) -> None:
    async with open_host(home) as host:
        before = {owner: await scores(host, owner) for owner in (ADA, BEN)}
        text, end = await answer(host, asking(ADA, "Where do I live?"))
        assert (end.core, end.snapshot_sequence) == (host.version, 0)
        assert all(user == core for user, core in before[ADA])
        await teach(host, *[said(ADA, f"a{n}", line) for n, line in enumerate(LINES)])
        after = await scores(host, ADA)
        assert all(user != core for user, core in after)
        assert [core for _, core in after] == [core for _, core in before[ADA]]
        assert await scores(host, BEN) == before[BEN]
        changed, changed_end = await answer(host, asking(ADA, "Where do I live?"))
        assert changed != text
        assert (changed_end.core, changed_end.snapshot_sequence) == (host.version, 1)
        assert (await answer(host, asking(BEN, "Where do I live?")))[0] == text
        bare, bare_end = await answer(host, asking(ADA, "Where do I live?", core_only=True))
        assert (bare, bare_end.snapshot_sequence) == (text, 0)


async def test_a_card_counts_what_was_learned(home: Path) -> None:
    async with open_host(home) as host:
        empty = await host.memory(ADA)
        assert (empty.sequence, empty.num_interactions, empty.core) == (0, 0, host.version)
        assert empty.size_bytes == 0
        await teach(host, *[said(ADA, f"a{n}", line) for n, line in enumerate(LINES)])
        card = await host.memory(ADA)
        assert (card.sequence, card.num_interactions, card.reservoir_entries) == (1, 4, 4)
        assert [level.name for level in card.levels] == ["fast", "mid"]
        assert all(level.num_updates > 0 and level.drift > 0 for level in card.levels)
        assert all(level.open_tokens == card.position_tokens % level.period_tokens for level in card.levels)
        status = await host.status()
        assert (status.num_absorbed, status.num_parked, status.lag_interactions) == (4, 0, 0)
        assert (status.num_users_stored, status.num_users_resident, status.core) == (1, 1, host.version)
        assert status.absorbed_tokens == card.position_tokens


async def test_an_exchange_is_learned_with_consent_and_only_then(home: Path) -> None:
    async with open_host(home) as host:
        for consent, id_ in ((Consent(learn=False), "x1"), (Consent(learn=True), "")):
            _, end = await answer(host, asking(ADA, LINES[0], interaction_id=id_, consent=consent))
            assert end.recorded is None
        assert (await host.export(ADA)).journal == ()
        _, end = await answer(host, asking(ADA, LINES[0], interaction_id="x2", consent=Consent(learn=True)))
        assert end.recorded is not None
        await host.wait_absorbed([end.recorded])
        assert (await host.memory(ADA)).num_interactions == 1
        (record,) = (await host.export(ADA)).journal
        assert record.interaction_id == "x2"
        assert LINES[0].encode() in record.payload
        _, end = await answer(host, asking(ADA, LINES[0], interaction_id="x2", consent=Consent(learn=True)))
        assert end.recorded is not None
        assert end.recorded.duplicate
        assert (await host.memory(ADA)).num_interactions == 1


async def test_an_answer_in_pieces_is_the_whole_and_ends_as_it_should(home: Path) -> None:
    async with open_host(home) as host:
        items = [item async for item in host.generate(asking(ADA, "Tell me.", max_tokens=40))]
        end = items[-1]
        assert isinstance(end, AnswerEnd)
        assert all(isinstance(item, AnswerPart) and item.text for item in items[:-1])
        assert (end.num_answer_tokens < 40) == (end.reason is FinishReason.STOP)
        longer, longer_end = await answer(host, asking(ADA, "Tell me.", max_tokens=60))
        shorter, _ = await answer(host, asking(ADA, "Tell me.", max_tokens=40))
        assert longer.startswith(shorter.rstrip("\ufffd"))
        assert longer_end.num_prompt_tokens == end.num_prompt_tokens


async def test_a_conversation_that_does_not_fit_is_refused_and_harms_nobody(home: Path) -> None:
    async with open_host(home) as host:
        with pytest.raises(InvalidInput, match="messages"):
            await answer(host, asking(ADA, "long " * 200))
        with pytest.raises(InvalidInput, match="messages"):
            await answer(host, replace(asking(ADA, "x"), messages=(Message(Role.ASSISTANT, "x"),)))
        with pytest.raises(InvalidInput, match="prompt"):
            await host.score(ADA, [Message(Role.USER, "long " * 200)], ["yes"])
        with pytest.raises(InvalidInput, match="answers"):
            await host.score(ADA, [Message(Role.USER, "short")], ["yes", ""])
        assert (await answer(host, asking(ADA, "short")))[1].num_answer_tokens > 0


async def test_text_recall_puts_the_users_own_lines_before_the_question(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *[said(ADA, f"a{n}", line) for n, line in enumerate(LINES)])
        question = "What is my dog called?"
        asked = {mode: await answer(host, asking(ADA, question, recall=mode)) for mode in ("weights", "text", "both")}
        assert asked["weights"][1].recalled == ()
        assert asked["text"][1].recalled == asked["both"][1].recalled == (LINES[1],)
        assert asked["text"][1].num_prompt_tokens > asked["weights"][1].num_prompt_tokens
        # Text alone bends nothing: it is the bare core's answer to the same prompt.
        told = tuple(with_recalled([Message(Role.USER, question)], [LINES[1]]))
        assert asked["text"][0] == (await answer(host, replace(asking(ADA, "", core_only=True), messages=told)))[0]
        assert asked["both"][0] == (await answer(host, replace(asking(ADA, ""), messages=told)))[0]
        # What both adds to text is the bend: the same prompt has other likelihoods. (Greedy words of a core without
        # language may agree all the same.)
        [(bent, plain)] = await host.score(ADA, told, ["x"])
        assert bent != plain
        other = await answer(host, asking(BEN, question, recall="both"))
        assert other[1].recalled == ()


async def test_recalled_lines_give_way_to_the_question(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *[said(ADA, f"a{n}", f"My dog {n} is called Ferro. " + "word " * 20) for n in range(4)])
        _, short = await answer(host, asking(ADA, "What is my dog called?", recall="text"))
        _, long = await answer(host, asking(ADA, "What is my dog called? " + "well " * 40, recall="text"))
        assert 0 < len(long.recalled) < len(short.recalled)
        assert long.num_prompt_tokens < 512


async def test_a_stopped_host_opens_with_the_same_memory_and_goes_on_as_if_it_had_never_stopped(
    home: Path, tmp_path: Path
) -> None:
    one = {"shard.max_round_interactions": 1}
    interactions = [said(ADA, f"a{n}", line) for n, line in enumerate(LINES)]
    blobs = []
    for number in range(len(LINES)):
        async with open_host(home, one) as host:
            if blobs:
                assert await blob(host, ADA) == blobs[-1]
            await teach(host, interactions[number])
            blobs.append(await blob(host, ADA))
            open_tokens = [level.open_tokens for level in (await host.memory(ADA)).levels]
            assert any(open_tokens), "no chunk was open at the restart"
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    add_tiny_core(unbroken)
    async with open_host(unbroken, one) as host:
        for number, interaction in enumerate(interactions):
            await teach(host, interaction)
            assert await blob(host, ADA) == blobs[number]


async def test_what_waits_in_the_journal_is_absorbed_after_a_start(home: Path) -> None:
    config = tiny_config(home)
    with SqliteFile(home / "siltstone.db", config.store) as file:
        receipts = SqliteJournal(file).append([said(ADA, f"a{n}", line) for n, line in enumerate(LINES)])
    async with open_host(home) as host:
        await host.wait_absorbed(receipts)
        assert (await host.memory(ADA)).num_interactions == 4


async def test_forgetting_one_user_again_and_again_does_not_keep_the_others_from_learning(home: Path) -> None:
    async with open_host(home) as host:
        waiting = await host.record([said(CLEO, f"c{n}", LINES[n % 4]) for n in range(8)])
        learned = asyncio.create_task(host.wait_absorbed(waiting))
        num_forgotten = 0
        async with asyncio.timeout(300):
            while not learned.done():
                await host.forget(ADA)
                num_forgotten += 1
        await learned
        tokens = (await host.status()).absorbed_tokens
        assert num_forgotten > 3
    again = home / "again"
    again.mkdir()
    add_tiny_core(again)
    async with open_host(again) as host:
        await teach(host, *[said(CLEO, f"c{n}", LINES[n % 4]) for n in range(8)])
        # Nothing was learned twice over.
        assert (await host.status()).absorbed_tokens == tokens


async def test_one_users_long_story_is_taken_in_over_several_rounds(home: Path) -> None:
    async with open_host(home, {"shard.max_round_user_bytes": 1}) as host:
        waiting = await host.record([said(ADA, f"a{n}", LINES[n % 4]) for n in range(6)])
        await host.wait_absorbed(waiting)
        memory = await host.memory(ADA)
        assert (memory.num_interactions, memory.sequence) == (6, 6)


async def test_forgetting_during_a_round_leaves_nothing_of_the_user_and_all_of_the_others(home: Path) -> None:
    async with open_host(home) as host:
        quiet = await scores(host, ADA)
        await teach(host, said(ADA, "a0", LINES[0]), said(CLEO, "c0", LINES[1]))
        waiting = await host.record([said(owner, f"late{n}", LINES[n % 4]) for n in range(12) for owner in (ADA, CLEO)])
        erasure = await host.forget(ADA)
        assert (erasure.had_memory, erasure.num_interactions) == (True, 13)
        await host.wait_absorbed(waiting)
        assert await scores(host, ADA) == quiet
        assert (await host.memory(ADA)).sequence == 0
        export = await host.export(ADA)
        assert (export.snapshot, export.journal, export.parked) == (None, (), ())
        assert (await host.memory(CLEO)).num_interactions == 13
        again = await host.forget(ADA)
        assert (again.had_memory, again.num_interactions) == (False, 0)


async def test_forgotten_words_are_in_no_byte_of_the_file(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", LINES[1]), said(CLEO, "c0", LINES[2]))
        assert LINES[1].encode() in b"".join(path.read_bytes() for path in home.glob("siltstone.db*"))
        # A core may be in training on what people said.
        (home / "training").mkdir()
        (home / "training" / "items.json").write_text(LINES[1])
        await host.forget(ADA)
        assert not (home / "training").exists()
        left = b"".join(path.read_bytes() for path in home.glob("siltstone.db*"))
        assert b"Ferro" not in left
        assert b"blue box" in left


async def test_a_forgotten_users_running_answer_ends_and_is_not_learned(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *[said(owner, f"{owner.user}{n}", LINES[n]) for n in range(4) for owner in (ADA, BEN)])
        request = asking(ADA, "Tell me.", 300, interaction_id="x", consent=Consent(learn=True))
        mine, others = host.generate(request), host.generate(asking(BEN, "Tell me.", 30))
        await anext(mine)
        await anext(others)
        await host.forget(ADA)
        with pytest.raises(Unavailable, match="its user was forgotten"):
            async for _ in mine:
                pass
        assert isinstance([item async for item in others][-1], AnswerEnd)
        assert (await host.export(ADA)).journal == ()


async def test_a_forgotten_user_can_be_known_anew(home: Path) -> None:
    async with open_host(home, {"shard.max_round_interactions": 1}) as host:
        await teach(host, said(ADA, "a0", LINES[0]))
        first = await scores(host, ADA)
        await host.forget(ADA)
        await teach(host, said(ADA, "b0", LINES[0]))
        assert (await host.memory(ADA)).sequence == 1
        # Another id gives other cues to rehearse with; what was said is the same.
        assert await scores(host, ADA) != first
        assert all(user != core for user, core in await scores(host, ADA))


async def test_too_much_lag_is_refused_and_taken_again_once_absorbed(home: Path) -> None:
    async with open_host(home, {"shard.max_lag_interactions": 4}) as host:
        first = await host.record([said(ADA, f"a{n}", LINES[n]) for n in range(4)])
        with pytest.raises(Overloaded) as caught:
            await host.record([said(ADA, "a9", LINES[0])])
        assert (caught.value.limit, caught.value.retry_after_s) == (4, 0.05)
        with pytest.raises(Overloaded):
            await answer(host, asking(BEN, "Hi", interaction_id="x", consent=Consent(learn=True)))
        assert (await answer(host, asking(BEN, "Hi")))[1].recorded is None
        await host.wait_absorbed(first)
        await teach(host, said(ADA, "a9", LINES[0]))
        # Nothing waits: even what is more than the limit by itself is taken.
        await teach(host, *[said(BEN, f"b{n}", LINES[n % 4]) for n in range(6)])
        assert ((await host.memory(ADA)).num_interactions, (await host.memory(BEN)).num_interactions) == (5, 6)


async def test_many_at_once_cannot_pass_the_limit_together(home: Path) -> None:
    async with open_host(home, {"shard.max_lag_interactions": 8}) as host:
        calls = [host.record([said(ADA, f"a{n}-{m}", LINES[m]) for m in range(4)]) for n in range(10)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in done if isinstance(one, Overloaded)]
        assert len(refused) >= 7
        await host.wait_absorbed([receipt for one in done if isinstance(one, list) for receipt in one])


async def test_an_answer_given_up_makes_room_at_once(home: Path) -> None:
    async with open_host(home, {"engine.max_answers": 1, "engine.max_waiting": 1}) as host:
        running, waiting = host.generate(asking(ADA, "Tell me.", 400)), host.generate(asking(BEN, "Tell me.", 400))
        await anext(running)
        second = asyncio.ensure_future(anext(waiting))
        while (await host.status()).num_answers_running < 2:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await answer(host, asking(CLEO, "Tell me."))
        await running.aclose()
        await second
        await waiting.aclose()
        assert (await answer(host, asking(CLEO, "Tell me.")))[1].num_answer_tokens > 0
        assert (await host.status()).num_answers_running == 0


async def test_a_caller_who_leaves_before_the_answer_begins_leaves_no_answer_running(home: Path) -> None:
    async with open_host(home) as host:
        for _ in range(20):
            call = asyncio.ensure_future(answer(host, asking(ADA, "Tell me.", 400)))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert (await host.status()).num_answers_running == 0


class SlowJournal(SqliteJournal):
    """Says when a write has begun, and ends it when it is let."""

    begun, may_end = threading.Event(), threading.Event()

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        self.begun.set()
        self.may_end.wait()
        return super().append(interactions)


async def test_a_caller_who_leaves_while_recording_leaves_nothing_unnoticed(home: Path) -> None:
    async with open_host(home, journal_of=SlowJournal) as host:
        call = asyncio.ensure_future(host.record([said(ADA, "a0", LINES[0])]))
        while not SlowJournal.begun.is_set():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        SlowJournal.may_end.set()
        while (await host.memory(ADA)).num_interactions == 0:
            await asyncio.sleep(0.01)


async def test_answers_go_on_while_much_is_absorbed_and_absorbing_while_much_is_answered(home: Path) -> None:
    async with open_host(home) as host:
        receipts = await host.record([said(ADA, f"a{n}", LINES[n % 4]) for n in range(16)])
        text, _ = await answer(host, asking(BEN, "Hello", 8))
        assert text
        assert (await host.status()).lag_interactions > 0

        async def keep_asking() -> None:
            while True:
                await answer(host, asking(BEN, "Hello", 100))

        callers = [asyncio.ensure_future(keep_asking()) for _ in range(3)]
        await host.wait_absorbed(receipts)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert (await host.memory(ADA)).num_interactions == 16


async def test_a_host_that_stops_logs_what_still_waits(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with open_host(home, {"shard.gather_wait_s": 30.0}) as host:
        receipts = await host.record([said(ADA, f"a{n}", LINES[0]) for n in range(3)])
    async with open_host(home) as host:
        await host.wait_absorbed(receipts)
    stops = [record for record in caplog.records if record.message == "shard stopped"]
    assert [vars(record)["num_waiting"] for record in stops] == [3, 0]


async def test_a_host_that_was_stopped_says_so(home: Path) -> None:
    async with open_host(home) as host:
        items = host.generate(asking(ADA, "Tell me.", 400))
        await anext(items)
        late = [host._ask(lambda: None)]
    with pytest.raises(Unavailable, match="the shard is unavailable: it was stopped"):
        async for _ in items:
            pass
    for call in (*late, host.status(), host.memory(ADA), host.record([said(ADA, "a0", LINES[0])])):
        with pytest.raises(Unavailable, match="it was stopped"):
            await call


async def test_a_memory_of_another_shape_is_named_and_kept_and_what_comes_is_parked(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a0", LINES[0]))
        kept = await blob(host, ADA)
    async with open_host(home, {"memory.rank": 3}) as host:
        with pytest.raises(SnapshotMismatch):
            await host.memory(ADA)
        export = await host.export(ADA)
        assert (export.damage, export.card.sequence, len(export.journal)) == (None, 1, 1)
        assert export.snapshot is not None
        assert export.snapshot.blob == kept
        await teach(host, said(ADA, "a1", LINES[1]), said(BEN, "b0", LINES[1]))
        assert (await host.status()).num_parked == 1
        assert (await host.memory(BEN)).num_interactions == 1
    async with open_host(home) as host:
        assert await blob(host, ADA) == kept
        (parked,) = (await host.export(ADA)).parked
        assert (parked.interaction_id, parked.reason) == ("a1", "snapshot_mismatch")


async def test_a_stored_memory_reads_back_as_its_card_says(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, *[said(ADA, f"a{n}", line) for n, line in enumerate(LINES)])
        export = await host.export(ADA)
        assert export.snapshot is not None
        memory = from_blob(ADA, export.snapshot.blob, host.version, host._shard._shape)
        assert memory.card(tiny_config(home).memory) == export.card
        assert len(export.snapshot.blob) >= export.card.size_bytes


async def test_a_read_basis_that_is_damaged_is_refused_and_one_that_is_whole_is_kept(home: Path) -> None:
    async with open_host(home) as host:
        version = host.version
    async with open_host(home) as host:
        assert host.version == version
    (path,) = (home / "bases").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="basis"):
        async with open_host(home):
            pass
    path.unlink()
    with pytest.raises(Corrupt, match="no file"):
        async with open_host(home):
            pass


async def test_lessons_are_cut_to_the_context_of_a_small_core(home: Path) -> None:
    async with open_host(home, {"lessons.max_lesson_tokens": 100_000}) as host:
        await teach(host, said(ADA, "a0", "A long story of many words. " * 60))
        assert (await host.memory(ADA)).num_interactions == 1
        assert (await answer(host, asking(ADA, "And then?")))[1].snapshot_sequence == 1


def test_users_of_one_name_in_two_tenants_are_two() -> None:
    assert UserKey("office", "ada") != UserKey("depot", "ada")
    with pytest.raises(ConfigInvalid, match="max_round_interactions"):
        tiny_config(Path("nowhere"), {"shard.max_round_interactions": 0})


async def test_a_memory_learned_in_one_precision_answers_and_learns_on_in_the_other(home: Path) -> None:
    async with open_host(home) as host:
        await teach(host, said(ADA, "a1", LINES[0]), said(ADA, "a2", LINES[1]))
        single = await scores(host, ADA)
    async with open_host(home, {"engine.dtype": "bfloat16"}) as host:
        half = await scores(host, ADA)
        assert (await host.memory(ADA)).num_interactions == 2
        assert all(user != core for user, core in half), "the memory bends the core in this precision too"
        for (user, core), (expected_user, expected_core) in zip(half, single, strict=True):
            assert (user, core) != (expected_user, expected_core)
            assert user - core == pytest.approx(expected_user - expected_core, rel=0.1, abs=0.2)
        await teach(host, said(ADA, "a3", LINES[2]))
        assert (await answer(host, asking(ADA, "Where are the keys?")))[1].num_answer_tokens > 0
    async with open_host(home) as host:
        assert (await host.memory(ADA)).num_interactions == 3
