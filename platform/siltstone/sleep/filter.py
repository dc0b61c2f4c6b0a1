"""What of the users' interactions may take part in a sleep, each drop counted with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from siltstone.errors import ConfigInvalid
from siltstone.sleep.words import words_in
from siltstone.values import Interaction, InteractionKind, Role, UserKey


class DropReason(StrEnum):
    """Why something a user said, or a memory dreamt, takes no part; in the last two, why a memory is no evidence."""

    NO_CONSENT = "no_consent"
    OUTSIDE_WINDOW = "outside_window"
    BLAMED = "blamed"
    NO_STATEMENT = "no_statement"
    PERSONAL_DATA = "personal_data"
    DUPLICATE = "duplicate"
    OVER_CAP = "over_cap"
    NOT_SUPPORTED = "not_supported"
    NOT_LEARNED = "not_learned"
    CONTESTED = "contested"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    REPETITIVE = "repetitive"
    UNFINISHED = "unfinished"
    MEMORY_OF_ANOTHER_CORE = "memory_of_another_core"
    MEMORY_DAMAGED = "memory_damaged"


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Bounds of what one person may bring."""

    max_statements: int = 256
    """Statements of one person that take part in one sleep; the newest are kept."""
    min_words: int = 3
    """Words of a statement, at least."""

    def __post_init__(self) -> None:
        if min(self.max_statements, self.min_words) < 1:
            raise ConfigInvalid("sleep.filter", f"expected at least 1, found {self}")


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence that a person said. `person` is the identity behind the account."""

    owner: UserKey
    person: str
    interaction_id: str
    text: str
    occurred_at_ms: int


@dataclass(frozen=True, slots=True)
class Filtered:
    """What is left, in the order it was said, and what was dropped for which reason.

    `num_interactions` is of every account that takes part, with its words or with its memory.
    """

    statements: tuple[Statement, ...]
    dropped: Mapping[DropReason, int]
    num_interactions: Mapping[UserKey, int]


def filter_statements(
    interactions: Iterable[Interaction],
    since_ms: int,
    until_ms: int,
    person_of: Callable[[UserKey], str],
    sentences: Callable[[str], list[str]],
    is_personal: Callable[[str], bool],
    config: FilterConfig,
) -> Filtered:
    """Returns the statements that may take part.

    Only what its owner agreed to share, inside the window (`since_ms` to `until_ms`, the end left out), in the user's
    own words: a model's answers are not evidence of anything, but for a correction, which is the user's. A text that
    holds personal data or a secret takes no part, nor does a statement that repeats another of the same person.
    `person_of` says who is behind an account: caps and support are counted by person.
    """
    dropped: Counter[DropReason] = Counter()
    spoken: Counter[UserKey] = Counter()
    kept: dict[str, list[Statement]] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for interaction in interactions:
        if not interaction.consent.share:
            dropped[DropReason.NO_CONSENT] += 1
            continue
        if not since_ms <= interaction.occurred_at_ms < until_ms:
            dropped[DropReason.OUTSIDE_WINDOW] += 1
            continue
        if interaction.kind is InteractionKind.THUMB_DOWN:
            dropped[DropReason.BLAMED] += 1
            continue
        person = person_of(interaction.owner)
        texts = _own_words(interaction)
        # A whole text is looked at: an address or a number would be cut in two at the end of a "sentence".
        clean = [text for text in texts if not is_personal(text)]
        dropped[DropReason.PERSONAL_DATA] += len(texts) - len(clean)
        told = [
            sentence for text in clean for sentence in sentences(text) if len(words_in(sentence)) >= config.min_words
        ]
        dropped[DropReason.NO_STATEMENT] += bool(clean or not texts) and not told
        spoken[interaction.owner] += bool(told)
        for sentence in told:
            words = tuple(words_in(sentence))
            if (person, words) in seen:
                dropped[DropReason.DUPLICATE] += 1
            else:
                seen.add((person, words))
                kept.setdefault(person, []).append(
                    Statement(interaction.owner, person, interaction.id, sentence, interaction.occurred_at_ms)
                )
    statements: list[Statement] = []
    for _, said in sorted(kept.items()):
        dropped[DropReason.OVER_CAP] += max(0, len(said) - config.max_statements)
        statements += said[-config.max_statements :]
    counts = Counter(owner for owner, _ in {(one.owner, one.interaction_id) for one in statements})
    # An account of which another of the same person has said all takes part all the same: its memory is evidence too.
    counts.update({owner: num for owner, num in spoken.items() if num and owner not in counts})
    return Filtered(tuple(statements), {reason: num for reason, num in dropped.items() if num}, dict(counts))


def _own_words(interaction: Interaction) -> list[str]:
    if interaction.kind is InteractionKind.CORRECTION:
        return [interaction.correction]
    if interaction.kind is InteractionKind.THUMB_UP:
        return []
    return [message.text for message in interaction.messages if message.role is Role.USER]
