"""The shared sleep of one home folder, about its dreams: the plan before them, what is distilled of them after."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.training_job import TrainingJob
from siltstone.config import SiltstoneConfig
from siltstone.errors import InvalidInput
from siltstone.evaluation.office_material import load_office
from siltstone.journal.admit import Refusal, admit
from siltstone.model.core import Core
from siltstone.model.deltas import Site
from siltstone.model.lesson import Lesson
from siltstone.ports import Journal, SnapshotStore
from siltstone.sleep.distil import Expert, Item, Student, anchor_item, dream_item, secret_item
from siltstone.sleep.expand import merge
from siltstone.sleep.trust_region import fit, split_anchors
from siltstone.sleep_values import SleepPlan, StepDone
from siltstone.values import Interaction, JournalRecord, Sampling
from siltstone_services.bed import Bed, crew_of, sampler_of
from siltstone_services.dream_stage import DreamtNight
from siltstone_services.learning import ground_extra
from siltstone_services.training import train_expert

_READ_RECORDS = 1024
_ANCHOR_TOKENS = 96
_ANCHOR_ANSWER_TOKENS = 24
_KEPT_BACK_EVERY = 4
"""Every so many anchors one is not trained on, to tell by how far the expert may go."""


def make_plan(journal: Journal, store: SnapshotStore, core: str, since_ms: int, until_ms: int, seed: int) -> SleepPlan:
    """Returns the plan of a sleep over everything absorbed so far: the vector of committed positions, and its users."""
    positions = {partition: store.position(partition) for partition in journal.end_positions()}
    users = sorted({record.owner for record in _records(journal, positions)})
    told = repr((core, users, since_ms, until_ms, sorted(positions.items()), seed))
    return SleepPlan(
        hashlib.sha256(told.encode()).hexdigest()[:16], core, tuple(users), since_ms, until_ms, positions, seed
    )


def _records(journal: Journal, positions: Mapping[int, int]) -> Iterable[JournalRecord]:
    starts = journal.start_positions()
    for partition, end in sorted(positions.items()):
        start = starts[partition]
        while start < end and (records := journal.read(partition, start, min(_READ_RECORDS, end - start))):
            yield from (record for record in records if record.payload and record.defect is None)
            start = records[-1].position + 1


def interactions_of(plan: SleepPlan, journal: Journal, config: SiltstoneConfig) -> list[Interaction]:
    """Returns the interactions the plan may look at, in the journal's order; what was parked is left out."""
    wanted, found = set(plan.users), []
    for record in _records(journal, plan.positions):
        decided = admit(record.payload, config.admission)
        if not isinstance(decided, Refusal) and decided.owner in wanted:
            found.append(decided)
    return found


def items_of(night: DreamtNight, bed: Bed, config: SiltstoneConfig) -> list[Item]:
    """Returns what the student reads: the dreams, and neutral text to be kept as it is."""
    k_min = config.sleep.consensus.k_min
    dreams = [
        dream_item(one.lesson, one.places, raised, one.person, one.secrets(k_min))
        for one, raised in zip(night.dreams, night.raised, strict=True)
    ]
    secretive = [secret_item(one.lesson, one.places, one.secrets(k_min)) for one in night.secretive]
    return [*dreams, *secretive, *anchor_items(bed, config)]


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


@dataclass(frozen=True, slots=True)
class Distilled:
    """A trained expert: its written side, [layers, R, O] a site, and the share of it that neutral text allows."""

    written: Mapping[Site, Tensor]
    share: float


def distil(
    items: Sequence[Item],
    bed: Bed,
    config: SiltstoneConfig,
    seed: int,
    on_step: Callable[[StepDone], None],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Distilled:
    """Trains an expert of the core on the items and makes it as small as anchors ask that were kept back.

    Raises: InvalidInput when no share of it is small enough; Cancelled; Unavailable; Corrupt.
    """
    items, kept_back = split_anchors(items, _KEPT_BACK_EVERY) if config.sleep.most_drift_nats else (items, [])
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
    written = train_expert(job, core_file, config, on_step, is_cancelled)
    return _fitted(written, kept_back, bed, config) if kept_back else Distilled(written, 1.0)


def _fitted(written: Mapping[Site, Tensor], kept_back: Sequence[Item], bed: Bed, config: SiltstoneConfig) -> Distilled:
    # In short numbers what is measured would be rounding: it alone changes the next token of one in forty.
    core = Core(bed.loaded.config, bed.loaded.tensors, config.engine.device, torch.float32)
    expert = Expert(bed.shape, {site: part.float() for site, part in bed.ground.basis.items()}).to(core.device)
    with torch.no_grad():
        for site, part in written.items():
            expert.write[site].copy_(part)
    student = Student(core, expert, bed.lessons.prefix_ids, config.sleep.distil)
    share = fit(student, kept_back, config.sleep.most_drift_nats, crew_of(config, bed.look))
    if not share:
        raise InvalidInput(
            "the expert", f"one that moves anchors by {config.sleep.most_drift_nats:g} nats at most", "none"
        )
    return Distilled({site: expert.write[site].detach() for site in written}, share)


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
