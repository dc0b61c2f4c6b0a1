"""What a configuration names but never holds: a secret in a file or an environment variable, and certificates."""

from __future__ import annotations

import os
import ssl
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


def tls_context(where: str, ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """Returns what a client encrypts with: it believes the authorities named, or the system's, and checks the name.

    Raises: ConfigInvalid when a file is not there, or holds no certificate or not the certificate's key.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigInvalid(where, f"ca_file: expected PEM certificates in {ca_file}: {_why(error)}") from error
    try:
        if cert_file:
            # A key that is locked is refused: without this, whoever starts the process is asked for a word.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except OSError as error:
        found = f"expected a PEM certificate in {cert_file} and its key in {key_file}: {_why(error)}"
        raise ConfigInvalid(where, f"cert_file, key_file: {found}") from error
    return context


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
