"""No token of a target is raised unless enough people have said its word and enough memories hold it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid, InvalidInput
from siltstone.sleep.consensus import ConsensusConfig, consensus

PEOPLE = ("ada", "bob", "cleo", "dan", "eve")
CONFIG = ConsensusConfig(k_min=3, evidence_nats=1.0)
logs = st.floats(-30, -1e-6)


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[float], list[list[float]], list[str], list[frozenset[str]]]:
    num_tokens, num_accounts = draw(st.integers(1, 4)), draw(st.integers(0, 8))
    core = draw(st.lists(logs, min_size=num_tokens, max_size=num_tokens))
    rows = [draw(st.lists(logs, min_size=num_tokens, max_size=num_tokens)) for _ in range(num_accounts)]
    people = [draw(st.sampled_from(PEOPLE)) for _ in range(num_accounts)]
    said = [draw(st.frozensets(st.sampled_from(PEOPLE))) for _ in range(num_tokens)]
    return core, rows, people, said


@given(reading=readings(), k_min=st.integers(2, 4))
def test_fewer_than_k_people_raise_nothing(
    reading: tuple[list[float], list[list[float]], list[str], list[frozenset[str]]], k_min: int
) -> None:
    core, rows, people, said = reading
    config = ConsensusConfig(k_min=k_min)

    for one in consensus(core, rows, people, said, config):
        behind = {
            person
            for person, row in zip(people, rows, strict=True)
            if person in said[one.at] and row[one.at] - core[one.at] >= config.evidence_nats
        }
        assert len(behind) == one.support >= k_min
        assert math.exp(core[one.at]) < one.probability < 1


@given(reading=readings(), k_min=st.integers(2, 4))
def test_nobody_is_asked_whose_word_it_is_not(
    reading: tuple[list[float], list[list[float]], list[str], list[frozenset[str]]], k_min: int
) -> None:
    core, rows, people, said = reading
    config = ConsensusConfig(k_min=k_min)
    before = consensus(core, rows, people, said, config)
    loud = [
        [0.0 - 1e-6 if person not in said[at] else value for at, value in enumerate(row)]
        for person, row in zip(people, rows, strict=True)
    ]

    assert consensus(core, loud, people, said, config) == before


def agree(num: int, said: frozenset[str], held: float = -0.5) -> list[float]:
    found = consensus([-9.0], [[held]] * num, PEOPLE[:num], [said], CONFIG)
    return [one.probability for one in found]


def test_k_people_who_hold_what_they_said_raise_it() -> None:
    everybody = frozenset(PEOPLE)

    assert agree(2, everybody) == []
    assert agree(3, frozenset(PEOPLE[:2])) == []
    assert agree(3, everybody, held=-8.5) == []
    assert agree(3, everybody)[0] >= math.exp(-0.5)


def test_two_accounts_of_one_person_are_one_person() -> None:
    rows, said = [[-0.1]] * 4, [frozenset(PEOPLE)]

    assert consensus([-9.0], rows, ["ada", "ada", "ada", "ada"], said, CONFIG) == []
    assert consensus([-9.0], rows, ["ada", "ada", "bob", "bob"], said, CONFIG) == []
    assert len(consensus([-9.0], rows, ["ada", "ada", "bob", "cleo"], said, CONFIG)) == 1


def test_people_who_half_know_a_thing_know_more_of_it_together() -> None:
    rows, said = [[-4.0]] * 3, [frozenset(PEOPLE)]
    mean, pooled = (
        consensus([-9.0], rows, PEOPLE[:3], said, ConsensusConfig(independence=independence))[0].probability
        for independence in (0.0, 1.0)
    )

    assert mean == pytest.approx(math.exp(-4), rel=0.02)
    # Each raises the odds by e^5, so that three make e^15 of e^-9.
    assert pooled == pytest.approx(1 / (1 + math.exp(-6)), rel=0.1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="k_min"):
        ConsensusConfig(k_min=1)
    with pytest.raises(ConfigInvalid, match="independence"):
        ConsensusConfig(independence=1.5)
    with pytest.raises(InvalidInput, match="2 rows of 1"):
        consensus([-9.0], [[-1.0]], PEOPLE[:2], [frozenset()], CONFIG)
