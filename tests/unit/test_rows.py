"""Rows join and leave in any order, and each is decoded as if it were alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from decoding import Decoded, coefficients_of, decode_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import world
from torch import Tensor

from siltstone.inference.rows import Answer, Rows
from siltstone.model.core import KeyValues, forward_keeping
from siltstone.model.deltas import bend_with
from siltstone.values import Sampling

TOLERANCE = 1e-4
LENGTHS = [1, 5, 40, 127, 128, 130, 9, 2]
"""Of the prompts: both sides of the room the rows start with."""
NUM_STEPS = 8


def prompt_of(index: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(100 + index)
    return tuple(torch.randint(0, 95, (LENGTHS[index],), generator=generator).tolist())


@cache
def coefficients(index: int) -> Tensor | None:
    """Every fourth answer is the bare core's."""
    return None if index % 4 == 3 else coefficients_of(world(), index)


@cache
def alone(index: int) -> Decoded:
    return decode_alone(world(), prompt_of(index), coefficients(index), NUM_STEPS + 1)


@cache
def past_of(index: int) -> KeyValues:
    here = world()
    bend = None
    if (own := coefficients(index)) is not None:
        parts = here.shape.split(own[None])
        bend = bend_with(here.shape, here.basis, {site: list(part.unbind(1)) for site, part in parts.items()})
    with torch.no_grad():
        return forward_keeping(here.core, torch.tensor([prompt_of(index)]), None, bend)[1]


def new_rows() -> Rows:
    return Rows(world().core, world().shape, world().basis)


def join(rows: Rows, index: int) -> Answer:
    answer = Answer(prompt_of(index), coefficients(index), Sampling(), tokens=[alone(index).tokens[0]])
    rows.join(answer, past_of(index), 0, LENGTHS[index])
    return answer


def step(rows: Rows, index_of: dict[int, int]) -> None:
    """Decodes a token of every row and holds it against the answer decoded alone."""
    before = list(rows.answers)
    logits = rows.decode()
    for answer, found in zip(before, logits, strict=True):
        expected = alone(index_of[id(answer)])
        at = len(answer.tokens)
        torch.testing.assert_close(found, expected.logits[at], atol=TOLERANCE, rtol=0)
        answer.tokens.append(int(found.argmax()))
        assert answer.tokens == expected.tokens[: at + 1]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["join", "join", "leave", "step", "step"]), st.integers(0, 7)), max_size=40))
def test_each_answer_is_the_one_decoded_alone_whoever_joins_and_leaves(plan: list[tuple[str, int]]) -> None:
    rows, index_of, kept = new_rows(), {}, []
    for what, number in plan:
        if what == "join":
            answer = join(rows, number)
            kept.append(answer)
            index_of[id(answer)] = number
        elif what == "leave" and rows.answers:
            rows.leave(number % len(rows.answers))
        elif rows.answers:
            for row in reversed(range(len(rows.answers))):
                if len(rows.answers[row].tokens) > NUM_STEPS:
                    rows.leave(row)
            if rows.answers:
                step(rows, index_of)


def test_an_answer_under_another_users_deltas_would_be_noticed() -> None:
    rows = new_rows()
    answer = Answer(prompt_of(2), coefficients(1), Sampling(), tokens=[alone(2).tokens[0]])
    rows.join(answer, past_of(2), 0, LENGTHS[2])
    with pytest.raises(AssertionError):
        step(rows, {id(answer): 2})


def poison(rows: Rows, first: int) -> None:
    """Fills what the rows from `first` on hold with NaN, as an answer does whose numbers overflowed."""
    for tensor in (*rows._keys, *rows._values):
        tensor[first:] = torch.nan
    for deltas in rows._deltas.values():
        deltas[:, first:] = torch.nan


@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_a_freed_row_leaves_nothing_to_the_next(leaving: int) -> None:
    rows, index_of = new_rows(), {}
    for index in (3, 2, 0):
        index_of[id(join(rows, index))] = index
    step(rows, index_of)
    rows.leave(leaving)
    poison(rows, 2)
    for index in (1, 7):
        index_of[id(join(rows, index))] = index
    for _ in range(3):
        step(rows, index_of)


def test_an_answer_that_overflowed_harms_neither_its_neighbours_nor_its_successors() -> None:
    rows, index_of = new_rows(), {}
    index_of[id(join(rows, 1))] = 1
    wild = Answer(prompt_of(2), torch.full_like(coefficients_of(world(), 0), torch.nan), Sampling(), tokens=[3])
    rows.join(wild, past_of(2), 0, LENGTHS[2])
    index_of[id(join(rows, 5))] = 5
    for _ in range(2):
        before = list(rows.answers)
        logits = rows.decode()
        assert logits[1].isnan().all()
        for row in (0, 2):
            index = index_of[id(before[row])]
            torch.testing.assert_close(logits[row], alone(index).logits[len(before[row].tokens)], atol=1e-4, rtol=0)
        for answer in before:
            answer.tokens.append(alone(index_of.get(id(answer), 2)).tokens[len(answer.tokens)])
    rows.leave(1)
    index_of[id(join(rows, 0))] = 0
    step(rows, index_of)


def test_room_that_has_grown_is_not_given_back_and_not_grown_again() -> None:
    rows = new_rows()
    for index in (5, 4, 3, 2, 1):
        join(rows, index)
    grown = rows.num_bytes
    for _ in range(5):
        rows.leave(0)
    for index in (1, 2, 3, 4, 5):
        join(rows, index)
    assert rows.num_bytes == grown
