"""Which accounts are one person's: a TOML file that an operator keeps. What is wrong in it stops the night.

    [people]
    maya = ["office/maya", "office/maya.phone"]
    noor = ["office/noor", "shop/n.haddad"]

An account is `tenant/user`. One that is not listed is a person of its own.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siltstone.errors import ConfigInvalid
from siltstone.values import UserKey, is_valid_id


@dataclass(frozen=True, slots=True)
class Identities:
    """The people behind the accounts. `digest` is the sha256 of the file it was read from, for the lineage."""

    people: Mapping[UserKey, str] = field(default_factory=dict)
    digest: str = ""

    def person_of(self, owner: UserKey) -> str:
        """Returns who is behind an account. The name of a person has no slash, so it is never an account's."""
        return self.people.get(owner, str(owner))


def read_identities(path: Path) -> Identities:
    """Returns what a file says.

    Raises: ConfigInvalid when it cannot be read, has an unknown key, or names an account twice or one that can be none.
    """
    try:
        raw = path.read_bytes()
        tree = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigInvalid(str(path), error.strerror or "cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(str(path), f"not TOML: {error}") from error
    if unknown := sorted(tree.keys() - {"people"}):
        raise ConfigInvalid(str(path), f"unknown key {unknown[0]}; the only one is people")
    told = tree.get("people")
    if not isinstance(told, dict):
        raise ConfigInvalid(str(path), "expected a table [people]")
    people: dict[UserKey, str] = {}
    for person, accounts in told.items():
        where = f"{path}: people.{person}"
        if not is_valid_id(person):
            raise ConfigInvalid(where, "expected a name of 1 to 128 plain characters, no slash")
        if not isinstance(accounts, list) or not accounts:
            raise ConfigInvalid(where, "expected a list of accounts")
        for owner in (_account(where, one) for one in accounts):
            if owner in people:
                raise ConfigInvalid(where, f"{owner} is listed under {people[owner]} already")
            people[owner] = person
    return Identities(people, hashlib.sha256(raw).hexdigest())


def _account(where: str, told: Any) -> UserKey:
    tenant, slash, user = told.partition("/") if isinstance(told, str) else ("", "", "")
    if not slash or not is_valid_id(tenant) or not is_valid_id(user):
        raise ConfigInvalid(where, f"expected an account as TENANT/USER, found {str(told)[:80]!r}")
    return UserKey(tenant, user)
