"""What learning over a core needs: the read basis of its deltas, and lessons that its context can hold."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Final

import torch

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.evaluation.office_material import load_office
from siltstone.memory.lessons import LessonConfig, LessonPlan
from siltstone.model.core import Core
from siltstone.model.deltas import Basis, DeltaShape, Site, build_basis
from siltstone.ports import Tokenizer

_log = logging.getLogger(__name__)

_ANCHOR_TOKENS: Final = 128


def read_basis(loaded: LoadedCore, core: Core, shape: DeltaShape, config: SiltstoneConfig) -> tuple[Basis, str]:
    """Returns the read basis and the name of the version: what a memory must have been learned under.

    Raises: Corrupt; Unavailable.
    """
    memory = config.memory
    passages = [passage.text for passage in load_office().anchors]
    recipe: dict[str, object] = {
        "core": loaded.digest,
        "layers": shape.num_layers,
        "sites": list(shape.sites),
        "rank": shape.rank,
        "damping": memory.basis_damping,
        "seed": memory.basis_seed,
        "anchors": hashlib.sha256("\n".join(passages).encode()).hexdigest(),
    }

    def build() -> dict[Site, torch.Tensor]:
        _log.info("building the read basis", extra={"layers": shape.num_layers, "rank": shape.rank})
        longest = min(_ANCHOR_TOKENS, core.config.max_context)
        rows = [loaded.tokenizer.encode(passage)[:longest] for passage in passages]
        shortest = min(map(len, rows))
        anchors = torch.tensor([row[:shortest] for row in rows], device=core.device)
        return build_basis(core, shape, anchors, memory.basis_damping, memory.basis_seed)

    basis, digest = BasisStore(config.home_path).get(recipe, build)
    placed = {site: layers.to(device=core.device, dtype=core.dtype) for site, layers in basis.items()}
    return placed, f"{loaded.digest}-{digest[:12]}"


def lesson_plan(tokenizer: Tokenizer, core: Core, config: LessonConfig) -> LessonPlan:
    """Returns the plan of lessons that fit into the core's context, behind its prefix.

    Raises: ConfigInvalid when the core's context is too short to learn in.
    """
    plan = LessonPlan(tokenizer, config)
    room = core.config.max_context - len(plan.prefix_ids)
    return plan if config.max_lesson_tokens <= room else LessonPlan(tokenizer, replace(config, max_lesson_tokens=room))
