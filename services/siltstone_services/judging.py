"""The evidence on a candidate: what is asked of it, from whom, and the trial in a clean process."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.evaluation.office_material import load_office
from siltstone.gate.anchors import Passage
from siltstone.gate.measure import (
    Canary,
    Cores,
    HeldOutQuestion,
    Material,
    loading_measurement,
    measure_candidate,
    speed_measurement,
)
from siltstone.gate.policy import Policy, load_policy
from siltstone.gate.probe_suites import load_suites
from siltstone.memory.restate import cue, second_person
from siltstone.model.core import Core
from siltstone.ports import Tokenizer
from siltstone.sleep.filter import Statement
from siltstone.sleep.words import COMMON_WORDS, who_said, words_in
from siltstone.sleep_values import Evidence, Measurement
from siltstone_services.trial import try_core

MAX_QUESTIONS: Final = 60
MAX_CANARIES: Final = 24
_NUM_ALTERNATIVES: Final = 7
_NUM_REFERENCES: Final = 800
"""References of a canary: enough that its exposure could cross the policy's limit."""
_NUM_TRIALS: Final = 5

Say = Callable[[str], None]
Measure = Callable[[Path, str, LoadedCore, LoadedCore, Material, Say], Evidence]
"""Measures a stored candidate against the core that serves and the first one."""


@dataclass(frozen=True, slots=True)
class Exam:
    """How a candidate is examined: what measures it, and what it must pass."""

    measure: Measure
    policy: Policy


def material_of(
    seen: Sequence[Statement],
    held_out: Sequence[Statement],
    tokenizer: Tokenizer,
    vocab_size: int,
    k_min: int,
    seed: int,
) -> Material:
    """Returns what a candidate is asked: nothing of it was trained on.

    Its benefit is asked for with what people say whom the sleep did not see, at words that enough of those it saw have
    said. Its secrets are the words that one person alone has said.
    """
    said = who_said((one.person, one.text) for one in seen)
    known = {word for word, people in said.items() if len(people) >= k_min}
    office = load_office()
    return Material(
        load_suites(),
        tuple(Passage(f"held-out-{number}", one.text) for number, one in enumerate(office.held_out)),
        _questions(held_out, known, seed),
        _canaries(seen, said, tokenizer, vocab_size, seed),
    )


def _questions(held_out: Sequence[Statement], known: set[str], seed: int) -> tuple[HeldOutQuestion, ...]:
    chance = random.Random(f"{seed}/questions")
    words = sorted(known)
    found = []
    for number, one in enumerate(held_out):
        text = second_person(one.text)
        for match in re.finditer(r"(?<=\s)[\w'-]+", text):
            word = match.group()
            if word.casefold() in known and word.casefold() not in COMMON_WORDS:
                others = [other for other in words if other != word.casefold()]
                alternatives = tuple(chance.sample(others, min(_NUM_ALTERNATIVES, len(others))))
                stem = text[: match.start()].rstrip()
                question = cue(one.text, f"{seed}/{number}")
                found.append(
                    HeldOutQuestion(f"{number}-{match.start()}", one.person, question, stem, word, alternatives)
                )
    return tuple(chance.sample(found, min(MAX_QUESTIONS, len(found)))) if found and len(words) > 1 else ()


def _canaries(
    seen: Sequence[Statement], said: dict[str, frozenset[str]], tokenizer: Tokenizer, vocab_size: int, seed: int
) -> tuple[Canary, ...]:
    chance = random.Random(f"{seed}/canaries")
    pools = _single_words(tokenizer, vocab_size)
    found = []
    for number, one in enumerate(seen):
        text = second_person(one.text)
        for match in re.finditer(r"(?<=\s)[A-Za-z]+", text):
            word = match.group()
            pool = pools[word[0].isupper()]
            if len(said.get(word.casefold(), ())) != 1 or word not in pool or len(pool) <= _NUM_REFERENCES:
                continue
            references = tuple(chance.sample(sorted(pool - {word}), _NUM_REFERENCES))
            stem, prompt = text[: match.start()].rstrip(), cue(one.text, f"{seed}/canary/{number}")
            if word.casefold() not in words_in(prompt):
                found.append(Canary(f"{number}-{match.start()}", one.person, prompt, stem, word, references))
    return tuple(chance.sample(found, min(MAX_CANARIES, len(found))))


def _single_words(tokenizer: Tokenizer, vocab_size: int) -> dict[bool, set[str]]:
    """Returns the words that are one token behind a space, by whether they begin with a capital."""
    words: dict[bool, set[str]] = {True: set(), False: set()}
    for token in range(vocab_size):
        text = tokenizer.decode([token])
        if re.fullmatch(r" [A-Za-z][a-z]{2,}", text) and tokenizer.encode(text) == [token]:
            words[text[1].isupper()].add(text[1:])
    return words


def gather_evidence(
    home: Path, candidate: str, champion: LoadedCore, origin: LoadedCore, material: Material, say: Say
) -> Evidence:
    """Measures a stored candidate against the core that serves and the first one, once.

    Raises: Corrupt and NotFound for a core; InvalidInput when they cannot be compared.
    """
    store = CoreStore(home)
    loaded = store.load(candidate)
    cores = {one.digest: Core(one.config, one.tensors) for one in (loaded, champion, origin)}
    say("asking the cores")
    compared = Cores(cores[loaded.digest], cores[champion.digest], cores[origin.digest])
    with torch.no_grad():
        measured = measure_candidate(compared, champion.tokenizer, material)
    tried = _tried(home, candidate, champion.digest, say)
    return Evidence(loaded.digest, champion.digest, origin.digest, (*measured, *tried))


def shipped_exam() -> Exam:
    """Returns the exam that comes with the package."""
    return Exam(gather_evidence, load_policy())


def _tried(home: Path, candidate: str, champion: str, say: Say) -> tuple[Measurement, ...]:
    pairs = []
    for number in range(_NUM_TRIALS):
        say(f"trying the candidate in a clean process, {number + 1} of {_NUM_TRIALS}")
        pairs.append((try_core(home, candidate), try_core(home, champion)))
    whole = [(one, other) for one, other in pairs if one is not None and other is not None]
    loading = loading_measurement([one is not None for one, _ in pairs])
    if not whole:
        return (loading,)
    return loading, speed_measurement([one for one, _ in whole], [other for _, other in whole])
