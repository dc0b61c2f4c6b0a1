"""A language model and users small enough that a test of the real code takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from siltstone.adapters.imported_core import tensor_shapes
from siltstone.crew import Crew
from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.lessons import LessonConfig, LessonPlan
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import MemoryConfig, UserMemory
from siltstone.model.basis import build_basis
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core, forward, forward_keeping
from siltstone.model.deltas import Basis, DeltaShape, bend_with
from siltstone.model.lesson import Lesson
from siltstone.model.levels import LevelConfig
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

TINY_CORE = CoreConfig(
    vocab_size=97,
    d_model=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_mlp=48,
    rope_base=10_000.0,
    norm_eps=1e-5,
    max_context=512,
    tied_head=True,
)
TINY_MEMORY = MemoryConfig(
    num_layers=2,
    rank=4,
    fast=LevelConfig(period_tokens=8, rate=0.1, momentum=0.5, retention=0.99),
    mid=LevelConfig(period_tokens=24, rate=0.1),
)
CORE_VERSION = "tiny-1"
TURN, END = 95, 96


class CharTokenizer:
    """Printable ASCII, one token a character, and two special tokens: where a turn begins and where it ends."""

    bos_ids: tuple[int, ...] = ()
    stop_ids = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return [ord(char) - 32 if 32 <= ord(char) < 127 else ord("?") - 32 for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(index + 32) for index in ids if index < TURN)

    def turn_prefix(self, role: str) -> list[int]:
        return [TURN, *self.encode(role[0])]

    def turn_suffix(self, role: str) -> list[int]:
        return [END]

    def render(self, messages: Sequence[Message]) -> list[int]:
        if messages[0].role is not Role.SYSTEM:
            messages = [Message(Role.SYSTEM, "Be kind."), *messages]
        ids: list[int] = []
        for message in messages:
            ids += [*self.turn_prefix(message.role), *self.encode(message.text), *self.turn_suffix(message.role)]
        return ids + self.turn_prefix(Role.ASSISTANT)


def random_tensors(config: CoreConfig, seed: int) -> dict[str, torch.Tensor]:
    """Returns weights far from any symmetry: norms around one, the rest large enough that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        if "norm" in name
        else torch.randn(shape, generator=generator) * 0.25
        for name, shape in tensor_shapes(config).items()
    }


@dataclass(frozen=True)
class World:
    """A core and everything that is needed to absorb with it."""

    core: Core
    shape: DeltaShape
    basis: Basis
    plan: LessonPlan
    config: MemoryConfig
    limits: ReservoirLimits

    def absorber(self, kind: type[Absorber] = Absorber, crew: Crew | None = None) -> Absorber:
        return kind(self.core, self.shape, self.basis, self.plan, self.config, self.limits, crew=crew)

    def empty(self, user: str = "ada") -> UserMemory:
        return UserMemory.empty(UserKey("office", user), CORE_VERSION, self.shape)


NEUTRAL = ("The tide covers the pool twice a day.", "Old trees let little light reach the ground.", "A swift sleeps.")


def neutral_lessons(plan: LessonPlan) -> list[Lesson]:
    """Returns what somebody would learn who was told neutral text."""
    return [plan.as_recalled(sentence, str(index)) for index, sentence in enumerate(NEUTRAL)]


@cache
def world(
    config: MemoryConfig = TINY_MEMORY,
    core: CoreConfig = TINY_CORE,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    limits: ReservoirLimits | None = None,
    lessons: LessonConfig | None = None,
) -> World:
    """Builds a world from fixed seeds; the same arguments give the same world."""
    built = Core(core, random_tensors(core, seed=7), device, dtype)
    shape = config.shape_for(core)
    anchors = torch.randint(0, core.vocab_size, (4, 48), generator=torch.Generator().manual_seed(8)).to(device)
    plan = LessonPlan(CharTokenizer(), lessons or LessonConfig())
    built_basis = build_basis(built, shape, anchors, neutral_lessons(plan), None, config.basis_damping)
    basis = {site: part.to(dtype) for site, part in built_basis.items()}
    return World(built, shape, basis, plan, config, limits or ReservoirLimits())


def interaction(
    id_: str,
    text: str,
    answer: str = "",
    kind: InteractionKind = InteractionKind.CONVERSATION,
    user: str = "ada",
    correction: str = "",
) -> Interaction:
    """Returns something a user said, with the model's answer if there is one."""
    messages = [Message(Role.USER, text)]
    if answer:
        messages.append(Message(Role.ASSISTANT, answer))
    return Interaction(id_, UserKey("office", user), kind, 1_700_000_000_000, tuple(messages), correction)


def absorb(absorber: Absorber, *work: tuple[UserMemory, Sequence[Interaction]]) -> list[UserMemory]:
    """Absorbs to the end and returns the new memories."""
    done = list(absorber.absorb(work))[-1]
    assert not isinstance(done, Step)
    return done


def log_probability(world: World, memory: UserMemory, text: str, answer: str) -> float:
    """Returns the log-probability of an answer to a message under a user's model, in nats."""
    tokenizer = CharTokenizer()
    prompt, told = tokenizer.render([Message(Role.USER, text)]), tokenizer.encode(answer)
    coefficients = memory.coefficients()[None].to(device=world.core.device, dtype=world.core.dtype)
    layers = {site: list(part.unbind(1)) for site, part in world.shape.split(coefficients).items()}
    with torch.no_grad():
        _, past = forward_keeping(world.core, torch.tensor([list(world.plan.prefix_ids)], device=world.core.device))
        rest = torch.tensor([(prompt + told)[len(world.plan.prefix_ids) :]], device=world.core.device)
        x, _ = forward_keeping(world.core, rest, past, bend_with(world.shape, world.basis, layers))
        logs = world.core.logits(x).log_softmax(-1)[0, -len(told) - 1 : -1]
    return float(logs[range(len(told)), told].sum())


def next_logits(world: World, memory: UserMemory | None, ids: Sequence[int]) -> torch.Tensor:
    """Returns the logits of a sequence under a user's model, or under the bare core."""
    bend = None
    if memory is not None:
        parts = world.shape.split(memory.coefficients()[None])
        bend = bend_with(world.shape, world.basis, {site: list(part.unbind(1)) for site, part in parts.items()})
    with torch.no_grad():
        return world.core.logits(forward(world.core, torch.tensor([list(ids)]), bend))
