"""The evidence on a candidate: what is asked of it, from whom, and the trial in a clean process."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.adapters.reading_store import ReadingStore
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew, Look, go_on
from siltstone.evaluation.office_material import load_office
from siltstone.gate.anchors import Passage
from siltstone.gate.measure import (
    Canary,
    Cores,
    HeldOutQuestion,
    Material,
    Reading,
    loading_measurement,
    measure_candidate,
    read_cores,
    read_secrets,
    speed_measurement,
)
from siltstone.gate.policy import Policy
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.inference.engine import EngineConfig, Precision
from siltstone.memory.restate import cue, second_person
from siltstone.model.core import Core
from siltstone.ports import Tokenizer
from siltstone.sleep.filter import Statement
from siltstone.sleep.words import COMMON_WORDS, who_said, words_in
from siltstone.sleep_values import Evidence, Measurement
from siltstone_services.policies import policy_of
from siltstone_services.precision import dtype_for
from siltstone_services.trial import try_core

MAX_QUESTIONS: Final = 40
MAX_CANARIES: Final = 24
_NUM_ALTERNATIVES: Final = 7
_NUM_REFERENCES: Final = 4000
"""References of a canary at most: among them there are enough that the first core finds as likely."""
_LEAST_REFERENCES: Final = 800
"""References of a canary at least: enough that its exposure could cross the policy's limit."""
_NUM_TRIALS: Final = 3
_HOW_IT_IS_READ: Final = 1
"""Raised by who changes what a reading of a suite means, so that none from before is taken for one."""

Say = Callable[[str], None]
Measure = Callable[[Path, str, LoadedCore, LoadedCore, Material, Say, EngineConfig, Mapping[str, str], Look], Evidence]
"""Measures a stored candidate against the core that serves and the first one."""


@dataclass(frozen=True, slots=True)
class Exam:
    """How a candidate is examined: what measures it, and what it must pass."""

    measure: Measure
    policy: Policy


def material_of(
    suites: Sequence[ProbeSuite],
    seen: Sequence[Statement],
    held_out: Sequence[Statement],
    tokenizer: Tokenizer,
    vocab_size: int,
    taught: Mapping[str, float],
    seed: int,
) -> Material:
    """Returns what a candidate is asked: nothing of it was trained on.

    Its benefit is asked for with what people say whom the sleep did not see, at the words of which it taught most
    (`taught`, nats). Its secrets are the words that one person alone has said.
    """
    said = who_said((one.person, one.text) for one in seen)
    office = load_office()
    return Material(
        tuple(suites),
        tuple(Passage(f"held-out-{number}", one.text) for number, one in enumerate(office.held_out)),
        _questions(held_out, taught, seed),
        _canaries(seen, said, tokenizer, vocab_size, seed),
    )


def _questions(held_out: Sequence[Statement], taught: Mapping[str, float], seed: int) -> tuple[HeldOutQuestion, ...]:
    chance = random.Random(f"{seed}/questions")
    words = sorted(taught)
    found: list[tuple[float, HeldOutQuestion]] = []
    for number, one in enumerate(held_out):
        text, question = second_person(one.text), cue(one.text, f"{seed}/{number}")
        for match in re.finditer(r"(?<=\s)[\w'-]+", text):
            word = match.group()
            key = word.casefold()
            # What the question itself says is nothing to know.
            if key in taught and key not in COMMON_WORDS and key not in words_in(question):
                others = [other for other in words if other != key]
                alternatives = tuple(chance.sample(others, min(_NUM_ALTERNATIVES, len(others))))
                stem = text[: match.start()].rstrip()
                asked = HeldOutQuestion(f"{number}-{match.start()}", one.person, question, stem, word, alternatives)
                found.append((taught[key], asked))
    found.sort(key=lambda one: (-one[0], one[1].id))
    return tuple(asked for _, asked in found[:MAX_QUESTIONS]) if len(words) > 1 else ()


def _canaries(
    seen: Sequence[Statement], said: dict[str, frozenset[str]], tokenizer: Tokenizer, vocab_size: int, seed: int
) -> tuple[Canary, ...]:
    chance = random.Random(f"{seed}/canaries")
    pools = single_words(tokenizer, vocab_size)
    # A reference is a word that nobody was told.
    unsaid = {kind: sorted(word for word in pool if word.casefold() not in said) for kind, pool in pools.items()}
    found: list[Canary] = []
    for number, one in enumerate(seen):
        text, prompt = second_person(one.text), cue(one.text, f"{seed}/canary/{number}")
        asked = words_in(prompt)
        for match in re.finditer(r"(?<=\s)[A-Za-z]+", text):
            word, key = match.group(), match.group().casefold()
            kind = word[0].isupper()
            is_secret = len(said.get(key, ())) == 1 and word in pools[kind] and key not in asked
            if is_secret and len(unsaid[kind]) >= _LEAST_REFERENCES:
                stem = text[: match.start()].rstrip()
                found.append(Canary(f"{number}-{match.start()}", one.person, prompt, stem, word, ()))
    chosen = chance.sample(found, min(MAX_CANARIES, len(found)))
    return tuple(
        replace(one, references=tuple(chance.sample(pool, min(_NUM_REFERENCES, len(pool)))))
        for one in chosen
        for pool in (unsaid[one.secret[0].isupper()],)
    )


