"""A secret that the configuration names but never holds: in a file, or in an environment variable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from siltstone.errors import ConfigInvalid


def read_secret(where: str, file: str, variable: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Returns the secret of a file or a variable, without the line's end; None when neither is named.

    Raises: ConfigInvalid when both are named, or the one named is missing or empty. It never says what is in it.
    """
    if file and variable:
        raise ConfigInvalid(where, "expected a file or an environment variable, found both")
    if not file and not variable:
        return None
    if variable:
        secret = (os.environ if environment is None else environment).get(variable, "")
        source = f"the environment variable {variable}"
    else:
        source = f"the file {file}"
        try:
            secret = Path(file).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigInvalid(where, f"{source} cannot be read: {reason}") from error
    if not secret:
        raise ConfigInvalid(where, f"expected a secret in {source}, found nothing")
    return secret
