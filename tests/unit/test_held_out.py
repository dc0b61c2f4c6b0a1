"""Who takes no part in a night: enough to test by, and such that the others still agree on most."""

from __future__ import annotations

import pytest

from siltstone.evaluation.office_material import load_office
from siltstone.sleep.filter import Statement
from siltstone.sleep.held_out import choose_held_out, num_held_out
from siltstone.sleep.words import who_said
from siltstone.values import UserKey

K_MIN = 3


def statement(person: str, text: str) -> Statement:
    return Statement(UserKey("office", person), person, text, text, 0)


def office_statements() -> list[Statement]:
    office = load_office()
    shared = [(told.user, told.text) for fact in office.shared for told in fact.statements]
    private = [(user.id, text) for user in office.users for fact in user.facts for text in fact.statements]
    return [statement(person, text) for person, text in (*shared, *private)]


@pytest.mark.parametrize(
    ("num_people", "share", "expected"),
    [(1, 0.15, 0), (4, 0.25, 1), (8, 0.15, 1), (9, 0.15, 3), (12, 0.15, 3), (40, 0.15, 6), (12, 0.0, 0)],
)
def test_three_are_held_out_of_nine_and_a_share_of_many(num_people: int, share: float, expected: int) -> None:
    assert num_held_out(num_people, share, 3) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_office_can_spare_three_people(seed: int) -> None:
    statements = office_statements()
    out = choose_held_out(statements, 0.15, 3, K_MIN, seed)
    assert len(out) == 3
    assert choose_held_out(statements, 0.15, 3, K_MIN, seed) == out
    said = who_said((one.person, one.text) for one in statements if one.person not in out)
    known = {word for word, people in said.items() if len(people) >= K_MIN}
    values = [fact.value for fact in load_office().shared]
    assert sum(all(word.casefold() in known for word in value.split()) for value in values) >= 11
    # The gate asks each of them for something that the others know.
    for person in out:
        assert any(known & set(who_said([(person, one.text)])) for one in statements if one.person == person)


def test_who_knows_what_few_know_is_not_taken_away() -> None:
    told = {"abc": "The printer is Gertrude.", "defghi": "The yard is closed."}
    statements = [statement(name, text) for names, text in told.items() for name in names]
    for seed in range(10):
        out = choose_held_out(statements, 0.15, 3, K_MIN, seed)
        assert out <= set("defghi")
