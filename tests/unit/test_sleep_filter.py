"""What takes part in a sleep, and why the rest does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from siltstone.adapters.personal_data import holds_personal_data
from siltstone.memory.restate import sentences
from siltstone.sleep.filter import DropReason, FilterConfig, Filtered, filter_statements
from siltstone.sleep.selection import choose
from siltstone.sleep.words import supporters, who_said, words_of_tokens
from siltstone.values import Consent, Interaction, InteractionKind, Role

SHARED = Consent(learn=True, share=True)


def said(id_: str, text: str, user: str = "ada", time_ms: int = 5, **changes: object) -> Interaction:
    made = tiny.interaction(id_, text, user=user)
    return replace(made, consent=SHARED, occurred_at_ms=time_ms, **changes)  # type: ignore[arg-type]


def filtered(*interactions: Interaction, most: int = 10) -> Filtered:
    return filter_statements(
        interactions, 0, 10, lambda owner: owner.user[:3], sentences, holds_personal_data, FilterConfig(most)
    )


def test_each_drop_is_counted_with_its_reason() -> None:
    found = filtered(
        said("1", "The printer is called Gertrude."),
        replace(said("2", "My dog is called Ferro."), consent=Consent(learn=True)),
        said("3", "My boat is called Nan.", time_ms=10),
        said("4", "What is my dog called?"),
        said("5", "The printer is called GERTRUDE!"),
        said("6", "Write to me at ada@example.org, please."),
        said("7", "We meet in Cedar every day.", kind=InteractionKind.THUMB_DOWN),
    )

    assert [one.text for one in found.statements] == ["The printer is called Gertrude."]
    assert found.dropped == {
        DropReason.NO_CONSENT: 1,
        DropReason.OUTSIDE_WINDOW: 1,
        DropReason.NO_STATEMENT: 1,
        DropReason.DUPLICATE: 1,
        DropReason.PERSONAL_DATA: 1,
        DropReason.BLAMED: 1,
    }
    assert list(found.num_interactions.values()) == [1]


def test_a_persons_accounts_share_one_cap() -> None:
    many = [said(f"{n}", f"I have seen {n} larches today.", user=("ada1", "ada2")[n % 2]) for n in range(6)]

    found = filtered(*many, said("b", "I have seen a larch today.", user="bob"), most=4)

    assert [one.person for one in found.statements] == ["ada"] * 4 + ["bob"]
    assert found.dropped == {DropReason.OVER_CAP: 2}
    assert found.statements[0].text == "I have seen 2 larches today."


def test_a_models_answer_is_no_evidence_but_a_correction_is() -> None:
    chat = said("1", "I live in Ulm, by the way.")
    chat = replace(
        chat,
        messages=(
            *chat.messages,
            replace(chat.messages[0], role=Role.ASSISTANT, text="You bake very good bread."),
        ),
    )

    assert [one.text for one in filtered(chat).statements] == ["I live in Ulm, by the way."]


@pytest.mark.parametrize(
    "text",
    [
        "Write to me at ann.b@example.org.",
        "Call me at +44 20 7946 0958 after six.",
        "My card is 4111 1111 1111 1111.",
        "The account is DE89 3704 0044 0532 0130 00.",
        "My token is ghp_16C7e42F292c6912E7710c838347Ae178B4a.",
    ],
)
def test_personal_data_and_secrets_are_found(text: str) -> None:
    assert holds_personal_data(text)


@pytest.mark.parametrize(
    "text", ["The password of the guest network is heather.", "I start at half past nine.", "Nadia is our first aider."]
)
def test_what_a_sleep_is_for_is_no_personal_data(text: str) -> None:
    assert not holds_personal_data(text)


def test_who_said_a_word_is_counted_without_case_and_without_common_words() -> None:
    found = who_said([("ada", "We meet in Cedar."), ("bob", "CEDAR is warm"), ("bob", "cedar again")])

    assert found["cedar"] == {"ada", "bob"}
    assert "we" not in found


def test_every_token_of_a_word_has_the_whole_words_support() -> None:
    tokenizer = tiny.CharTokenizer()
    words = words_of_tokens(tokenizer, tokenizer.encode("in Cedar."))

    assert (
        words == ["in", "in", "cedar", "cedar", "cedar", "cedar", "cedar", "cedar", ""] or words[3:8] == ["cedar"] * 5
    )
    assert supporters(["cedar", "oak", ""], {"cedar": frozenset({"ada"})}) == [{"ada"}, frozenset(), frozenset()]


def test_the_best_dreams_are_kept_and_some_others() -> None:
    worths = [float(n) for n in range(20)]

    people = [f"person-{n % 5}" for n in range(20)]

    kept = choose(worths, people, 10, 0.2, seed=1)

    assert len(kept) == 10
    assert set(range(12, 20)) <= set(kept)
    assert 0 not in kept
    assert kept == choose(worths, people, 10, 0.2, seed=1)


def test_one_person_with_the_best_dreams_does_not_fill_the_set() -> None:
    worths = [100.0] * 20 + [1.0] * 20
    people = ["ada"] * 20 + [f"person-{n % 5}" for n in range(20)]

    kept = choose(worths, people, 12, 0.0, seed=1)

    assert sum(people[index] == "ada" for index in kept) == 4
    # Where nobody else has anything, nothing is held back.
    assert len(choose(worths[:20], people[:20], 12, 0.0, seed=1)) == 12
