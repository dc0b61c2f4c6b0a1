"""What learning over a core needs: a read basis, a write guard, and lessons that its context can hold."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from typing import Final

import torch

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt
from siltstone.evaluation.office_material import Office, load_office
from siltstone.memory.lessons import LessonConfig, LessonPlan
from siltstone.memory.restate import sentences
from siltstone.model.basis import build_basis
from siltstone.model.core import Core, read_prefix
from siltstone.model.deltas import Basis, DeltaShape
from siltstone.model.guard import Guard, SiteGuard, build_guard
from siltstone.model.lesson import Lesson
from siltstone.ports import Tokenizer

_log = logging.getLogger(__name__)

_ANCHOR_TOKENS: Final = 128
_GUARD_STRIDE: Final = 3
"""Every so many-th anchor makes the guard: its gradients cost a backward pass, and its leading directions need few."""
_GROUND_FILE: Final = "ground.json"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a core's users learn on. `version` names the core and the read basis: a memory belongs to both."""

    basis: Basis
    guard: Guard | None
    version: str


def prepare_ground(
    loaded: LoadedCore, core: Core, shape: DeltaShape, plan: LessonPlan, config: SiltstoneConfig
) -> Ground:
    """Returns the read basis and the write guard of a core, built from neutral text the first time and then kept.

    A core that a night made keeps those of the core it descends from, so that its users' levels still fit.
    Raises: Corrupt; NotFound when they must be built and the core they are built for is gone; Unavailable.
    """
    memory = config.memory
    built_for = ground_core(loaded)
    office = load_office()
    passages = [passage.text for passage in office.anchors]
    lessons = neutral_lessons(office, plan)
    recipe: dict[str, object] = {
        "core": built_for,
        "layers": shape.num_layers,
        "sites": list(shape.sites),
        "rank": shape.rank,
        "damping": memory.basis_damping,
        "guarded": memory.guarded_directions,
        "guard_damping": memory.guard_damping,
        "seed": memory.guard_seed,
        "lessons": hashlib.sha256(repr((plan.prefix_ids, lessons)).encode()).hexdigest(),
        "anchors": hashlib.sha256("\n".join(passages).encode()).hexdigest(),
    }

    def build() -> dict[str, torch.Tensor]:
        if built_for != loaded.digest:
            first = CoreStore(config.home_path).load(built_for)
            return build_for(Core(first.config, first.tensors, core.device, core.dtype))
        return build_for(core)

    def build_for(core: Core) -> dict[str, torch.Tensor]:
        _log.info("preparing the core for learning", extra={"layers": shape.num_layers, "rank": shape.rank})
        longest = min(_ANCHOR_TOKENS, core.config.max_context)
        rows = [loaded.tokenizer.encode(passage)[:longest] for passage in passages]
        shortest = min(map(len, rows))
        anchors = torch.tensor([row[:shortest] for row in rows], device=core.device)
        prefix = read_prefix(core, plan.prefix_ids)
        basis = build_basis(core, shape, anchors, lessons, prefix, memory.basis_damping)
        parts: dict[str, torch.Tensor] = dict(basis.items())
        if memory.guarded_directions:
            found = build_guard(
                core,
                shape,
                anchors[::_GUARD_STRIDE],
                memory.guarded_directions,
                memory.guard_damping,
                memory.guard_seed,
            )
            for site, guard in found.items():
                parts[f"{site}.directions"], parts[f"{site}.shrink"] = guard.directions, guard.shrink
        return parts

    parts, digest = BasisStore(config.home_path).get(recipe, build)
    basis = {site: parts[site].to(device=core.device, dtype=core.dtype) for site in shape.sites}
    guard = None
    if memory.guarded_directions:
        guard = {
            site: SiteGuard(parts[f"{site}.directions"].to(core.device), parts[f"{site}.shrink"].to(core.device))
            for site in shape.sites
        }
    return Ground(basis, guard, f"{loaded.digest}-{digest[:12]}")


def ground_core(loaded: LoadedCore) -> str:
    """Returns the digest of the core that the ground of a core was built for: its own, or that of the first one.

    Raises: Corrupt when a core that a night made does not say so.
    """
    told = loaded.extras.get(_GROUND_FILE)
    if told is None:
        return loaded.digest
    try:
        return str(json.loads(told)["core"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"core {loaded.digest[:12]}, {_GROUND_FILE}", "the core it was built for", str(error)) from error


def ground_extra(loaded: LoadedCore) -> dict[str, bytes]:
    """Returns the file by which a core made from `loaded` says that it keeps its ground."""
    return {_GROUND_FILE: json.dumps({"core": ground_core(loaded)}).encode()}


def neutral_lessons(office: Office, plan: LessonPlan) -> list[Lesson]:
    """Returns what somebody would learn who was told neutral text: the form of an answer, and nobody's facts."""
    told = [
        plan.as_recalled(sentence, f"{number}/{index}")
        for number, passage in enumerate(office.anchors)
        for index, sentence in enumerate(sentences(passage.text.replace("\n", " ")))
    ]
    return [*told, *(plan.as_answered(chat.question, chat.answer) for chat in office.anchor_chats)]


def lesson_plan(tokenizer: Tokenizer, core: Core, config: LessonConfig) -> LessonPlan:
    """Returns the plan of lessons that fit into the core's context, behind its prefix.

    Raises: ConfigInvalid when the core's context is too short to learn in.
    """
    plan = LessonPlan(tokenizer, config)
    room = core.config.max_context - len(plan.prefix_ids)
    return plan if config.max_lesson_tokens <= room else LessonPlan(tokenizer, replace(config, max_lesson_tokens=room))
