"""The dream stage of a shared sleep: filter, dream under every memory that may be evidence, find what they agree on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, InvalidInput, SnapshotMismatch
from siltstone.memory.restate import cue, second_person, sentences
from siltstone.memory.user_memory import from_blob
from siltstone.model.lesson import Lesson
from siltstone.ports import SnapshotStore
from siltstone.sleep.consensus import Raised, consensus
from siltstone.sleep.distil import dream_item
from siltstone.sleep.dreams import Dream, DreamReader, Reading
from siltstone.sleep.filter import DropReason, Filtered, Statement, filter_statements
from siltstone.sleep.frames import frame_words, is_contested
from siltstone.sleep.held_out import choose_held_out
from siltstone.sleep.importance import importances
from siltstone.sleep.sampled import cues_of
from siltstone.sleep.selection import choose, worth
from siltstone.sleep.words import is_telling, supporters, who_said, words_in, words_of_tokens
from siltstone.sleep_values import SleepPlan
from siltstone.values import Interaction, UserKey
from siltstone_services.bed import Bed, Say, crew_of, sampler_of
from siltstone_services.dreaming import SampledText, sample_dreams


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
    secretive: tuple[Dream, ...] = ()
    """Other dreams with words of too few people in them, at which the core is to stay as it is."""


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

    `on_read` is told how many dreams of how many have been read; there are more once the first have been.

    Raises: InvalidInput when nothing is left to sleep over.
    """
    settings, k_min = config.sleep, config.sleep.consensus.k_min
    filtered = filter_statements(
        interactions, plan.since_ms, plan.until_ms, person_of, sentences, is_personal, settings.filter
    )
    say(f"{len(filtered.statements)} statements of {len({one.person for one in filtered.statements})} people")
    left_out = choose_held_out(filtered.statements, settings.held_out_share, settings.min_held_out, k_min, plan.seed)
    seen = [one for one in filtered.statements if one.person not in left_out]
    told = _Told(seen, plan, bed, config)
    own = [(one, told.recalled(one)) for one in seen]
    recalled = [(one, dream) for one, dream in own if dream.people(k_min)]
    if not recalled:
        raise InvalidInput("the window", f"something that {k_min} people said", "nothing")
    coefficients, passed_over = _memories(plan, store, bed)
    sampled, faults = sample_dreams(
        sampler_of(bed, config),
        cues_of(seen, settings.sampling, plan.id, cue),
        coefficients,
        settings.sampling,
        is_personal,
    )
    say(f"{len(sampled)} dreams were sampled from {len(coefficients)} memories")
    supported = [dream for one in sampled if (dream := told.sampled(one)).people(k_min)]

    memories: dict[str, list[Tensor]] = {}
    for owner, held in coefficients.items():
        memories.setdefault(person_of(owner), []).append(held)
    heard = _Heard(bed, memories, config, on_read)
    heard.read([*(dream for _, dream in recalled), *supported])
    # What people differ in need not be dreamt once more; that it is not must not make its words look agreed on.
    frames = heard.frames()
    again = [one for (one, _), is_contested in zip(recalled, heard.contested, strict=False) if not is_contested]
    heard.read([dream for one in again for dream in told.answered(one)])
    passed = ", ".join(f"{num} {reason.value}" for reason, num in passed_over.items())
    passed = f" (passed over: {passed})" if passed else ""
    say(f"{len(heard.dreams)} dreams under {len(memories)} people's memories{passed}")

    raised = heard.agreed_on(frames)
    worths = [worth(tokens, reading.core_logp_N) for tokens, reading in zip(raised, heard.readings, strict=True)]
    kept = _chosen(heard.dreams, raised, worths, plan, bed, config)
    if not kept:
        raise InvalidInput("the memories", f"something that {k_min} people's memories hold", f"nothing{passed}")
    num_unsupported = len(seen) - len(recalled) + len(sampled) - len(supported)
    num_contested = sum(heard.contested)
    dropped = Counter(filtered.dropped) + passed_over + faults
    dropped[DropReason.NOT_SUPPORTED] += num_unsupported
    dropped[DropReason.CONTESTED] += num_contested
    dropped[DropReason.NOT_LEARNED] += sum(value <= 0 for value in worths) - num_contested
    return DreamtNight(
        tuple(heard.dreams[index] for index in kept),
        tuple(tuple(raised[index]) for index in kept),
        len(heard.dreams),
        {reason: num for reason, num in dropped.items() if num},
        filtered,
        left_out,
        heard.taught(kept, raised),
        _secretive([dream for _, dream in own], [heard.dreams[index] for index in kept], plan, config),
    )


def _secretive(
    recalled: Sequence[Dream], kept: Sequence[Dream], plan: SleepPlan, config: SiltstoneConfig
) -> tuple[Dream, ...]:
    """Returns the statements that hold words of too few people and are not trained on anyway: as many as are read."""
    trained = {one.lesson.ids for one in kept}
    k_min, distil = config.sleep.consensus.k_min, config.sleep.distil
    found = [one for one in recalled if one.lesson.ids not in trained and one.secrets(k_min)]
    num = min(len(found), distil.num_steps * distil.num_secrets)
    return tuple(random.Random(f"{plan.seed}/secrets").sample(found, num))


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


def _chosen(
    dreams: Sequence[Dream],
    raised: Sequence[Sequence[Raised]],
    worths: Sequence[float],
    plan: SleepPlan,
    bed: Bed,
    config: SiltstoneConfig,
) -> list[int]:
    """Returns which dreams are trained on."""
    settings = config.sleep
    if settings.selection == "gradient":
        items = [
            dream_item(one.lesson, one.places, tokens, one.person) for one, tokens in zip(dreams, raised, strict=True)
        ]
        worths = importances(
            bed.core, bed.shape, bed.ground.basis, bed.ground.guard, bed.prefix, items, settings.read_batch
        )
    people = [one.person for one in dreams]
    return choose(worths, people, settings.max_dreams, settings.random_share, plan.seed)


