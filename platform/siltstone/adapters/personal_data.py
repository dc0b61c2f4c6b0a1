"""Whether a sentence holds personal data or a secret: what must not even be dreamt of.

Found by libraries made for it: secrets by detect-secrets, telephone numbers by phonenumbers, account and card numbers
by python-stdnum. A name is no personal data here: that a colleague is the first aider is what a sleep is for.
"""

from __future__ import annotations

import re
from typing import Final

import phonenumbers
from detect_secrets.core.scan import scan_line
from detect_secrets.settings import default_settings
from stdnum import iban, luhn

_EMAIL: Final = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
_NUMBER: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b|\b\d(?:[ -]?\d){12,18}\b")
_GUESSES: Final = frozenset({"Base64 High Entropy String", "Hex High Entropy String"})
"""Kinds of secret told by their letters alone: on plain sentences they name ordinary words."""
_REGIONS: Final = ("US", "GB", "DE")
"""Where a number without a country code may be from."""


def holds_personal_data(text: str) -> bool:
    """Says whether a text holds an e-mail address, a telephone, account or card number, a password or a key."""
    return bool(_EMAIL.search(text)) or _holds_number(text) or _holds_telephone(text) or _holds_secret(text)


def _holds_number(text: str) -> bool:
    for match in _NUMBER.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if iban.is_valid(digits) or (digits.isdigit() and luhn.is_valid(digits)):
            return True
    return False


def _holds_telephone(text: str) -> bool:
    return any(phonenumbers.PhoneNumberMatcher(text, region).has_next() for region in _REGIONS)


def _holds_secret(text: str) -> bool:
    with default_settings():
        return any(found.type not in _GUESSES for found in scan_line(text))
