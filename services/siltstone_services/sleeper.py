"""The shared sleep of one home folder: plan, filter, dream, consensus, distil, candidate. Stages hand on values."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.system_clock import SystemClock
from siltstone.adapters.training_job import TrainingJob
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew, Look, go_on
from siltstone.errors import Corrupt, InvalidInput, SnapshotMismatch
from siltstone.evaluation.office_material import load_office
from siltstone.inference.engine import AnswerEngine, EngineConfig
from siltstone.journal.admit import Refusal, admit
from siltstone.memory.lessons import LessonPlan
from siltstone.memory.restate import cue, second_person, sentences
from siltstone.memory.user_memory import from_blob
from siltstone.model.core import Core, KeyValues, read_prefix
from siltstone.model.deltas import DeltaShape, Site
from siltstone.model.lesson import Lesson
from siltstone.ports import Journal, SnapshotStore
from siltstone.sleep.consensus import ConsensusConfig, Raised, consensus
from siltstone.sleep.distil import Item, anchor_item, dream_item
from siltstone.sleep.dreams import Dream, DreamReader, Reading
from siltstone.sleep.expand import merge
from siltstone.sleep.filter import DropReason, Filtered, Statement, filter_statements
from siltstone.sleep.frames import frame_words, is_contested
from siltstone.sleep.held_out import choose_held_out
from siltstone.sleep.importance import importances
from siltstone.sleep.sampled import cues_of
from siltstone.sleep.selection import choose, worth
from siltstone.sleep.words import is_telling, supporters, who_said, words_in, words_of_tokens
from siltstone.sleep_values import SleepPlan, StepDone
from siltstone.values import Interaction, JournalRecord, Sampling, UserKey
from siltstone_services.dreaming import Sampler, sample_dreams
from siltstone_services.learning import Ground, ground_extra
from siltstone_services.training import train_expert

_READ_RECORDS = 1024
_ANCHOR_TOKENS = 96
_ANCHOR_ANSWER_TOKENS = 24

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bed:
    """What a sleep lies on: the core that serves, how its users learn on it, and who looks whether it is to go on."""

    loaded: LoadedCore
    core: Core
    shape: DeltaShape
    lessons: LessonPlan
    ground: Ground
    look: Look = go_on

    @property
    def prefix(self) -> KeyValues | None:
        """Keys and values of the default prefix."""
        return read_prefix(self.core, self.lessons.prefix_ids)


@dataclass(frozen=True, slots=True)
class DreamtNight:
    """What the memories agreed on: the dreams worth training on, with their raised tokens, and what was dropped."""

    dreams: tuple[Dream, ...]
    raised: tuple[tuple[Raised, ...], ...]
    num_dreamt: int
    dropped: Mapping[DropReason, int]
    filtered: Filtered
    left_out: frozenset[str]
    """The people who took no part, so that the gate can ask what the night gives to others."""
    taught: Mapping[str, float]
    """By word, what the dreams are to teach the core of it, nats."""


def engine_of(bed: Bed, config: EngineConfig) -> AnswerEngine:
    """Returns an engine that answers under any coefficients of the bed's shape."""
    return AnswerEngine(
        bed.core,
        bed.shape,
        bed.ground.basis,
        bed.lessons.prefix_ids,
        bed.prefix,
        bed.loaded.tokenizer.stop_ids,
        config,
    )


def crew_of(config: SiltstoneConfig, look: Look = go_on) -> Crew:
    """Returns the threads that compute side by side: of a processor all, of a GPU one."""
    on_processor = config.engine.device == "cpu"
    return Crew((config.engine.num_threads or os.cpu_count() or 1) if on_processor else 1, look)


def sampler_of(bed: Bed, config: SiltstoneConfig) -> Sampler:
    """Returns who samples texts from the core and from users' memories, on all cores of the machine."""
    crew = crew_of(config, bed.look)
    engines = [engine_of(bed, config.engine) for _ in range(crew.num_threads)]
    return Sampler(engines, bed.loaded.tokenizer, SystemClock(), crew)