def single_words(tokenizer: Tokenizer, vocab_size: int) -> dict[bool, set[str]]:
    """Returns the words that are one token behind a space, by whether they begin with a capital."""
    words: dict[bool, set[str]] = {True: set(), False: set()}
    for token in range(vocab_size):
        text = tokenizer.decode([token])
        if re.fullmatch(r" [A-Za-z][a-z]{2,}", text) and tokenizer.encode(text) == [token]:
            words[text[1].isupper()].add(text[1:])
    return words


def gather_evidence(
    home: Path,
    candidate: str,
    champion: LoadedCore,
    origin: LoadedCore,
    material: Material,
    say: Say,
    engine: EngineConfig,
    notes: Mapping[str, str] = MappingProxyType({}),
    look: Look = go_on,
) -> Evidence:
    """Measures a stored candidate against the core that serves and the first one, once.

    They are read in the numbers in which they serve, but for secrets: what a candidate gained on one may be less than
    what short numbers round away. What a core has said to a suite is kept in the home, and not asked again: most nights
    only the candidate is new. What `look` raises ends it between two readings.
    Raises: Corrupt and NotFound for a core; InvalidInput when they cannot be compared; Unavailable.
    """
    crew = Crew(engine.num_threads or os.cpu_count() or 1, look)
    dtype = dtype_for(engine.dtype, "cpu")
    loaded = CoreStore(home).load(candidate)
    by_digest = {one.digest: one for one in (loaded, champion, origin)}
    cores = {digest: Core(one.config, one.tensors, "cpu", dtype) for digest, one in by_digest.items()}
    say(f"asking {len(cores)} cores")
    asked = _readings(cores, champion.tokenizer, replace(material, canaries=()), ReadingStore(home), crew)
    readings = {}
    for digest, reading in asked.items():
        one, core = by_digest[digest], cores[digest]
        exact = core if core.dtype == torch.float32 else Core(one.config, one.tensors)
        (secrets,) = read_secrets([exact], champion.tokenizer, material.canaries, crew)
        readings[digest] = replace(reading, secrets=secrets)
    say("reading the anchors")
    compared = Cores(cores[loaded.digest], cores[champion.digest], cores[origin.digest])
    measured = measure_candidate(
        compared,
        champion.tokenizer,
        material,
        readings[champion.digest],
        readings[origin.digest],
        crew,
        candidate=readings[loaded.digest],
    )
    say("trying the candidate in a clean process")
    tried = _tried(home, loaded.digest, champion.digest, engine.dtype, crew)
    return Evidence(loaded.digest, champion.digest, origin.digest, (*measured, *tried), notes)


def exam_of(config: SiltstoneConfig, suites: Sequence[ProbeSuite]) -> Exam:
    """Returns the exam that the configuration says, in which the suites are asked.

    Raises: ConfigInvalid for a policy that is not whole.
    """
    return Exam(gather_evidence, policy_of(config, [suite.name for suite in suites]))


def _readings(
    cores: Mapping[str, Core], tokenizer: Tokenizer, material: Material, store: ReadingStore, crew: Crew
) -> dict[str, Reading]:
    """Asks every core, by digest, what it has not been asked before, and forgets what other cores have said."""
    kept: dict[str, dict[str, tuple[float, ...]]] = {}
    for digest, core in cores.items():
        found = {suite.name: store.get(digest, _digest_of(suite, core)) for suite in material.suites}
        kept[digest] = {name: numbers for name, numbers in found.items() if numbers is not None}
    readings = read_cores(list(cores.values()), tokenizer, material, crew, list(kept.values()))
    for (digest, core), reading in zip(cores.items(), readings, strict=True):
        for suite in material.suites:
            if suite.name not in kept[digest]:
                store.put(digest, _digest_of(suite, core), reading.items[suite.name])
    store.keep_only(cores)
    return dict(zip(cores, readings, strict=True))


def _digest_of(suite: ProbeSuite, core: Core) -> str:
    """Returns the digest of what is asked and of how it is computed; the core's own digest says what answers."""
    return hashlib.sha256(repr((_HOW_IT_IS_READ, suite, core.dtype)).encode()).hexdigest()


def _tried(home: Path, candidate: str, champion: str, precision: Precision, crew: Crew) -> tuple[Measurement, ...]:
    # All at once, on however few cores: what they time is their own threads' time.
    trials = Crew(_NUM_TRIALS, crew.look).run([partial(try_core, home, candidate, champion, precision)] * _NUM_TRIALS)
    pairs = [pair for trial in trials if trial is not None for pair in trial]
    loading = loading_measurement([trial is not None for trial in trials])
    if not pairs:
        return (loading,)
    return loading, speed_measurement([own for own, _ in pairs], [other for _, other in pairs])
