"""A policy of the gate that an operator keeps as a TOML file. What is wrong with it stops the night."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from siltstone.errors import ConfigInvalid
from siltstone.gate.policy import Policy, parse_policy


def read_policy(path: Path, sha256: str) -> Policy:
    """Returns the policy of a file, all of it: one that was cut short would still be TOML, and ask for less.

    Raises: ConfigInvalid when it cannot be read, is not the file of the digest, or is no policy.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(str(path), error.strerror or "cannot be read") from error
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        wanted = sha256 or "the one that gate.policy_sha256 is to name"
        raise ConfigInvalid(str(path), f"not the file that was meant: sha256 {found}, expected {wanted}")
    try:
        tree = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(str(path), f"not TOML: {error}") from error
    try:
        return parse_policy(tree)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{path}: {error.where}", error.reason) from error