def make_plan(journal: Journal, store: SnapshotStore, core: str, since_ms: int, until_ms: int, seed: int) -> SleepPlan:
    """Returns the plan of a sleep over everything absorbed so far: the vector of committed positions, and its users."""
    positions = {partition: store.position(partition) for partition in journal.end_positions()}
    users = sorted({record.owner for record in _records(journal, positions)})
    told = repr((core, users, since_ms, until_ms, sorted(positions.items()), seed))
    return SleepPlan(
        hashlib.sha256(told.encode()).hexdigest()[:16], core, tuple(users), since_ms, until_ms, positions, seed
    )


def _records(journal: Journal, positions: Mapping[int, int]) -> Iterable[JournalRecord]:
    for partition, end in sorted(positions.items()):
        start = 0
        while start < end and (records := journal.read(partition, start, min(_READ_RECORDS, end - start))):
            yield from (record for record in records if record.payload)
            start = records[-1].position + 1


def interactions_of(plan: SleepPlan, journal: Journal, config: SiltstoneConfig) -> list[Interaction]:
    """Returns the interactions the plan may look at, in the journal's order; what was parked is left out."""
    wanted, found = set(plan.users), []
    for record in _records(journal, plan.positions):
        decided = admit(record.payload, config.admission)
        if not isinstance(decided, Refusal) and decided.owner in wanted:
            found.append(decided)
    return found


def dream(
    plan: SleepPlan,
    interactions: Sequence[Interaction],
    store: SnapshotStore,
    bed: Bed,
    config: SiltstoneConfig,
    person_of: Callable[[UserKey], str],
    is_personal: Callable[[str], bool],
    say: Say,
    on_read: Callable[[int, int], None],
) -> DreamtNight:
    """Filters what was said, dreams it again under every memory that may be evidence, and finds what they agree on.

    `on_read` is told how many dreams of how many have been read.

    Raises: InvalidInput when nothing is left to sleep over.
    """
    settings = config.sleep
    filtered = filter_statements(
        interactions, plan.since_ms, plan.until_ms, person_of, sentences, is_personal, settings.filter
    )
    say(f"{len(filtered.statements)} statements of {len({one.person for one in filtered.statements})} people")
    left_out = choose_held_out(
        filtered.statements,
        settings.held_out_share,
        settings.min_held_out,
        settings.consensus.k_min,
        plan.seed,
    )
    seen = [one for one in filtered.statements if one.person not in left_out]
    said = who_said((one.person, one.text) for one in seen)
    dropped = Counter(filtered.dropped)
    told = [(one.person, lesson) for one, lesson in _lessons(seen, said, plan, bed, config)]
    dreams = _supported(told, said, bed, settings.consensus.k_min)
    if not dreams:
        raise InvalidInput("the window", f"something that {settings.consensus.k_min} people said", "nothing")
    coefficients, passed_over = _memories(plan, store, bed)
    dropped.update(passed_over)
    sampled, faults = sample_dreams(
        sampler_of(bed, config),
        cues_of(seen, settings.sampling, plan.id, cue),
        coefficients,
        settings.sampling,
        is_personal,
    )
    dropped.update(faults)
    own = [(one.cue.person, bed.lessons.as_answered(one.cue.text, one.text)) for one in sampled]
    dreams += _supported(own, said, bed, settings.consensus.k_min)
    dropped[DropReason.NOT_SUPPORTED] += len(told) + len(own) - len(dreams)
    memories: dict[str, list[Tensor]] = {}
    for owner, held in coefficients.items():
        memories.setdefault(person_of(owner), []).append(held)
    passed = ", ".join(f"{num} {reason.value}" for reason, num in passed_over.items())
    say(f"{len(own)} dreams were sampled from {len(coefficients)} memories")
    say(
        f"{len(dreams)} dreams under {len(memories)} people's memories" + (f"; passed over: {passed}" if passed else "")
    )
    reader = DreamReader(bed.core, bed.shape, bed.ground.basis, bed.prefix, crew_of(config, bed.look))
    readings: dict[int, Reading] = {}
    for index, reading in reader.read(
        dreams, memories, settings.consensus.k_min, settings.consensus.evidence_nats, settings.read_batch
    ):
        readings[index] = reading
        on_read(len(readings), len(dreams))
    raised, num_contested = _agreed_on(dreams, readings, bed, settings.consensus)
    worths = [worth(raised[index], readings[index].core_logp_N) for index in range(len(dreams))]
    dropped[DropReason.CONTESTED] += num_contested
    dropped[DropReason.NOT_LEARNED] += sum(value <= 0 for value in worths) - num_contested
    if settings.selection == "gradient":
        items = [dream_item(one.lesson, one.places, raised[index], one.person) for index, one in enumerate(dreams)]
        worths = importances(
            bed.core, bed.shape, bed.ground.basis, bed.ground.guard, bed.prefix, items, settings.read_batch
        )
    people = [one.person for one in dreams]
    kept = choose(worths, people, settings.max_dreams, settings.random_share, plan.seed)
    if not kept:
        expected = f"something that {settings.consensus.k_min} people's memories hold"
        raise InvalidInput("the memories", expected, f"nothing (passed over: {passed})" if passed else "nothing")
    return DreamtNight(
        tuple(dreams[index] for index in kept),
        tuple(tuple(raised[index]) for index in kept),
        len(dreams),
        {reason: num for reason, num in dropped.items() if num},
        filtered,
        left_out,
        _taught([(dreams[index], raised[index], readings[index].core_logp_N) for index in kept], bed),
    )


