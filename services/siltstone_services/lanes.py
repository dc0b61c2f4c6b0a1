"""The versions of the core that serve, each with what answers and learns on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.inference.engine import AnswerEngine, Progress
from siltstone.inference.rows import Answer
from siltstone.memory.absorber import Absorber, Absorbers
from siltstone.memory.lessons import LessonPlan
from siltstone.model.core import Core
from siltstone.model.deltas import DeltaShape
from siltstone_services.learning import Ground, lesson_plan, prepare_ground
from siltstone_services.precision import dtype_for


@dataclass(frozen=True, slots=True)
class Lane:
    """One version, ready to answer and to learn. `version` names its core and its read basis."""

    loaded: LoadedCore
    version: str
    core: Core
    shape: DeltaShape
    plan: LessonPlan
    ground: Ground
    absorber: Absorber
    engine: AnswerEngine

    @property
    def digest(self) -> str:
        """The digest of its core."""
        return self.loaded.digest


def open_lane(loaded: LoadedCore, config: SiltstoneConfig, crew: Crew) -> Lane:
    """Makes a core ready; its read basis and write guard are built the first time.

    Raises: ConfigInvalid; Corrupt; NotFound when the core it was first built for is gone; Unavailable.
    """
    engine = config.engine
    core = Core(loaded.config, loaded.tensors, engine.device, dtype_for(engine.dtype, engine.device))
    shape = config.memory.shape_for(core.config)
    plan = lesson_plan(loaded.tokenizer, core, config.lessons)
    ground = prepare_ground(loaded, core, shape, plan, config)
    absorber = Absorber(core, shape, ground.basis, plan, config.memory, config.reservoir, ground.guard, crew)
    answers = AnswerEngine(
        core, shape, ground.basis, plan.prefix_ids, absorber.prefix, loaded.tokenizer.stop_ids, engine
    )
    return Lane(loaded, ground.version, core, shape, plan, ground, absorber, answers)


class Lanes:
    """The lanes by version. One thread uses it: the worker's."""

    def __init__(self, leading: Lane) -> None:
        self._by_version: dict[str, Lane] = {}
        self.absorbers = Absorbers({})
        self.add(leading)
        self.leading = leading
        """The lane of those who have no memory yet."""

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_version.values())

    def add(self, lane: Lane) -> None:
        """Takes a lane in."""
        self._by_version[lane.version] = lane
        self.absorbers.put(lane.version, lane.absorber)

    def get(self, version: str) -> Lane | None:
        """Returns the lane of a version, if it serves."""
        return self._by_version.get(version)

    def of(self, version: str) -> Lane:
        """Returns the lane of a memory's version: the shard hands out no memory of a version that does not serve."""
        return self._by_version[version]

    def drop(self, version: str) -> bool:
        """Lets a version go that leads nobody and answers nobody, and says whether it has gone."""
        lane = self._by_version[version]
        if lane is self.leading or lane.engine.num_running:
            return False
        del self._by_version[version]
        self.absorbers.drop(version)
        return True

    @property
    def num_running(self) -> int:
        """Answers under way, of all versions."""
        return sum(lane.engine.num_running for lane in self)

    def step(self) -> list[Progress]:
        """Steps the engine of one version that has answers under way; the versions take turns."""
        lane = next((lane for lane in self if lane.engine.num_running), None)
        if lane is None:
            return []
        self._by_version[lane.version] = self._by_version.pop(lane.version)
        return lane.engine.step()

    def give_up(self, answer: Answer) -> None:
        """Drops an answer, whichever version gives it."""
        for lane in self:
            lane.engine.give_up(answer)
