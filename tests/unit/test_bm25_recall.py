from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.adapters.bm25_recall import Bm25Recall, Bm25RecallConfig
from siltstone.ports import TextRecall

OTHERS = [
    f"{who} {what}."
    for who in ("My sister", "The printer on our floor", "A colleague", "The new office", "My old car")
    for what in (
        "is called something that I forget",
        "was in Lisbon last week",
        "needs new paper every Monday",
        "costs more than it should",
        "likes the river in the morning",
        "is what I think of first",
        "has a blue door",
        "made me laugh on Friday",
        "will be sold in June",
        "stands next to the stairs",
    )
]
DOG = "My dog is called Biscuit."


def test_the_line_that_answers_is_found_among_fifty_others() -> None:
    lines = [*OTHERS[:20], DOG, *OTHERS[20:]]
    assert len(lines) == 51
    assert Bm25Recall().search(lines, "What is my dog called?", 3)[0] == DOG
    assert DOG not in Bm25Recall().search(OTHERS, "What is my dog called?", 50)


@pytest.mark.parametrize("query", ["Who are my dogs?", "DOG!", "tell me about the dög"])
def test_other_forms_of_a_word_find_it_too(query: str) -> None:
    assert Bm25Recall().search([*OTHERS, DOG], query, 1) == [DOG]


def test_a_line_said_twice_comes_once_and_the_query_itself_does_not_come_back() -> None:
    lines = [DOG, "What is my dog called?", *OTHERS, DOG, "what is my DOG called"]
    found = Bm25Recall().search(lines, "What is my dog called?", 10)
    assert found.count(DOG) == 1
    assert not {"What is my dog called?", "what is my DOG called"} & set(found)


def test_repeating_a_line_does_not_bury_it() -> None:
    lines = [*OTHERS, *[DOG] * 40, "The dog next door barks."]
    assert Bm25Recall().search(lines, "What is my dog called?", 2)[0] == DOG


def test_of_equally_good_lines_the_later_one_is_first() -> None:
    lines = ["I live in Rome.", "I like tea.", "I live in Oslo."]
    assert Bm25Recall().search(lines, "Where do I live?", 2) == ["I live in Oslo.", "I live in Rome."]


@pytest.mark.parametrize(
    ("lines", "query", "max_lines"),
    [
        ([], "What is my dog called?", 3),
        ([DOG], "", 3),
        ([DOG], "?!", 3),
        ([DOG], "Zebra", 3),
        ([DOG], "dog", 0),
        (["", "...", "?"], "dog", 3),
        ([DOG, "I am who I am."], "What is the zebra's?", 3),
    ],
)
def test_nothing_is_found_where_there_is_nothing(lines: list[str], query: str, max_lines: int) -> None:
    assert Bm25Recall().search(lines, query, max_lines) == []


def test_a_query_of_small_words_only_still_searches() -> None:
    assert Bm25Recall().search([*OTHERS, "Who I am: a baker."], "Who am I?", 1) == ["Who I am: a baker."]


_LINES = st.lists(st.text(st.sampled_from("ab é.\n\ud800"), max_size=8), max_size=12)


@given(_LINES, st.text(st.sampled_from("ab é."), max_size=8), st.integers(0, 5))
def test_only_own_lines_come_back_each_once_and_always_the_same(lines: list[str], query: str, max_lines: int) -> None:
    recall = Bm25Recall()
    found = recall.search(lines, query, max_lines)
    assert set(found) <= set(lines)
    assert len(found) == len(set(found)) <= max_lines
    assert recall.search(lines, query, max_lines) == Bm25Recall().search(lines, query, max_lines) == found


def test_one_users_search_never_shows_anothers_line() -> None:
    recall = Bm25Recall()
    assert recall.search([DOG, *OTHERS], "dog", 3) == [DOG]
    assert recall.search(["My dog is called Rex.", *OTHERS], "dog", 3) == ["My dog is called Rex."]
    assert recall.search(OTHERS, "dog", 3) == []


def test_indexes_are_bounded_and_cleared() -> None:
    recall: TextRecall = Bm25Recall(Bm25RecallConfig(max_indexes=2))
    assert isinstance(recall, Bm25Recall)
    for number in range(5):
        recall.search([f"line {number}"], "line", 1)
    assert recall.num_indexes == 2
    recall.clear()
    assert recall.num_indexes == 0


def test_an_unknown_language_is_refused_at_once() -> None:
    with pytest.raises(KeyError):
        Bm25Recall(Bm25RecallConfig(language="klingon"))