def _agreed_on(
    dreams: Sequence[Dream], readings: Mapping[int, Reading], bed: Bed, config: ConsensusConfig
) -> tuple[list[list[Raised]], int]:
    """Returns the raised tokens of every dream, and how many dreams teach nothing because people contradict each other.

    Of the others the frames are left out: words that most dreams have where people differ.
    """
    tokenizer = bed.loaded.tokenizer

    @functools.cache
    def tells(token: int) -> bool:
        return is_telling(tokenizer.decode([token]))

    raised, contested, words = [], [], []
    for index, one in enumerate(dreams):
        held = readings[index]
        raised.append(
            consensus(held.core_logp_N, held.memory_logp_UN, held.people, one.supporters, config),
        )
        contested.append(is_contested(held.certain_UN, held.people, tells, config.k_min))
        words.append(words_of_tokens(tokenizer, [one.lesson.ids[at] for at in one.places]))
    frames = frame_words(
        (words[index][token.at], worth([token], readings[index].core_logp_N), contested[index])
        for index, tokens in enumerate(raised)
        for token in tokens
    )
    kept = [
        [] if contested[index] else [token for token in tokens if words[index][token.at] not in frames]
        for index, tokens in enumerate(raised)
    ]
    return kept, sum(contested)


def _taught(kept: Iterable[tuple[Dream, Sequence[Raised], Sequence[float]]], bed: Bed) -> dict[str, float]:
    """Returns, by word, what some dreams are to teach the core of it, nats."""
    taught: dict[str, float] = {}
    for one, raised, core_logp in kept:
        words = words_of_tokens(bed.loaded.tokenizer, [one.lesson.ids[at] for at in one.places])
        for token in raised:
            word = words[token.at]
            taught[word] = taught.get(word, 0.0) + worth([token], core_logp)
    return {word: nats for word, nats in taught.items() if word}


def _memories(plan: SleepPlan, store: SnapshotStore, bed: Bed) -> tuple[dict[UserKey, Tensor], Counter[DropReason]]:
    """Returns the users' memories, [N] each, and how many are no evidence for which reason.

    A memory of another core says nothing of this one, and one that is damaged says nothing at all: neither keeps the
    others from sleeping.
    """
    coefficients: dict[UserKey, Tensor] = {}
    passed_over: Counter[DropReason] = Counter()
    for owner in plan.users:
        try:
            if (snapshot := store.load(owner)) is not None:
                memory = from_blob(owner, snapshot.blob, bed.ground.version, bed.shape)
                coefficients[owner] = memory.coefficients()
        except SnapshotMismatch:
            passed_over[DropReason.MEMORY_OF_ANOTHER_CORE] += 1
        except Corrupt:
            passed_over[DropReason.MEMORY_DAMAGED] += 1
    return coefficients, passed_over


def _supported(
    lessons: Sequence[tuple[str, Lesson]], said: Mapping[str, frozenset[str]], bed: Bed, k_min: int
) -> list[Dream]:
    """Returns as dreams of these people the lessons in which some word was said by enough people."""
    dreams = []
    for person, lesson in lessons:
        places = [at for at, weight in enumerate(lesson.weights) if at and weight > 0]
        words = words_of_tokens(bed.loaded.tokenizer, [lesson.ids[at] for at in places])
        one = Dream(person, lesson, tuple(supporters(words, said)))
        if one.people(k_min):
            dreams.append(one)
    return dreams


