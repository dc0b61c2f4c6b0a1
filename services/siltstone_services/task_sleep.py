"""The core improves itself on a task that the operator names, and the outcome goes the way of a night's candidate.

1. See that the task fits the core; clear up after nights before. 2. Dream, try and reward, round after round. 3. Distil
the rewarded dreams, anchors mixed in. 4. Keep the candidate core. 5. Measure it, and record and judge it as a version.
Killed or cancelled between any two steps, what serves is untouched. No user's words or memories take part: what
they said is looked at for the evidence alone, that nothing of it is in the candidate.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import random
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import torch

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.personal_data import holds_personal_data
from siltstone.config import SiltstoneConfig
from siltstone.crew import Look, go_on
from siltstone.errors import InvalidInput
from siltstone.evaluation.external_probes import asked_suites
from siltstone.gate.measure import HeldOutQuestion, Material
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.gate.verdict import judge
from siltstone.memory.restate import cue, sentences
from siltstone.model.core import Core, read_prefix
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import Expert, Item
from siltstone.sleep.filter import filter_statements
from siltstone.sleep.restem import RoundDone, TaskDream, self_improve
from siltstone.sleep.sampled import fault_of
from siltstone.sleep.tasks import Question, Task
from siltstone.sleep.tuning import ReadText, Tuner, coefficients_of
from siltstone.sleep_values import CoreVersion, Lineage, NightStage, StepDone
from siltstone.values import Message, Role, Sampling
from siltstone.versions.keeping import origin_of
from siltstone_services.bed import Bed, engine_of, sampler_of
from siltstone_services.evidence_json import to_json
from siltstone_services.journal_and_store import open_journal_and_store
from siltstone_services.judging import Exam, exam_of, material_of
from siltstone_services.keeping import Keeper, name_of_night
from siltstone_services.night import At, identities_of, make_bed, nobody_watches
from siltstone_services.served import ServedCores, record_origin
from siltstone_services.sleeper import anchor_items, candidate_of, distil, interactions_of, make_plan
from siltstone_services.version_records import open_registry

Say = Callable[[str], None]

PROMPTS: Final = (
    "Say this in your own words, in one or two sentences.",
    "What follows from this? Answer in one or two sentences.",
    "Write one question about this, and its answer.",
)
"""What the core is asked to make of the task's text: restatements, implications, questions with answers."""
_LEARNED: Final = 0.9
"""What a rewarded dream's tokens are raised to."""
_FOREVER_MS: Final = 1 << 62
_LABEL: Final = re.compile(r"\**\b(?:question|answer|q|a)\b\**\s*:\**\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Score:
    """How the core answers a task's questions.

    `nats` is the mean log-probability of the right ending among those offered, `num_right` how often it is likeliest.
    """

    nats: float
    num_right: int
    num_questions: int


@dataclass(frozen=True, slots=True)
class TaskDone:
    """What a sleep over a task came to, with the scores on the questions held out."""

    task: Task
    rounds: tuple[RoundDone, ...]
    before: Score
    after: Score
    version: CoreVersion


class Examiner:
    """Asks one set of questions of a core and its low-rank copies."""

    def __init__(self, tuner: Tuner, bed: Bed, questions: Sequence[Question]) -> None:
        self._tuner, self._sizes = tuner, [len(one.endings) for one in questions]
        self._texts: list[ReadText] = tuner.read(
            [_offered(bed, one, ending) for one in questions for ending in one.endings]
        )

    def score(self, expert: Expert | None) -> Score:
        """Returns the score of a copy, or of the core."""
        found = self._tuner.log_likelihoods(expert, self._texts)
        nats, num_right, at = 0.0, 0, 0
        for size in self._sizes:
            own = found[at : at + size]
            most = max(own)
            nats += own[0] - most - math.log(math.fsum(math.exp(one - most) for one in own))
            num_right += own[0] == most
            at += size
        return Score(nats / len(self._sizes), num_right, len(self._sizes))


def _offered(bed: Bed, question: Question, ending: str) -> Lesson:
    tokenizer = bed.loaded.tokenizer
    skip = len(bed.lessons.prefix_ids)
    asked = tokenizer.render([Message(Role.USER, question.question)])[skip:]
    stem = tokenizer.encode(question.stem)
    end = tokenizer.encode(f" {ending}" if question.stem else ending)
    return Lesson((*asked, *stem, *end), (0.0,) * (len(asked) + len(stem)) + (1.0,) * len(end))


def run_task(
    config: SiltstoneConfig,
    task: Task,
    seed: int,
    say: Say,
    on_step: Callable[[StepDone], None],
    at: At = nobody_watches,
    look: Look = go_on,
    exam: Exam | None = None,
) -> TaskDone:
    """Runs a sleep over a task in a home folder. A server may use it meanwhile. The caller holds the home's nights.

    What `say`, `on_step` or `at` raises ends it there; up to and with `at(RECORD, ...)` nothing is recorded. So does
    what `look` raises; see `run_night`. The steps of the dreaming are the dreams that were tried.
    Raises: InvalidInput when the task does not fit the core, or no dream of it was rewarded; ConfigInvalid and NotFound
    for a probe file; ConfigInvalid for the policy; Corrupt; Unavailable. Nothing was recorded then.
    """
    at(NightStage.PLAN, 0, 0)
    home = config.home_path
    suites = asked_suites(config.gate)
    exam, cores = exam or exam_of(config, suites), CoreStore(home)
    with ExitStack() as opened:
        # 1.
        served = opened.enter_context(ServedCores(config))
        loaded = served.load(served.digest())
        bed = make_bed(config, loaded, look)
        _check_fits(task, bed, config)
        _, store = opened.enter_context(open_journal_and_store(config))
        registry = opened.enter_context(open_registry(config))
        sleep_id = _sleep_id(task, loaded.digest, config, seed)
        keeper = Keeper(registry, store, cores, BasisStore(home), {loaded.digest}, config.sleep.keep_versions)
        keeper.clear_up(sleep_id, say)
        # 2.
        tuner = Tuner(bed.core, bed.shape, bed.ground.basis, bed.ground.guard, bed.prefix)
        before = Examiner(tuner, bed, task.held_out).score(None)
        rounds = _improve(tuner, task, bed, config, seed, say, at)
        rewarded = [lesson for done in rounds for dream in done.rewarded for lesson in dream.lessons]
        if not rewarded:
            raise InvalidInput("the task", "a dream of the core that helps with it", "none")
        items = [_learned_item(lesson) for lesson in dict.fromkeys(rewarded)]
        say(f"{len(items)} exchanges of {sum(len(done.rewarded) for done in rounds)} rewarded dreams")
        # 3.
        num_steps = config.sleep.distil.num_steps
        at(NightStage.DISTIL, 0, num_steps)

        def on_distilled(done: StepDone) -> None:
            on_step(done)
            at(NightStage.DISTIL, done.step + 1, num_steps)

        distilled = distil([*items, *anchor_items(bed, config)], bed, config, seed, on_distilled)
        # 4.
        candidate = candidate_of(distilled.written, bed, sleep_id)
        digest = cores.add(candidate, name_of_night(sleep_id))
        # 5.
        at(NightStage.MEASURE, 0, 0)
        after = _score_core(Core(candidate.config, candidate.tensors), bed, task.held_out)
        origin = served.load(origin_of(registry.list(), loaded.digest))
        material = _material(suites, task, bed, config, seed)
        evidence = exam.measure(home, digest, loaded, origin, material, say, config.engine, {}, look)
        at(NightStage.RECORD, 0, 0)
        lineage = _lineage(task, sleep_id, loaded.digest, config, seed)
        record_origin(registry, home / "cores" / loaded.digest, lineage.code_revision)
        version = registry.record(home / "cores" / digest, lineage, to_json(evidence, _told(rounds, before, after)))
        at(NightStage.JUDGE, 0, 0)
        if version.verdict is None:
            version = registry.set_verdict(version.number, judge(evidence, exam.policy))
        keeper.clear_up(sleep_id, say)
    say(f"questions held out: {_in_words(before)} before, {_in_words(after)} after")
    return TaskDone(task, tuple(rounds), before, after, version)


def _improve(
    tuner: Tuner, task: Task, bed: Bed, config: SiltstoneConfig, seed: int, say: Say, at: At
) -> list[RoundDone]:
    """Dreams, tries and rewards, round after round."""
    settings = config.sleep.task
    held_in = Examiner(tuner, bed, task.held_in)
    num_tries, num_tried = settings.num_rounds * settings.num_kept, 0
    at(NightStage.DREAM, 0, num_tries)

    def sample(dreamer: Expert | None, number: int) -> list[TaskDream]:
        at(NightStage.DREAM, num_tried, num_tries)
        return _dream(task, bed, config, dreamer, f"{seed}/{task.digest}/{number}")

    def score(copy: Expert | None) -> float:
        nonlocal num_tried
        num_tried += copy is not None
        at(NightStage.DREAM, num_tried, num_tries)
        return held_in.score(copy).nats

    rounds = []
    for done in self_improve(tuner, sample, score, settings, seed):
        rounds.append(done)
        told = f"{done.num_dreamt} dreams, {len(done.rewarded)} of {len(done.gains)} rewarded"
        say(f"round {done.number + 1}: {told}")
    return rounds


def _in_words(score: Score) -> str:
    return f"{score.num_right} of {score.num_questions} right ({score.nats:.3f} nats)"


def _check_fits(task: Task, bed: Bed, config: SiltstoneConfig) -> None:
    tokenizer, room = bed.loaded.tokenizer, engine_of(bed, config.engine).max_context
    longest = max(len(tokenizer.render([Message(Role.USER, _prompt(task, what))])) for what in PROMPTS)
    if longest + config.sleep.task.max_tokens > room:
        expected = f"a text that leaves room for a dream in {room} tokens"
        raise InvalidInput("the task: context", expected, f"{longest} tokens before the dream")
    for one in (*task.held_in, *task.held_out):
        if max(len(_offered(bed, one, ending).ids) for ending in one.endings) + len(bed.lessons.prefix_ids) > room:
            raise InvalidInput("the task: questions", f"up to {room} tokens with their answers", one.question[:80])


def _prompt(task: Task, what: str) -> str:
    return f"{task.context}\n\n{what}"


def _dream(task: Task, bed: Bed, config: SiltstoneConfig, dreamer: Expert | None, seed: str) -> list[TaskDream]:
    settings = config.sleep.task
    chance = random.Random(seed)
    own = None if dreamer is None else coefficients_of(dreamer)
    asked = [
        (
            _prompt(task, PROMPTS[number % len(PROMPTS)]),
            own,
            Sampling(settings.max_tokens, settings.temperature, seed=chance.getrandbits(62)),
        )
        for number in range(settings.num_dreams)
    ]
    texts = sampler_of(bed, config).answers(asked, settings.max_s)
    dreams: dict[str, TaskDream] = {}
    for (prompt, _, _), text in zip(asked, texts, strict=True):
        # What the operator's own text holds is the operator's to decide.
        if text is None or text in dreams or fault_of(text, lambda _: False, config.sleep.sampling) is not None:
            continue
        if lessons := exchanges_of(text, bed, f"{seed}/{text}"):
            dreams[text] = TaskDream(text, tuple(lessons), _as_dreamt(prompt, text, bed))
    return list(dreams.values())


def exchanges_of(text: str, bed: Bed, seed: str) -> list[Lesson]:
    """Returns what a dream teaches: a question with what stands behind it, or each sentence as a cue's answer."""
    plain = _LABEL.sub("", text).strip()
    question, mark, answer = plain.partition("?")
    if mark and question.strip() and (told := " ".join(sentences(answer)) or answer.strip()):
        return [bed.lessons.as_answered(" ".join(question.split()) + "?", " ".join(told.split()))]
    return [
        bed.lessons.as_answered(cue(sentence, f"{seed}/{number}"), sentence)
        for number, sentence in enumerate(sentences(plain))
    ]


def _as_dreamt(prompt: str, text: str, bed: Bed) -> Lesson:
    tokenizer = bed.loaded.tokenizer
    asked = tokenizer.render([Message(Role.USER, prompt)])[len(bed.lessons.prefix_ids) :]
    told = [*tokenizer.encode(text), *tokenizer.turn_suffix(Role.ASSISTANT)[:1]]
    return Lesson((*asked, *told), (0.0,) * len(asked) + (1.0,) * len(told))


def _learned_item(lesson: Lesson) -> Item:
    places = tuple(at for at, weight in enumerate(lesson.weights) if at and weight > 0)
    return Item(lesson, places, dict.fromkeys(places, _LEARNED), "task")


def _score_core(core: Core, bed: Bed, questions: Sequence[Question]) -> Score:
    tuner = Tuner(core, bed.shape, bed.ground.basis, None, read_prefix(core, bed.lessons.prefix_ids))
    return Examiner(tuner, bed, questions).score(None)


def _material(suites: Sequence[ProbeSuite], task: Task, bed: Bed, config: SiltstoneConfig, seed: int) -> Material:
    """Returns what the candidate is asked: the questions held out, and users' secrets, which it cannot know."""
    with open_journal_and_store(config) as (journal, store):
        plan = make_plan(journal, store, bed.loaded.digest, 0, _FOREVER_MS, seed)
        interactions = interactions_of(plan, journal, config)
    person_of = identities_of(config).person_of
    filtered = filter_statements(
        interactions, 0, _FOREVER_MS, person_of, sentences, holds_personal_data, config.sleep.filter
    )
    tokenizer, size = bed.loaded.tokenizer, bed.loaded.config.vocab_size
    shared = material_of(suites, filtered.statements, (), tokenizer, size, {}, seed)
    questions = tuple(
        HeldOutQuestion(f"task-{number}", f"question {number}", one.question, one.stem, one.answer, one.wrong)
        for number, one in enumerate(task.held_out)
    )
    return replace(shared, questions=questions)


def _sleep_id(task: Task, core: str, config: SiltstoneConfig, seed: int) -> str:
    told = repr((core, task.digest, config.sleep, seed))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _lineage(task: Task, sleep_id: str, parent: str, config: SiltstoneConfig, seed: int) -> Lineage:
    told = {
        "task": task.digest,
        "policy": config.gate.policy_sha256,
        "sleep": repr(config.sleep),
        "memory": hashlib.sha256(repr(config.memory).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    return Lineage(parent, sleep_id, {}, (), {"sleep": seed}, told, importlib.metadata.version("siltstone"))


def _told(rounds: Sequence[RoundDone], before: Score, after: Score) -> dict[str, object]:
    return {
        "rounds": [
            {"dreamt": one.num_dreamt, "gains_nats": list(one.gains), "rewarded": len(one.rewarded)} for one in rounds
        ],
        "held_out_nats": [before.nats, after.nats],
        "held_out_right": [before.num_right, after.num_right, after.num_questions],
    }
