"""The file that says which accounts are one person's is believed in whole, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from siltstone.adapters.identity_file import read_identities
from siltstone.errors import ConfigInvalid
from siltstone.values import UserKey

GOOD = """
[people]
maya = ["office/maya", "shop/m.torres"]
noor = ["office/noor"]
"""


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "people.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_accounts_that_are_listed_are_one_person_also_across_tenants(tmp_path: Path) -> None:
    found = read_identities(write(tmp_path, GOOD))

    assert found.person_of(UserKey("office", "maya")) == found.person_of(UserKey("shop", "m.torres")) == "maya"
    assert found.digest == hashlib.sha256(GOOD.encode()).hexdigest()


def test_an_account_that_is_not_listed_is_a_person_of_its_own_whatever_the_people_are_called(tmp_path: Path) -> None:
    found = read_identities(write(tmp_path, GOOD))

    people = {found.person_of(UserKey(tenant, "maya")) for tenant in ("office", "shop", "depot")}
    assert people == {"maya", "shop/maya", "depot/maya"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[people]\nmaya = ["office/maya"]\nnoor = ["office/maya"]\n', "office/maya is listed under maya already"),
        ('[people]\nmaya = ["office/maya", "office/maya"]\n', "listed under maya already"),
        ('[people]\nmaya = ["office/maya"]\nmaya = ["shop/maya"]\n', "not TOML"),
        ('[people]\nmaya = ["maya"]\n', "TENANT/USER, found 'maya'"),
        ('[people]\nmaya = ["office/maya/phone"]\n', "TENANT/USER"),
        ("[people]\nmaya = [7]\n", "TENANT/USER, found '7'"),
        ('[people]\nmaya = "office/maya"\n', "a list of accounts"),
        ("[people]\nmaya = []\n", "a list of accounts"),
        ('[people]\n"office/maya" = ["office/maya"]\n', "no slash"),
        ("people = 3\n", "a table"),
        ("", "a table"),
        ('[person]\nmaya = ["office/maya"]\n', "unknown key person"),
        ("[people\n", "not TOML"),
        (b"\xff\xfe", "not TOML"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_with_what_is_wrong(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigInvalid) as refused:
        read_identities(path)

    assert str(path) in refused.value.where
    assert reason in refused.value.reason


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        read_identities(tmp_path / "none.toml")
    with pytest.raises(ConfigInvalid, match="directory"):
        read_identities(tmp_path)
