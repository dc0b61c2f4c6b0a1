"""Models of random weights, their users and what the users say: material that costs nothing to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from siltstone.adapters.imported_core import tensor_shapes
from siltstone.memory.absorber import Absorber
from siltstone.memory.lessons import LessonConfig, LessonPlan
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import MemoryConfig, UserMemory
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core
from siltstone.model.deltas import Basis, DeltaShape, site_widths
from siltstone.model.guard import Guard, SiteGuard, build_guard
from siltstone.model.levels import DELTA
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

CORE_NAME = "random-weights"
_OPENING = 1
_NEUTRAL_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """A core and a memory to measure, by name."""

    name: str
    core: CoreConfig
    memory: MemoryConfig


COMMON = Shape(
    "common",
    CoreConfig(4096, 256, 4, 8, 8, 32, 688, 10_000.0, 1e-5, 2048, tied_head=False),
    MemoryConfig(num_layers=4, rank=24, guarded_directions=96),
)
"""The shape all peers are measured on. 156,672 coefficients a user: a LoRA of rank 8 on all linear maps has 156,160.

Guarded directions are to the rank what they are by default.
"""
SMOLLM2 = Shape(
    "SmolLM2-135M",
    CoreConfig(49_152, 576, 30, 9, 3, 64, 1536, 100_000.0, 1e-5, 8192, tied_head=True),
    MemoryConfig(),
)
"""The default core's shape under the default memory."""
LLAMA_1B = Shape(
    "1B",
    CoreConfig(128_256, 2048, 16, 32, 8, 64, 8192, 500_000.0, 1e-5, 4096, tied_head=True),
    MemoryConfig(num_layers=4, rank=16),
)
LLAMA_7B = Shape(
    "7B",
    CoreConfig(32_000, 4096, 32, 32, 32, 128, 11_008, 10_000.0, 1e-5, 4096, tied_head=False),
    MemoryConfig(num_layers=4, rank=16),
)


class NumberTokenizer:
    """Token ids written as numbers: text of a known number of tokens. No prefix; a turn opens with one token."""

    stop_ids: frozenset[int] = frozenset()

    @property
    def bos_ids(self) -> list[int]:
        """No tokens."""
        return []

    def encode(self, text: str) -> list[int]:
        """Returns the numbers; any other word is 0."""
        return [int(word) if word.isdigit() else 0 for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the numbers as text."""
        return " ".join(map(str, ids))

    def turn_prefix(self, role: str) -> list[int]:
        """Returns the one token."""
        return [_OPENING]

    def turn_suffix(self, role: str) -> list[int]:
        """Returns nothing."""
        return []

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Returns the turns, and the opening of the answer."""
        turns = [[*self.turn_prefix(message.role), *self.encode(message.text)] for message in messages]
        return [*(token for turn in turns for token in turn), *self.turn_prefix(Role.ASSISTANT)]


class World:
    """One shape made real, from a seed."""

    def __init__(self, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.name, self.memory = shape.name, shape.memory
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self.core = Core(shape.core, _Weights(self, shape.core), device, dtype)
        self.deltas: DeltaShape = shape.memory.shape_for(shape.core)
        self.basis: Basis = {
            site: self.draw(
                self.deltas.num_layers, site_widths(shape.core, site)[0], self.deltas.rank, scale=_scale(shape, site)
            )
            for site in self.deltas.sites
        }

    @cached_property
    def guard(self) -> Guard | None:
        """The write guard, built as serving does it, from random ids for neutral text."""
        num, damping = self.memory.guarded_directions, self.memory.guard_damping
        if not num:
            return None
        found = build_guard(self.core, self.deltas, self.ids(4, _NEUTRAL_TOKENS), num, damping, seed=0)
        return {
            site: SiteGuard(guard.directions.to(self.device), guard.shrink.to(self.device))
            for site, guard in found.items()
        }

    def draw(self, *size: int, scale: float = 1.0) -> Tensor:
        """Returns normal random numbers on the device."""
        return torch.randn(size, generator=self._generator, device=self.device, dtype=self.dtype) * scale

    def ids(self, *size: int) -> Tensor:
        """Returns random token ids on the device."""
        top = self.core.config.vocab_size
        return torch.randint(2, top, size, generator=self._generator, device=self.device)

    def coefficients(self, num_users: int) -> list[Tensor]:
        """Returns deltas that bend the core visibly, different for each user."""
        return [self.draw(self.deltas.num_coefficients, scale=0.05) for _ in range(num_users)]

    def absorber(self) -> Absorber:
        """Returns what absorbs the interactions of `said`, each as one lesson."""
        plan = LessonPlan(NumberTokenizer(), LessonConfig(rehearsals=0, replays=0))
        return Absorber(self.core, self.deltas, self.basis, plan, self.memory, ReservoirLimits(), self.guard)

    def memory_of(self, number: int) -> UserMemory:
        """Returns the memory of a user whose fast level already holds something."""
        memory = UserMemory.empty(UserKey("bench", f"user-{number}"), CORE_NAME, self.deltas)
        numbers = memory.numbers.clone()
        numbers[0, DELTA] = self.coefficients(1)[0].float().cpu()
        return memory.next(sequence=1, numbers=numbers)

    def said(self, owner: UserKey, id_: str, num_tokens: int) -> Interaction:
        """Returns a document of a known number of tokens, all of them learned."""
        text = " ".join(map(str, self.ids(num_tokens).tolist()))
        return Interaction(id_, owner, InteractionKind.DOCUMENT, 0, (Message(Role.USER, text),))


class _Weights(dict[str, Tensor]):
    """A core's tensors, drawn when they are asked for, so that no more than one is there twice."""

    def __init__(self, world: World, config: CoreConfig) -> None:
        self._world, self._shapes = world, tensor_shapes(config)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if "norm" in name:
            return torch.ones(shape, device=self._world.device, dtype=self._world.dtype)
        return self._world.draw(*shape, scale=shape[-1] ** -0.5)


def _scale(shape: Shape, site: str) -> float:
    width = shape.core.d_model if site == "gate_up" else shape.core.d_mlp
    return float(width**-0.5)
