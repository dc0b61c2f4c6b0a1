"""The control of consensus: every person's own memory is the teacher of what that person said, and nobody else's."""

from __future__ import annotations

from dataclasses import replace

from siltstone.config import SiltstoneConfig
from siltstone.memory.user_memory import from_blob
from siltstone.ports import SnapshotStore
from siltstone.sleep.consensus import ConsensusConfig, Raised, consensus
from siltstone.sleep.dreams import Dream, DreamReader, Reading
from siltstone_services.bed import Bed, crew_of
from siltstone_services.dream_stage import DreamtNight


def own_targets(night: DreamtNight, store: SnapshotStore, bed: Bed, config: SiltstoneConfig) -> DreamtNight:
    """Returns a night over the same statements whose targets are as `k_min` of 1 would give them."""
    dreams, memories = [], {}
    for one in night.filtered.statements:
        if one.person in night.left_out:
            continue
        lesson = bed.lessons.as_recalled(one.text, one.interaction_id)
        places = sum(1 for at, weight in enumerate(lesson.weights) if at and weight > 0)
        dreams.append(Dream(one.person, lesson, (frozenset({one.person}),) * places))
        snapshot = store.load(one.owner)
        if snapshot is not None and one.person not in memories:
            memory = from_blob(one.owner, snapshot.blob, bed.ground.version, bed.shape)
            memories[one.person] = [memory.coefficients()]
    reader = DreamReader(bed.core, bed.shape, bed.ground.basis, bed.prefix, crew_of(config))
    evidence_nats = config.sleep.consensus.evidence_nats
    raised: dict[int, tuple[Raised, ...]] = {}
    for index, reading in reader.read(
        dreams, memories, lambda one: (one.person,), evidence_nats, config.sleep.read_batch
    ):
        raised[index] = _as_if_agreed(reading, config.sleep.consensus)
    targets = tuple(raised[index] for index in range(len(dreams)))
    return replace(night, dreams=tuple(dreams), raised=targets, secretive=())


def targets_alone(config: SiltstoneConfig) -> SiltstoneConfig:
    """Returns a configuration in which nothing hides what targets teach: secrets are not held, nor is drift bounded."""
    distil = replace(config.sleep.distil, num_secrets=0, secret_weight=0.0)
    return replace(config, sleep=replace(config.sleep, distil=distil, most_drift_nats=0.0))


def _as_if_agreed(reading: Reading, config: ConsensusConfig) -> tuple[Raised, ...]:
    """Returns the consensus of as many people as it takes, all of them holding what the one memory holds."""
    people = [f"person {number}" for number in range(config.k_min)]
    rows = [row for row in reading.memory_logp_UN for _ in people]
    if not rows:
        return ()
    everywhere = [frozenset(people)] * len(reading.core_logp_N)
    return tuple(consensus(reading.core_logp_N, rows, people, everywhere, config))
