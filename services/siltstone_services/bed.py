"""What a sleep lies on: the core that serves, how its users learn on it, and what computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from siltstone.adapters.core_store import LoadedCore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew, Look, go_on
from siltstone.inference.engine import AnswerEngine, EngineConfig
from siltstone.memory.lessons import LessonPlan
from siltstone.model.core import Core, KeyValues, read_prefix
from siltstone.model.deltas import DeltaShape
from siltstone_services.dreaming import Sampler
from siltstone_services.learning import Ground

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