class _Told:
    """What people told, and how it is dreamt again."""

    def __init__(self, seen: Sequence[Statement], plan: SleepPlan, bed: Bed, config: SiltstoneConfig) -> None:
        self._plan, self._bed = plan, bed
        self._k_min, self._num_foreign_cues = config.sleep.consensus.k_min, config.sleep.num_foreign_cues
        self._said = who_said((one.person, one.text) for one in seen)
        self._by_word: dict[str, list[Statement]] = {}
        for one in seen:
            for word in set(words_in(one.text)):
                self._by_word.setdefault(word, []).append(one)

    def recalled(self, one: Statement) -> Dream:
        """Returns a statement as the answer to a cue of its own."""
        return self._dream(one.person, self._bed.lessons.as_recalled(one.text, self._seed(one)))

    def sampled(self, one: SampledText) -> Dream:
        """Returns what a memory answered to its cue."""
        return self._dream(one.cue.person, self._bed.lessons.as_answered(one.cue.text, one.text))

    def answered(self, one: Statement) -> Iterator[Dream]:
        """Yields a statement as the answer to cues of what others said who used its rarest word that enough people did.

        They speak of the same thing in other words, as somebody will who asks for it.
        """
        said, by_word = self._said, self._by_word
        shared = [word for word in sorted(set(words_in(one.text))) if len(said.get(word, ())) >= self._k_min]
        if shared:
            rarest = min(shared, key=lambda word: (len(by_word[word]), word))
            others = [other for other in by_word[rarest] if other.person != one.person]
            seed = self._seed(one)
            for other in random.Random(seed).sample(others, min(self._num_foreign_cues, len(others))):
                asked = cue(other.text, seed)
                yield self._dream(one.person, self._bed.lessons.as_answered(asked, second_person(one.text)))

    def _seed(self, one: Statement) -> str:
        return f"{self._plan.id}/{one.interaction_id}/{one.text}"

    def _dream(self, person: str, lesson: Lesson) -> Dream:
        places = [at for at, weight in enumerate(lesson.weights) if at and weight > 0]
        words = words_of_tokens(self._bed.loaded.tokenizer, [lesson.ids[at] for at in places])
        return Dream(person, lesson, tuple(supporters(words, self._said)))


class _Heard:
    """What the memories make of dreams, read so far: `contested` says of each whether people differ in it."""

    def __init__(
        self,
        bed: Bed,
        memories: Mapping[str, Sequence[Tensor]],
        config: SiltstoneConfig,
        on_read: Callable[[int, int], None],
    ) -> None:
        self._tokenizer, self._memories, self._on_read = bed.loaded.tokenizer, memories, on_read
        self._config, self._batch = config.sleep.consensus, config.sleep.read_batch
        self._reader = DreamReader(bed.core, bed.shape, bed.ground.basis, bed.prefix, crew_of(config, bed.look))
        self._telling: dict[int, bool] = {}
        self.dreams: list[Dream] = []
        self.readings: list[Reading] = []
        self.contested: list[bool] = []
        self.words: list[list[str]] = []
        self.raised: list[list[Raised]] = []
        """Of every dream the tokens that enough people have said and hold, whether they differ in it or not."""

    def read(self, dreams: Sequence[Dream]) -> None:
        """Reads more dreams under every memory that may be evidence."""
        start, found = len(self.dreams), dict[int, Reading]()
        evidence_nats = self._config.evidence_nats
        for index, reading in self._reader.read(dreams, self._memories, self._readers, evidence_nats, self._batch):
            found[index] = reading
            self._on_read(start + len(found), start + len(dreams))
        self.dreams += dreams
        self.readings += [found[index] for index in range(len(dreams))]
        for one, held in zip(dreams, self.readings[start:], strict=True):
            self.words.append(words_of_tokens(self._tokenizer, [one.lesson.ids[at] for at in one.places]))
            self.contested.append(is_contested(held.certain_UN, held.people, self._tells, self._config.k_min))
            self.raised.append(
                consensus(held.core_logp_N, held.memory_logp_UN, held.people, one.supporters, self._config)
            )

    def frames(self) -> frozenset[str]:
        """Returns the words that are frames, by the dreams read so far."""
        return frame_words(
            (words[token.at], worth([token], reading.core_logp_N), contested)
            for words, tokens, reading, contested in zip(
                self.words, self.raised, self.readings, self.contested, strict=True
            )
            for token in tokens
        )

    def agreed_on(self, frames: frozenset[str]) -> list[list[Raised]]:
        """Returns the raised tokens of every dream: none where people differ, and no frames."""
        return [
            [] if contested else [token for token in tokens if words[token.at] not in frames]
            for words, tokens, contested in zip(self.words, self.raised, self.contested, strict=True)
        ]

    def taught(self, kept: Iterable[int], raised: Sequence[Sequence[Raised]]) -> dict[str, float]:
        """Returns, by word, what some of the dreams are to teach the core of it, nats."""
        taught: dict[str, float] = {}
        for index in kept:
            words = self.words[index]
            for token in raised[index]:
                word = words[token.at]
                taught[word] = taught.get(word, 0.0) + worth([token], self.readings[index].core_logp_N)
        return {word: nats for word, nats in taught.items() if word}

    def _readers(self, one: Dream) -> tuple[str, ...]:
        return one.readers(self._config.k_min, self._config.max_readers)

    def _tells(self, token: int) -> bool:
        if token not in self._telling:
            self._telling[token] = is_telling(self._tokenizer.decode([token]))
        return self._telling[token]
