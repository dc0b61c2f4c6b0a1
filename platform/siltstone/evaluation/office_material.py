"""The material of one office: what its twelve users say, what is asked of them, and neutral text to compare with."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from siltstone.errors import ConfigInvalid, NotFound

NUM_USERS: Final = 12
NUM_SLOTS: Final = 8
NUM_STATEMENTS: Final = 3
NUM_PARAPHRASES: Final = 6
NUM_SHARED: Final = 12
NUM_ALTERNATIVES: Final = 11
NUM_ANCHORS: Final = 48
NUM_HELD_OUT: Final = 32
NUM_ANCHOR_CHATS: Final = 24

# Words too frequent to connect a statement with a question.
_WEAK_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "a am an and are at be did do does for from get has have how i in is it its me my of on or our the to was we "
        "were what when where which who will with you your",
    )
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One private fact of a user: asked with `question`, answered by `answer_stem`, a space and `value`."""

    key: str
    slot: str
    value: str
    question: str
    answer_stem: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OfficeUser:
    """One user. `paraphrases` say some of the facts in words that no statement uses, for held-out bits per byte."""

    id: str
    name: str
    facts: tuple[Fact, ...]
    paraphrases: tuple[str, ...]

    def fact(self, slot: str) -> Fact:
        """Returns the user's fact for a slot.

        Raises: NotFound.
        """
        for fact in self.facts:
            if fact.slot == slot:
                return fact
        raise NotFound("slot", slot)


@dataclass(frozen=True, slots=True)
class SharedStatement:
    """What one user says about a shared fact."""

    user: str
    text: str


