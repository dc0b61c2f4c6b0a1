"""The engine: answers queue, join, end and are given up, and each is the one decoded alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from decoding import coefficients_of, decode_alone, logits_behind
from tiny import CharTokenizer, world
from torch import Tensor

from siltstone.errors import ConfigInvalid, InvalidInput, Overloaded
from siltstone.inference.engine import AnswerEngine, EngineConfig, Progress
from siltstone.inference.rows import Answer
from siltstone.model.core import forward_keeping
from siltstone.values import FinishReason, Message, Role, Sampling

CONFIG = EngineConfig(num_threads=1, max_answers=4, max_waiting=8, max_prefill_tokens=128, max_context_tokens=160)
GREEDY = Sampling(max_tokens=12)


def prefix() -> tuple[int, ...]:
    return world().plan.prefix_ids


def engine(config: EngineConfig = CONFIG, stop_ids: frozenset[int] = frozenset(), shares: bool = True) -> AnswerEngine:
    here = world()
    with torch.no_grad():
        past = forward_keeping(here.core, torch.tensor([list(prefix())]))[1] if shares else None
    return AnswerEngine(here.core, here.shape, here.basis, prefix() if shares else (), past, stop_ids, config)


@cache
def user(seed: int) -> Tensor:
    return coefficients_of(world(), seed)


def prompt(text: str, system: str = "") -> list[int]:
    messages = [Message(Role.SYSTEM, system)] if system else []
    return CharTokenizer().render([*messages, Message(Role.USER, text)])


def run(engine: AnswerEngine) -> list[Progress]:
    progress = []
    while engine.num_running:
        progress += engine.step()
    return progress


def expected(ids: list[int], coefficients: Tensor | None, max_tokens: int = 12) -> list[int]:
    return decode_alone(world(), ids, coefficients, max_tokens, shared=prefix()).tokens


def test_answers_that_come_and_go_are_those_decoded_alone() -> None:
    asked = engine()
    prompts = [prompt("Hello there"), prompt("?"), prompt("Hi", "Be short."), prompt("x" * 100), prompt("Where?")]
    users = [user(1), None, user(2), user(3), user(1)]
    running: list[tuple[Answer, list[int], Tensor | None]] = []
    for ids, coefficients in zip(prompts, users, strict=True):
        running.append((asked.submit(ids, coefficients, GREEDY), ids, coefficients))
        asked.step()
    run(asked)
    assert len({tuple(answer.tokens) for answer, _, _ in running}) == 5
    for answer, ids, coefficients in running:
        assert answer.tokens == expected(ids, coefficients)


def test_every_token_is_told_once_and_the_end_with_the_last() -> None:
    asked = engine()
    answer = asked.submit(prompt("Hello"), user(1), GREEDY)
    progress = run(asked)
    assert [item.token for item in progress] == answer.tokens
    assert [item.finished for item in progress] == [None] * 11 + [FinishReason.MAX_TOKENS]


def test_an_answer_ends_at_a_stop_which_is_no_part_of_it() -> None:
    free = expected(prompt("Hello"), user(1))
    stop = free[5]
    asked = engine(stop_ids=frozenset({stop}))
    answer = asked.submit(prompt("Hello"), user(1), GREEDY)
    last = run(asked)[-1]
    assert answer.tokens == free[: free.index(stop)]
    assert (last.token, last.finished) == (None, FinishReason.STOP)


def test_an_answer_of_one_token_never_takes_a_row() -> None:
    asked = engine()
    answer = asked.submit(prompt("Hello"), user(1), Sampling(max_tokens=1))
    (item,) = asked.step()
    assert (item.finished, len(answer.tokens), asked.num_running) == (FinishReason.MAX_TOKENS, 1, 0)


def test_a_prompt_and_its_answer_fill_the_context_and_no_more() -> None:
    ids = prompt("y" * 100)
    room = CONFIG.max_context_tokens - len(ids)
    asked = engine()
    answer = asked.submit(ids, None, Sampling(max_tokens=1000))
    assert run(asked)[-1].finished is FinishReason.MAX_TOKENS
    assert len(answer.tokens) == room
    assert answer.tokens == expected(ids, None, room)


def test_the_core_bounds_the_context_that_was_configured() -> None:
    assert engine(replace(CONFIG, max_context_tokens=100_000)).max_context == world().core.config.max_context


@pytest.mark.parametrize("length", [0, CONFIG.max_context_tokens, 10_000])
def test_a_prompt_that_leaves_no_room_is_refused(length: int) -> None:
    asked = engine()
    with pytest.raises(InvalidInput, match=f"expected 1 to 159 tokens, found {length} tokens"):
        asked.submit([1] * length, None, GREEDY)
    assert asked.num_running == 0


def test_more_than_may_wait_are_refused_until_there_is_room() -> None:
    asked = engine()
    waiting = [asked.submit(prompt("Hello"), user(1), GREEDY) for _ in range(8)]
    with pytest.raises(Overloaded) as caught:
        asked.submit(prompt("Hello"), user(1), GREEDY)
    assert (caught.value.limit, caught.value.retry_after_s) == (8, 1.0)
    asked.step()
    late = asked.submit(prompt("Hello"), user(1), GREEDY)
    run(asked)
    assert {tuple(answer.tokens) for answer in [*waiting, late]} == {tuple(expected(prompt("Hello"), user(1)))}


def test_an_answer_given_up_frees_its_place_and_is_told_of_no_more() -> None:
    asked = engine(replace(CONFIG, max_answers=1, max_waiting=2))
    first = asked.submit(prompt("Hello"), user(1), GREEDY)
    asked.step()
    second = asked.submit(prompt("Hi"), user(2), GREEDY)
    third = asked.submit(prompt("Why?"), user(3), GREEDY)
    asked.give_up(first)
    asked.give_up(second)
    assert {id(item.answer) for item in run(asked)} == {id(third)}
    assert (len(first.tokens), second.tokens) == (1, [])
    assert third.tokens == expected(prompt("Why?"), user(3))


def test_an_answer_whose_numbers_are_none_ends_broken_and_alone() -> None:
    asked = engine()
    broken = asked.submit(prompt("Hello"), user(1) * torch.nan, GREEDY)
    sampled = asked.submit(prompt("Hello"), user(1) * torch.nan, Sampling(max_tokens=12, temperature=1.0))
    sound = asked.submit(prompt("Hello"), user(2), GREEDY)
    progress = run(asked)
    assert [id(item.answer) for item in progress if item.is_broken] == [id(broken), id(sampled)]
    assert sound.tokens == expected(prompt("Hello"), user(2))


def test_prompts_are_read_within_their_bound_and_a_longer_one_alone() -> None:
    asked = engine(replace(CONFIG, max_prefill_tokens=2 * len(prompt("a"))))
    for text in ("a", "b", "z" * 80, "c"):
        asked.submit(prompt(text), None, GREEDY)
    assert [len(asked.step()) for _ in range(3)] == [2, 1, 1]


def test_answers_beyond_the_batch_wait_for_a_place() -> None:
    asked = engine(replace(CONFIG, max_answers=2, max_waiting=8))
    answers = [asked.submit(prompt("Hello"), user(seed), GREEDY) for seed in range(5)]
    most = 0
    while asked.num_running:
        most = max(most, len({id(item.answer) for item in asked.step()}))
    assert most == 2
    for seed, answer in enumerate(answers):
        assert answer.tokens == expected(prompt("Hello"), user(seed))


def test_a_shared_prefix_gives_what_reading_it_gives() -> None:
    for text in ("Hello", "Where do I live?"):
        shared, apart = engine(), engine(shares=False)
        with_prefix, without = (one.submit(prompt(text), None, GREEDY) for one in (shared, apart))
        run(shared)
        run(apart)
        assert with_prefix.tokens == without.tokens
        answers = [[1, 2, 3], [4]]
        assert shared.score(prompt(text), answers, None) == [
            (pytest.approx(user, abs=1e-4), pytest.approx(core, abs=1e-4))
            for user, core in apart.score(prompt(text), answers, None)
        ]


def test_a_prompt_that_only_begins_like_the_prefix_is_read_whole() -> None:
    ids = [*prefix()[:-1], 40, 41, 42]
    asked = engine()
    answer = asked.submit(ids, user(1), GREEDY)
    run(asked)
    assert answer.tokens == decode_alone(world(), ids, user(1), 12).tokens
    assert answer.tokens != decode_alone(world(), ids, None, 12).tokens


def test_sampled_answers_do_not_depend_on_who_else_is_answered() -> None:
    sampling = Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=11)
    quiet = engine()
    alone = quiet.submit(prompt("Tell me."), user(1), sampling)
    run(quiet)
    busy = engine()
    for seed in range(3):
        busy.submit(prompt(f"Other {seed}"), user(seed), Sampling(max_tokens=7, temperature=1.0, seed=seed))
    beside = busy.submit(prompt("Tell me."), user(1), sampling)
    run(busy)
    assert beside.tokens == alone.tokens


def by_hand(ids: list[int], continuation: list[int], coefficients: Tensor | None) -> float:
    logs = logits_behind(world(), [*ids, *continuation], coefficients, prefix()).double().log_softmax(-1)
    if tuple(ids[: len(prefix())]) == prefix():
        logs = torch.cat([torch.zeros(len(prefix()), logs.shape[1], dtype=torch.float64), logs])
    start = max(len(ids), 1)
    whole = [*ids, *continuation]
    return sum(float(logs[at - 1, whole[at]]) for at in range(start, len(whole)))


@pytest.mark.parametrize("coefficients", [None, 1])
@pytest.mark.parametrize("asked", ["Hello", ""])
def test_a_score_is_the_sum_of_log_probabilities(coefficients: int | None, asked: str) -> None:
    ids = prompt(asked) if asked else []
    continuations = [[5], [5, 9, 30], [7] * 30, [1, 2]]
    own = None if coefficients is None else user(coefficients)
    scores = engine(replace(CONFIG, max_prefill_tokens=64)).score(ids, continuations, own)
    for continuation, (user_score, core_score) in zip(continuations, scores, strict=True):
        assert user_score == pytest.approx(by_hand(ids, continuation, own), abs=1e-3)
        assert core_score == pytest.approx(by_hand(ids, continuation, None), abs=1e-3)
    assert (scores[2][0] != scores[2][1]) == (coefficients is not None)


def test_without_a_prompt_a_single_token_has_no_score() -> None:
    assert engine().score([], [[5]], user(1)) == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("ids", "continuations", "field"),
    [([1], [], "answers"), ([1], [[1], []], "answers"), ([1], [[1] * 160], "answers"), ([1] * 160, [[1]], "prompt")],
)
def test_what_cannot_be_scored_is_refused(ids: list[int], continuations: list[list[int]], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        engine().score(ids, continuations, None)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["max_answers", "max_waiting", "max_prefill_tokens", "max_context_tokens"])
def test_an_engine_without_room_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        EngineConfig(**{name: 0})