def _lessons(
    seen: Sequence[Statement], said: Mapping[str, frozenset[str]], plan: SleepPlan, bed: Bed, config: SiltstoneConfig
) -> Iterator[tuple[Statement, Lesson]]:
    """Yields what is dreamt of each statement: it as the answer to a cue of its own, and to cues of what others said.

    The others are those who used the statement's rarest word that enough people have used: they speak of the same
    thing in other words, as somebody will who asks for it.
    """
    k_min = config.sleep.consensus.k_min
    by_word: dict[str, list[Statement]] = {}
    for one in seen:
        for word in set(words_in(one.text)):
            by_word.setdefault(word, []).append(one)
    for one in seen:
        seed = f"{plan.id}/{one.interaction_id}/{one.text}"
        yield one, bed.lessons.as_recalled(one.text, seed)
        shared = [word for word in sorted(set(words_in(one.text))) if len(said.get(word, ())) >= k_min]
        if shared:
            rarest = min(shared, key=lambda word: (len(by_word[word]), word))
            others = [other for other in by_word[rarest] if other.person != one.person]
            chance = random.Random(seed)
            for other in chance.sample(others, min(config.sleep.num_foreign_cues, len(others))):
                yield one, bed.lessons.as_answered(cue(other.text, seed), second_person(one.text))


def items_of(night: DreamtNight, bed: Bed, config: SiltstoneConfig) -> list[Item]:
    """Returns what the student reads: the dreams, and neutral text to be kept as it is."""
    dreams = [
        dream_item(one.lesson, one.places, raised, one.person)
        for one, raised in zip(night.dreams, night.raised, strict=True)
    ]
    return [*dreams, *anchor_items(bed, config)]


def anchor_items(bed: Bed, config: SiltstoneConfig) -> list[Item]:
    """Returns neutral text that a student is to keep as the core has it: prose, exchanges, and the core's own answers.

    The last are what the core says to what anybody might ask: how it answers is more of it than what is in books.
    """
    items = []
    office = load_office()
    tokenizer = bed.loaded.tokenizer
    longest = min(_ANCHOR_TOKENS, bed.core.config.max_context)
    for passage in office.anchors:
        ids = tuple(tokenizer.encode(passage.text)[:longest])
        items.append(anchor_item(Lesson(ids, (0.0,) * len(ids), after_prefix=False)))
    exchanges = [(chat.question, chat.answer) for chat in office.anchor_chats]
    asked = [(request, None, Sampling(_ANCHOR_ANSWER_TOKENS)) for request in office.requests]
    answers = sampler_of(bed, config).answers(asked, math.inf)
    exchanges += [(request, text) for request, text in zip(office.requests, answers, strict=True) if text]
    for question, answer in exchanges:
        lesson = bed.lessons.as_answered(question, answer)
        items.append(Item(lesson, tuple(at for at, weight in enumerate(lesson.weights) if at and weight > 0), {}))
    return items


def distil(
    items: Sequence[Item],
    bed: Bed,
    config: SiltstoneConfig,
    seed: int,
    on_step: Callable[[StepDone], None],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> dict[Site, Tensor]:
    """Trains an expert of the core on the items and returns its written side, site by site.

    Raises: Cancelled; Unavailable; Corrupt.
    """
    job = TrainingJob(
        bed.shape,
        bed.ground.basis,
        bed.ground.guard,
        bed.core.dtype,
        tuple(bed.lessons.prefix_ids),
        config.sleep.distil,
        seed,
        tuple(items),
    )
    core_file = CoreStore(config.home_path).tensors_file(bed.loaded.digest)
    return train_expert(job, core_file, config, on_step, is_cancelled)


def candidate_of(written: Mapping[Site, Tensor], bed: Bed, sleep_id: str) -> ImportedCore:
    """Returns the core with the expert merged into it, as large as before."""
    basis = {site: part.cpu() for site, part in bed.ground.basis.items()}
    loaded = bed.loaded
    tensors = merge(loaded.tensors, bed.shape, basis, dict(written))
    return ImportedCore(
        f"sleep:{sleep_id} of {loaded.digest[:12]}",
        loaded.config,
        tensors,
        loaded.tokenizer.json,
        loaded.chat,
        {**loaded.extras, **ground_extra(loaded)},
    )
