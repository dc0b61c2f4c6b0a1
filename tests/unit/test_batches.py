"""Calls that travel together: what comes while a hop is under way waits for the next, and each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from siltstone.errors import InvalidInput, Unavailable
from siltstone_services.cluster.batches import Batches


class Sender:
    """Answers with the length of a word, when it is allowed to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.batches: list[list[str]] = []
        self.error: Exception | None = None

    async def __call__(self, words: Sequence[str]) -> list[int | BaseException]:
        self.batches.append(list(words))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [len(word) if word else InvalidInput("word", "one", "none") for word in words]


async def test_what_comes_while_a_hop_is_under_way_waits_for_the_next_and_is_bounded() -> None:
    sender = Sender()
    batches = Batches(sender, max_questions=3)
    asked = [asyncio.create_task(batches.ask("a" * number)) for number in range(1, 2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked += [asyncio.create_task(batches.ask("b" * number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    assert sender.batches == [["a"]]
    sender.may_answer.set()
    assert await asyncio.gather(*asked) == [1, 1, 2, 3, 4, 5]
    assert [len(batch) for batch in sender.batches] == [1, 3, 2]
    assert batches.num_hops == 3
    assert await batches.ask("later") == 5


async def test_one_questions_error_is_its_own_and_a_hops_error_is_everybodys() -> None:
    sender = Sender()
    sender.may_answer.set()
    batches = Batches(sender, max_questions=8)
    told = await asyncio.gather(*map(batches.ask, ["one", "", "three"]), return_exceptions=True)
    assert (told[0], told[2]) == (3, 5)
    assert isinstance(told[1], InvalidInput)
    sender.error = Unavailable("the shard", "it has ended")
    told = await asyncio.gather(*map(batches.ask, ["one", "two"]), return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in told)


async def test_who_has_gone_is_not_asked_for_and_keeps_nobody_waiting() -> None:
    sender = Sender()
    batches = Batches(sender, max_questions=8)
    first = asyncio.create_task(batches.ask("first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone, stays = (asyncio.create_task(batches.ask(word)) for word in ("gone", "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    sender.may_answer.set()
    assert await asyncio.gather(first, stays) == [5, 5]
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert sender.batches == [["first"], ["stays"]]
