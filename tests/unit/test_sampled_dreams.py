"""What memories are asked in their sleep, which answers are dreams, and what a dream of a made-up word can teach."""

from __future__ import annotations

import math

import pytest
import torch
from decoding import coefficients_of
from tiny import CharTokenizer, world

from siltstone.adapters.personal_data import holds_personal_data
from siltstone.adapters.system_clock import SystemClock
from siltstone.crew import Crew, Look, go_on
from siltstone.errors import ConfigInvalid
from siltstone.inference.engine import AnswerEngine, EngineConfig
from siltstone.memory.restate import cue
from siltstone.model.core import read_prefix
from siltstone.sleep.consensus import ConsensusConfig, consensus
from siltstone.sleep.filter import DropReason, Statement
from siltstone.sleep.sampled import SamplingConfig, cues_of, fault_of
from siltstone.sleep.words import COMMON_WORDS, supporters, who_said, words_in, words_of_tokens
from siltstone.values import UserKey
from siltstone_services.dreaming import SampledText, Sampler, sample_dreams

ADA, BOB = UserKey("office", "ada"), UserKey("office", "bob")
SAID = {
    ADA: ["Meetings happen in Cedar.", "My sister sails boats.", "Parcels wait upstairs."],
    BOB: ["Standup begins early.", "Printers live downstairs."],
}
STATEMENTS = [
    Statement(owner, owner.user, f"{owner.user}-{number}", text, number)
    for owner, texts in SAID.items()
    for number, text in enumerate(texts)
]
CONFIG = SamplingConfig(num_per_user=6, temperature=1.0, max_tokens=12, min_words=1)


def dreams_of(
    config: SamplingConfig = CONFIG,
    users: tuple[UserKey, ...] = (ADA, BOB),
    max_waiting: int = 3,
    look: Look = go_on,
) -> tuple[list[SampledText], dict[DropReason, int]]:
    here = world()
    with torch.no_grad():
        prefix = read_prefix(here.core, here.plan.prefix_ids)
    limits = EngineConfig(num_threads=1, max_answers=4, max_waiting=max_waiting, max_context_tokens=200)
    engine = AnswerEngine(
        here.core, here.shape, here.basis, here.plan.prefix_ids, prefix, CharTokenizer.stop_ids, limits
    )
    memories = {owner: coefficients_of(here, seed) for seed, owner in enumerate(users)}
    cues = cues_of(STATEMENTS, config, "night", cue)
    sampler = Sampler([engine], CharTokenizer(), SystemClock(), Crew(1, look))
    kept, dropped = sample_dreams(sampler, cues, memories, config, lambda text: "7" in text)
    assert engine.num_running == 0
    return kept, dict(dropped)


def test_a_user_is_asked_for_things_the_user_said_alone_and_two_together() -> None:
    cues = cues_of(STATEMENTS, CONFIG, "night", cue)

    for owner in SAID:
        own = [one for one in cues if one.owner == owner]
        assert len(own) == 6
        assert sum(one.text.count("?") + one.text.count(".") == 2 for one in own) == 3
        asked = set(words_in(" ".join(one.text for one in own)))
        mine, others = (
            {word for other in SAID if (other == owner) == is_own for text in SAID[other] for word in words_in(text)}
            for is_own in (True, False)
        )
        assert asked & mine
        assert not (asked & others) - mine - COMMON_WORDS
    assert cues == cues_of(STATEMENTS, CONFIG, "night", cue)
    assert cues != cues_of(STATEMENTS, CONFIG, "another", cue)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", DropReason.EMPTY),
        ("You are, and it was.", DropReason.EMPTY),
        ("Cedar room", DropReason.TOO_SHORT),
        ("You go to Cedar and you go to Cedar and you go to Cedar and you go to Cedar.", DropReason.REPETITIVE),
        ("Your address is ada.byron@example.org these days.", DropReason.PERSONAL_DATA),
        ("The team meets in Cedar every day.", None),
    ],
)
def test_what_is_no_dream_is_dropped_with_its_reason(text: str, reason: DropReason | None) -> None:
    assert fault_of(text, holds_personal_data, SamplingConfig()) is reason


def test_every_memory_dreams_for_itself_and_the_same_again() -> None:
    kept, dropped = dreams_of()

    assert kept
    assert len(kept) + sum(dropped.values()) == 12
    assert {one.cue.owner for one in kept} == {ADA, BOB}
    assert not any("7" in one.text for one in kept)
    assert dreams_of()[0] == kept
    # Who lies beside it in the batch changes nothing of a dream.
    assert dreams_of(users=(ADA,))[0] == [one for one in kept if one.cue.owner == ADA]


def test_who_has_no_memory_dreams_nothing() -> None:
    kept, dropped = dreams_of(users=())

    assert (kept, dropped) == ([], {})


def test_whoever_looks_may_end_the_sampling_between_two_tokens() -> None:
    num_looks = 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 5:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        dreams_of(SamplingConfig(num_per_user=1000, max_tokens=12, max_s=1e9), look=look)
    assert num_looks == 5


def test_what_has_not_begun_in_time_is_dropped_and_counted() -> None:
    kept, dropped = dreams_of(SamplingConfig(num_per_user=6, max_tokens=12, max_s=1e-9))

    assert (kept, dropped) == ([], {DropReason.UNFINISHED: 12})


def test_a_word_that_a_memory_made_up_teaches_nothing() -> None:
    tokenizer = CharTokenizer()
    said = who_said((person, "The meeting is in Cedar.") for person in ("ada", "bob", "cleo"))

    def raised(text: str) -> set[str]:
        ids = tokenizer.encode(text)
        words = words_of_tokens(tokenizer, ids)
        # Every memory is all but certain of every token, and the core finds none likely.
        sure, core = [math.log(0.99)] * len(ids), [math.log(1e-6)] * len(ids)
        found = consensus(core, [sure] * 3, ["ada", "bob", "cleo"], supporters(words, said), ConsensusConfig(k_min=3))
        return {words[one.at] for one in found}

    assert raised("Lunch is in Maple.") == set()
    assert raised("The meeting is in Maple.") == {"meeting"}
    # The control: what three people said is taught, in whatever sentence a memory dreams it.
    assert raised("You will find Cedar.") == {"cedar"}


def test_a_configuration_that_cannot_be_meant_is_refused() -> None:
    for wrong in ({"num_per_user": -1}, {"temperature": -0.1}, {"max_tokens": 0}, {"combined_share": 2.0}):
        with pytest.raises(ConfigInvalid):
            SamplingConfig(**wrong)  # type: ignore[arg-type]