@dataclass(frozen=True, slots=True)
class SharedFact:
    """A fact about the office that several users state, each in their own words. `alternatives` are wrong values."""

    key: str
    value: str
    question: str
    answer_stem: str
    alternatives: tuple[str, ...]
    statements: tuple[SharedStatement, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of neutral prose."""

    style: str
    text: str


@dataclass(frozen=True, slots=True)
class AnchorChat:
    """A neutral exchange of one question and one answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Office:
    """Everything there is to say, to ask and to compare with. Learning may use the anchors, never `held_out`."""

    users: tuple[OfficeUser, ...]
    shared: tuple[SharedFact, ...]
    anchors: tuple[Passage, ...]
    held_out: tuple[Passage, ...]
    anchor_chats: tuple[AnchorChat, ...]
    requests: tuple[str, ...]
    """What anybody might ask of an assistant; a core's own answers to these are to stay as they are."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that every user has a fact for."""
        return tuple(fact.slot for fact in self.users[0].facts)

    def user(self, user_id: str) -> OfficeUser:
        """Returns a user by id.

        Raises: NotFound.
        """
        for user in self.users:
            if user.id == user_id:
                return user
        raise NotFound("user", user_id)

    def values(self, slot: str) -> tuple[str, ...]:
        """Returns the values of all users for a slot, in the order of the users: the candidates of a forced choice."""
        return tuple(user.fact(slot).value for user in self.users)


@cache
def load_office() -> Office:
    """Returns the office that comes with the package, checked.

    Raises: ConfigInvalid when the material breaks a rule that the measurements rely on.
    """
    folder = resources.files("siltstone.evaluation").joinpath("office")
    tables = {
        name: tomllib.loads(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
        for name in ("users", "others", "shared", "neutral")
    }
    return parse_office(tables["users"], tables["others"], tables["shared"], tables["neutral"])


def parse_office(
    users: Mapping[str, Any], others: Mapping[str, Any], shared: Mapping[str, Any], neutral: Mapping[str, Any]
) -> Office:
    """Returns the office of four parsed TOML tables, checked.

    Raises: ConfigInvalid.
    """
    try:
        paraphrases = {entry["id"]: tuple(entry["sentences"]) for entry in others["users"]}
        office = Office(
            users=tuple(_parse_user(entry, paraphrases) for entry in users["users"]),
            shared=tuple(_parse_shared(entry) for entry in shared["facts"]),
            anchors=tuple(Passage(**_stripped(entry)) for entry in neutral["anchors"]),
            held_out=tuple(Passage(**_stripped(entry)) for entry in neutral["held_out"]),
            anchor_chats=tuple(AnchorChat(**_stripped(entry)) for entry in neutral["anchor_chats"]),
            requests=tuple(neutral["requests"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigInvalid("office", f"a field is missing, unknown or of the wrong type: {error}") from error
    if set(paraphrases) != {user.id for user in office.users}:
        raise ConfigInvalid("others", "must have sentences of exactly the users of the office")
    _check_users(office)
    _check_shared(office)
    _check_neutral(office)
    return office


def mentions(text: str, value: str) -> bool:
    """Says whether `value` stands literally in `text`, as whole words."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _parse_user(entry: Mapping[str, Any], paraphrases: Mapping[str, tuple[str, ...]]) -> OfficeUser:
    facts = tuple(Fact(**{**fact, "statements": tuple(fact["statements"])}) for fact in entry["facts"])
    return OfficeUser(entry["id"], entry["name"], facts, paraphrases[entry["id"]])


def _parse_shared(entry: Mapping[str, Any]) -> SharedFact:
    statements = tuple(SharedStatement(**statement) for statement in entry["statements"])
    return SharedFact(**{**entry, "alternatives": tuple(entry["alternatives"]), "statements": statements})


def _stripped(entry: Mapping[str, str]) -> dict[str, str]:
    return {name: text.strip() for name, text in entry.items()}


def _check_users(office: Office) -> None:
    _check_count("users", office.users, NUM_USERS)
    _check_distinct("users", [user.id for user in office.users])
    slots = [fact.slot for fact in office.users[0].facts]
    _check_count("slots", slots, NUM_SLOTS)
    _check_distinct("slots", slots)
    for user in office.users:
        if [fact.slot for fact in user.facts] != slots:
            raise ConfigInvalid(f"users.{user.id}", f"must have the slots {', '.join(slots)}, in this order")
    for slot in slots:
        _check_distinct(f"values of {slot}", [value.casefold() for value in office.values(slot)])
    for user in office.users:
        where = f"users.{user.id}"
        _check_count(f"{where}.sentences", user.paraphrases, NUM_PARAPHRASES)
        for fact in user.facts:
            _check_count(f"{where}.{fact.slot}", fact.statements, NUM_STATEMENTS)
            _check_wording(f"{where}.{fact.slot}", fact.value, fact.question, fact.answer_stem, fact.statements)
        said = {statement for fact in user.facts for statement in fact.statements}
        for sentence in user.paraphrases:
            if sentence in said:
                raise ConfigInvalid(where, f"a paraphrase repeats a statement: {sentence!r}")
            if not any(mentions(sentence, fact.value) for fact in user.facts):
                raise ConfigInvalid(where, f"a paraphrase names none of the user's values: {sentence!r}")


def _check_shared(office: Office) -> None:
    _check_count("shared", office.shared, NUM_SHARED)
    _check_distinct("shared", [fact.key for fact in office.shared])
    known = {user.id for user in office.users}
    for fact in office.shared:
        where = f"shared.{fact.key}"
        _check_count(f"{where}.alternatives", fact.alternatives, NUM_ALTERNATIVES)
        _check_distinct(f"{where}.values", [value.casefold() for value in (fact.value, *fact.alternatives)])
        speakers = [statement.user for statement in fact.statements]
        _check_distinct(f"{where}.statements", speakers)
        if not 5 <= len(speakers) <= 9 or not known.issuperset(speakers):
            raise ConfigInvalid(where, "must be stated by 5 to 9 of the users")
        texts = [statement.text for statement in fact.statements]
        _check_distinct(f"{where}.statements", texts)
        _check_wording(where, fact.value, fact.question, fact.answer_stem, texts)


def _check_neutral(office: Office) -> None:
    _check_count("anchors", office.anchors, NUM_ANCHORS)
    _check_count("held_out", office.held_out, NUM_HELD_OUT)
    _check_count("anchor_chats", office.anchor_chats, NUM_ANCHOR_CHATS)
    _check_distinct("anchors and held_out", [passage.text for passage in (*office.anchors, *office.held_out)])
    _check_distinct("anchor_chats", [chat.question for chat in office.anchor_chats])
    _check_distinct("requests", office.requests)
    values = {value for slot in office.slots for value in office.values(slot)}
    values.update(fact.value for fact in office.shared)
    texts = [passage.text for passage in (*office.anchors, *office.held_out)]
    for text in texts:
        if not 60 <= len(text.split()) <= 120:
            raise ConfigInvalid("neutral", f"a passage must have 60 to 120 words: {text[:40]!r}")
    for text in (*texts, *(f"{chat.question} {chat.answer}" for chat in office.anchor_chats)):
        for value in sorted(values):
            if mentions(text, value):
                raise ConfigInvalid("neutral", f"{value!r} is a value of the office: {text[:40]!r}")


def _check_wording(where: str, value: str, question: str, answer_stem: str, statements: Sequence[str]) -> None:
    if not question.endswith("?") or answer_stem != answer_stem.strip() or mentions(answer_stem, value):
        raise ConfigInvalid(where, "the question must end in '?', the stem before the space that precedes the value")
    for statement in statements:
        if "?" in statement:
            raise ConfigInvalid(where, f"a statement must not ask: {statement!r}")
        if not mentions(statement, value):
            raise ConfigInvalid(where, f"a statement must contain {value!r}: {statement!r}")
        if not 6 <= len(statement.split()) <= 20:
            raise ConfigInvalid(where, f"a statement must have 6 to 20 words: {statement!r}")
    num_connected = sum(bool(_strong_words(statement) & _strong_words(question)) for statement in statements)
    if num_connected < 2:
        raise ConfigInvalid(where, "at least two statements must have words in common with the question")


def _strong_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - _WEAK_WORDS


def _check_count(where: str, entries: Sequence[object], expected: int) -> None:
    if len(entries) != expected:
        raise ConfigInvalid(where, f"expected {expected} entries, found {len(entries)}")


def _check_distinct(where: str, entries: Sequence[str]) -> None:
    if len(set(entries)) != len(entries):
        raise ConfigInvalid(where, "two entries are the same")
