"""The office's material holds what the measurements rely on, and material that does not is refused."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest

from siltstone.errors import ConfigInvalid, NotFound
from siltstone.evaluation.office_material import load_office, mentions, parse_office

Tables = dict[str, Any]


@pytest.fixture
def tables() -> Tables:
    folder = resources.files("siltstone.evaluation").joinpath("office")
    names = ("users", "others", "shared", "neutral")
    return {name: tomllib.loads(folder.joinpath(f"{name}.toml").read_text("utf-8")) for name in names}


def first_fact(tables: Tables) -> dict[str, Any]:
    fact: dict[str, Any] = tables["users"]["users"][0]["facts"][0]
    return fact


def test_twelve_users_give_twelve_candidates_in_every_slot() -> None:
    office = load_office()
    assert len(office.slots) == 8
    for slot in office.slots:
        assert len(set(office.values(slot))) == 12
        for number, user in enumerate(office.users):
            assert office.values(slot)[number] == user.fact(slot).value


def test_no_user_says_the_value_of_another_fact_or_user() -> None:
    office = load_office()
    values = {value for slot in office.slots for value in office.values(slot)} | {fact.value for fact in office.shared}
    said = [(fact.value, text) for user in office.users for fact in user.facts for text in fact.statements]
    said += [(fact.value, statement.text) for fact in office.shared for statement in fact.statements]
    for own, text in said:
        assert {value for value in values if mentions(text, value)} == {own}, text


def test_a_paraphrase_names_exactly_one_value_and_that_of_its_own_user() -> None:
    office = load_office()
    values = {value for slot in office.slots for value in office.values(slot)}
    for user in office.users:
        own = {fact.value for fact in user.facts}
        for sentence in user.paraphrases:
            named = {value for value in values if mentions(sentence, value)}
            assert len(named) == 1, sentence
            assert named <= own, sentence


def test_no_statement_gives_the_question_or_the_answer_as_it_will_be_asked() -> None:
    office = load_office()
    for user in office.users:
        for fact in user.facts:
            for text in fact.statements:
                assert fact.question not in text
                assert fact.answer_stem not in text


def test_anchors_and_held_out_passages_share_styles_but_no_long_run_of_words() -> None:
    office = load_office()
    assert {passage.style for passage in office.anchors} == {passage.style for passage in office.held_out}

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[start : start + 7]) for start in range(len(words) - 6)}

    seen = set[tuple[str, ...]]().union(*(runs(passage.text) for passage in office.anchors))
    for passage in office.held_out:
        assert not seen & runs(passage.text), passage.text


def test_a_user_or_slot_that_is_not_there_is_not_found() -> None:
    office = load_office()
    assert office.user("maya").name == "Maya"
    with pytest.raises(NotFound):
        office.user("nobody")
    with pytest.raises(NotFound):
        office.user("maya").fact("shoe_size")


def test_a_value_is_mentioned_only_as_whole_words() -> None:
    assert mentions("My birthday is in May.", "May")
    assert not mentions("Maybe it is in June, or it may not be.", "May")


def _drop_a_user(tables: Tables) -> None:
    tables["users"]["users"].pop()
    tables["others"]["users"].pop()


def _repeat_a_value(tables: Tables) -> None:
    users = tables["users"]["users"]
    users[1]["facts"][0] = copy.deepcopy(users[0]["facts"][0])


def _swap_slots(tables: Tables) -> None:
    facts = tables["users"]["users"][3]["facts"]
    facts[0], facts[1] = facts[1], facts[0]


def _ask(tables: Tables) -> None:
    first_fact(tables)["statements"][0] = "Did you know that I was born in Lisbon?"


def _leave_the_value_out(tables: Tables) -> None:
    first_fact(tables)["statements"][0] = "I was born in a city by the sea."


def _say_too_little(tables: Tables) -> None:
    first_fact(tables)["statements"][0] = "Born in Lisbon."


def _lose_the_connection(tables: Tables) -> None:
    first_fact(tables)["question"] = "What does the passport say?"


def _give_the_answer_away(tables: Tables) -> None:
    first_fact(tables)["answer_stem"] = "You are from Lisbon, so you were born in"


def _misspell_a_field(tables: Tables) -> None:
    first_fact(tables)["anwser_stem"] = first_fact(tables).pop("answer_stem")


def _repeat_a_statement_as_paraphrase(tables: Tables) -> None:
    tables["others"]["users"][0]["sentences"][0] = first_fact(tables)["statements"][0]


def _paraphrase_a_stranger(tables: Tables) -> None:
    tables["others"]["users"][0]["id"] = "nobody"


def _let_a_stranger_speak(tables: Tables) -> None:
    tables["shared"]["facts"][0]["statements"][0]["user"] = "nobody"


def _offer_the_right_value_as_wrong(tables: Tables) -> None:
    tables["shared"]["facts"][0]["alternatives"][0] = tables["shared"]["facts"][0]["value"]


def _let_too_few_speak(tables: Tables) -> None:
    del tables["shared"]["facts"][0]["statements"][4:]


def _leak_a_value_into_neutral_text(tables: Tables) -> None:
    tables["neutral"]["held_out"][0]["text"] += " It grows in Lisbon too."


def _use_an_anchor_as_held_out(tables: Tables) -> None:
    tables["neutral"]["held_out"][0] = dict(tables["neutral"]["anchors"][0])


def _cut_a_passage_short(tables: Tables) -> None:
    tables["neutral"]["anchors"][0]["text"] = "A tidal pool looks still."


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_drop_a_user, "expected 12 entries, found 11"),
        (_repeat_a_value, "two entries are the same"),
        (_swap_slots, "must have the slots"),
        (_ask, "must not ask"),
        (_leave_the_value_out, "must contain 'Lisbon'"),
        (_say_too_little, "6 to 20 words"),
        (_lose_the_connection, "in common with the question"),
        (_give_the_answer_away, "the stem before"),
        (_misspell_a_field, "missing, unknown"),
        (_repeat_a_statement_as_paraphrase, "repeats a statement"),
        (_paraphrase_a_stranger, "missing, unknown"),
        (_let_a_stranger_speak, "5 to 9 of the users"),
        (_offer_the_right_value_as_wrong, "two entries are the same"),
        (_let_too_few_speak, "5 to 9 of the users"),
        (_leak_a_value_into_neutral_text, "'Lisbon' is a value"),
        (_use_an_anchor_as_held_out, "two entries are the same"),
        (_cut_a_passage_short, "60 to 120 words"),
    ],
)
def test_spoiled_material_is_refused(tables: Tables, spoil: Callable[[Tables], None], complaint: str) -> None:
    assert parse_office(**tables) == load_office()
    spoil(tables)
    with pytest.raises(ConfigInvalid, match=complaint):
        parse_office(**tables)
