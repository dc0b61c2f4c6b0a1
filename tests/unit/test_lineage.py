"""Which versions a user's words are in, without a name in sight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid
from siltstone.sleep_values import CheckResult, Contributor, CoreVersion, Lineage, Verdict, VersionState
from siltstone.values import UserKey
from siltstone.versions.card import write_card
from siltstone.versions.lineage import contributors, descendants, hash_user, touched_by_user, versions_of_user

KEY = bytes(range(32))
ADA, EVE = UserKey("office", "ada"), UserKey("office", "eve")


def version(number, parent="", users=(), digest="", verdict=None):
    found = contributors(dict.fromkeys(users, 2), KEY)
    lineage = Lineage(parent, f"night-{number}", {}, found, {}, {}, "r1")
    digest = digest or f"core-{number}"
    return CoreVersion(number, digest, VersionState.CANDIDATE, lineage, 0, "e1", verdict)


def test_a_user_is_known_only_to_who_holds_the_key():
    assert hash_user(ADA, KEY) == hash_user(ADA, KEY)
    assert hash_user(ADA, KEY) != hash_user(ADA, bytes(32))
    assert "ada" not in hash_user(ADA, KEY)


def test_no_two_users_share_a_hash():
    users = [UserKey("a", "b/c"), UserKey("a/b", "c"), UserKey("a", "b"), UserKey("b", "a"), UserKey("", "a/b")]
    assert len({hash_user(user, KEY) for user in users}) == len(users)


def test_a_short_key_is_refused():
    with pytest.raises(ConfigInvalid, match="32"):
        hash_user(ADA, bytes(31))


def test_contributors_carry_counts_and_their_order_says_nothing():
    found = contributors({EVE: 3, ADA: 1, UserKey("office", "idle"): 0}, KEY)
    assert set(found) == {Contributor(hash_user(ADA, KEY), 1), Contributor(hash_user(EVE, KEY), 3)}
    assert list(found) == sorted(found, key=lambda one: one.user_hash)


def test_what_a_user_took_part_in_and_all_that_came_of_it_is_found():
    versions = [
        version(1),
        version(2, "core-1", [ADA]),
        version(3, "core-1", [EVE]),
        version(4, "core-2", [EVE]),
        version(5, "core-4"),
        version(6, "core-3"),
    ]
    assert versions_of_user(versions, hash_user(ADA, KEY)) == (2,)
    assert descendants(versions, (2,)) == (4, 5)
    assert touched_by_user(versions, hash_user(ADA, KEY)) == (2, 4, 5)
    assert touched_by_user(versions, hash_user(EVE, KEY)) == (3, 4, 5, 6)
    assert touched_by_user(versions, hash_user(UserKey("office", "nobody"), KEY)) == ()


@given(st.lists(st.integers(0, 9), max_size=12))
def test_descent_ends_also_when_contents_repeat(parents):
    versions = [version(n, f"core-{parent}", digest=f"core-{n % 5}") for n, parent in enumerate(parents)]
    found = descendants(versions, (0,))
    reached = {versions[0].digest, *(versions[n].digest for n in found)} if versions else set()
    assert set(found) == {v.number for v in versions if v.number != 0 and v.lineage.parent in reached}


def test_the_card_tells_how_many_took_part_and_what_the_gate_said_but_no_user():
    result = CheckResult("retention", False, "it forgot", 0.2, 0.1, None, "nats", 100)
    card = write_card(version(7, "core-6", [ADA, EVE], verdict=Verdict("core-7", "shipped", False, (result,))))
    assert "4 interactions of 2 users" in card
    assert "| retention | no | 0.2 nats | 0.1 nats | - | 100 |" in card
    assert "it forgot" in card
    assert hash_user(ADA, KEY) not in card
