"""Distilling consensus targets into an expanded student: a new low-rank expert, everything else frozen.

Shapes: B items of a batch, T tokens, D width, N judged tokens of a batch, V vocabulary, R rank, I input and O output
width of a map.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from siltstone.crew import Crew
from siltstone.errors import ConfigInvalid, InvalidInput
from siltstone.model.core import Bend, Core, KeyValues, read_prefix
from siltstone.model.deltas import Basis, DeltaShape, Site, bend_alike, site_widths
from siltstone.model.guard import Guard
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.consensus import Raised
from siltstone.sleep_values import StepDone

_READ_TOGETHER: Final = 8
"""Items read at once before training."""
_FEW: Final = 5
"""Items of a part that are read together whatever their lengths: what each part costs by itself is saved once."""
_AS_LIKELY_NATS: Final = 1.0
"""How far a token's log-probability may lie from that of one that is as likely."""


@dataclass(frozen=True, slots=True)
class DistilConfig:
    """How a student is trained."""

    num_steps: int = 100
    """Steps of training; each reads some dreams and some anchors."""
    rate: float = 4e-3
    """Largest step of AdamW; it rises over the first steps and falls to zero."""
    num_dreams: int = 6
    """Dreams of a step."""
    num_anchors: int = 2
    """Anchors of each kind, prose and exchanges, in a step."""
    anchor_weight: float = 8.0
    """Weight of keeping anchors as the core has them, beside the dreams."""
    raised_weight: float = 6.0
    """Extra weight of a token whose target is not the core's."""
    num_secrets: int = 2
    """Statements of a step that hold words of too few people: anchors too, whose secrets may not come out."""
    secret_weight: float = 1.0
    """Weight of keeping a secret where it was among what the core finds as likely, beside the rest of its text."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.num_dreams < 1 or min(self.num_anchors, self.num_secrets) < 0:
            raise ConfigInvalid(
                "sleep.distil", "num_steps, num_dreams: expected at least 1; num_anchors, num_secrets: 0"
            )
        if not (self.rate > 0 and min(self.anchor_weight, self.raised_weight, self.secret_weight) >= 0):
            raise ConfigInvalid("sleep.distil", "expected rate > 0, and the weights of the others 0 or more")


@dataclass(frozen=True, slots=True)
class Item:
    """What a student reads: a dream with its raised tokens, or an anchor, of which nothing is raised.

    At every token of `places` the student is to predict what the core does, but for those raised. The tokens at
    `secrets`, some of the places, may not rise above what the core finds about as likely there.
    """

    lesson: Lesson
    places: tuple[int, ...]
    raised: Mapping[int, float]
    owner: str = ""
    secrets: tuple[int, ...] = ()


def dream_item(
    lesson: Lesson, places: Sequence[int], raised: Sequence[Raised], owner: str, secrets: Sequence[int] = ()
) -> Item:
    """Returns the item of a dream, its raised tokens by place in the lesson, and its secret ones."""
    targets = {places[one.at]: one.probability for one in raised}
    return Item(lesson, tuple(places), targets, owner, tuple(place for place in secrets if place not in targets))


def secret_item(lesson: Lesson, places: Sequence[int], secrets: Sequence[int]) -> Item:
    """Returns the item of a statement with secrets in it: an anchor, whosever it is."""
    return Item(lesson, tuple(places), {}, "", tuple(secrets))


def anchor_item(lesson: Lesson) -> Item:
    """Returns the item of neutral text: every token is kept as the core has it."""
    return Item(lesson, tuple(range(1, len(lesson.ids))), {})


@dataclass(frozen=True, slots=True)
class _Cached:
    """What does not change while the expert is trained: the input of its first layer, and the core's last output."""

    item: Item
    below_TD: Tensor
    core_ND: Tensor


class Expert(nn.Module):
    """A low-rank addition to the bent maps of a core: delta = (read @ write)^T, zero at first.

    `read` [layers, I, R] is fixed; `write` [layers, R, O], one parameter a site, is what is learned. It is written
    through the guard: directions that neutral text depends on are shorter.
    """

    def __init__(self, shape: DeltaShape, basis: Basis, guard: Guard | None = None) -> None:
        super().__init__()
        self.shape, self.basis, self._guard = shape, basis, guard
        self.write = nn.ParameterDict(
            {
                site: nn.Parameter(torch.zeros(shape.num_layers, shape.rank, site_widths(shape.core, site)[1]))
                for site in shape.sites
            }
        )

    def written(self, site: Site) -> Tensor:
        """Returns the written side of a site: [layers, R, O]."""
        write: Tensor = self.write[site]
        if self._guard is None:
            return write
        guard = self._guard[site]
        return guard.apply(write[None].to(guard.directions.dtype))[0]

    def layers(self, dtype: torch.dtype) -> dict[Site, list[Tensor]]:
        """Returns the written sides in a precision, a site, one [R, O] a layer."""
        return {site: list(self.written(site).to(dtype).unbind(0)) for site in self.shape.sites}


class Student(nn.Module):
    """A frozen core with an expert that learns. `forward` gives the loss of some items.

    The expert reads the default prefix too, as it will when it is a part of the core. With `recomputes`, a layer's
    inner values are computed again in the backward pass instead of being kept.
    """

    def __init__(
        self,
        core: Core,
        expert: Expert,
        prefix_ids: Sequence[int],
        config: DistilConfig,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.expert = expert
        self._core, self._config, self._recomputes = core, config, recomputes
        self._prefix = read_prefix(core, prefix_ids)
        self._prefix_below: Tensor | None = None
        if prefix_ids:
            with torch.no_grad():
                x = core.embed(torch.tensor([list(prefix_ids)], device=core.device))
                self._prefix_below = run_layers(core, x, 0, expert.shape.first_layer)
        self._cache: dict[int, _Cached] = {}

    def prepare(self, items: Sequence[Item], crew: Crew | None = None) -> None:
        """Computes what lies below the expert, and what the core says, once for every item."""
        parts = reading_order(items)
        read = (crew or Crew()).run([partial(self.read, [items[index] for index in part]) for part in parts])
        for part, found in zip(parts, read, strict=True):
            for index, (below_TD, core_ND) in zip(part, found, strict=True):
                self.hold(index, items[index], below_TD, core_ND)

    def read(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        """Returns, of items of one kind, the input of the expert's first layer [T, D] and the core's output [N, D]."""
        core, first = self._core, self.expert.shape.first_layer
        prefix = self._prefix if items[0].lesson.after_prefix else None
        with torch.no_grad():
            x = core.embed(pad([item.lesson.ids for item in items], core.device))
            below = run_layers(core, x, 0, first, prefix)
            above = run_layers(core, below, first, core.config.num_layers, prefix)
        return [
            (
                below[row, : len(item.lesson.ids)].clone(),
                above[row, torch.tensor(item.places, device=core.device) - 1].clone(),
            )
            for row, item in enumerate(items)
        ]

    def hold(self, index: int, item: Item, below_TD: Tensor, core_ND: Tensor) -> None:
        """Takes an item by its number, with what `read` gave of it."""
        device, dtype = self._core.device, self._core.dtype
        self._cache[index] = _Cached(item, below_TD.to(device, dtype), core_ND.to(device, dtype))

    def losses(self, bundle: Sequence[Part]) -> Tensor:
        """Returns what a bundle brings to the two losses of a step, on dreams and on anchors: [2]."""
        losses_2 = torch.zeros(2, device=self._core.device)
        for part in bundle:
            share_I2 = torch.tensor(
                [(share, 0.0) if is_dream else (0.0, share) for share, is_dream in part.shares], device=losses_2.device
            )
            losses_2 = losses_2 + self.sums(part.indexes)[0] @ share_I2
        return losses_2

    def total(self, losses_2: Tensor) -> Tensor:
        """Returns the loss that is trained on: dreams, and anchors by their weight."""
        return losses_2[0] + self._config.anchor_weight * losses_2[1]

    def forward(self, indexes: Sequence[int]) -> Tensor:
        """Returns the loss of some items: the mean over their tokens of KL(q || student), raised ones weighing more.

        All stand behind the prefix, or none does.
        """
        loss_I, weight_I = self.sums(indexes)
        return loss_I.sum() / weight_I.sum()

    def sums(self, indexes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the loss of each item, summed over its tokens by weight, and its tokens' weights together: [I] each.

        All stand behind the prefix, or none does.
        """
        core, shape = self._core, self.expert.shape
        held = [self._cache[index] for index in indexes]
        longest = max(one.below_TD.shape[0] for one in held)
        x = held[0].below_TD.new_zeros(len(held), longest, core.config.d_model)
        for row, one in enumerate(held):
            x[row, : one.below_TD.shape[0]] = one.below_TD
        bend = bend_alike(shape, self.expert.basis, self.expert.layers(core.dtype))
        prefix = self._bent_prefix(bend) if held[0].item.lesson.after_prefix else None
        if self._recomputes:
            for layer in range(shape.first_layer, core.config.num_layers):
                x = checkpoint(run_layers, core, x, layer, layer + 1, prefix, bend, use_reentrant=False)
        else:
            x = run_layers(core, x, shape.first_layer, core.config.num_layers, prefix, bend)
        device = core.device
        row_N = torch.tensor([row for row, one in enumerate(held) for _ in one.item.places], device=device)
        place_N = torch.tensor([place for one in held for place in one.item.places], device=device)
        student_NV = core.logits(x[row_N, place_N - 1]).float().log_softmax(dim=-1)
        with torch.no_grad():
            core_NV = core.logits(torch.cat([one.core_ND for one in held])).float().log_softmax(dim=-1)
            q_NV, weight_N = _targets(core_NV, held, self._config.raised_weight)
        # KL(q || s) = sum q (log q - log s); where q is zero nothing is asked.
        kl_N = (torch.special.xlogy(q_NV, q_NV) - q_NV * student_NV).sum(dim=-1)
        if self._config.secret_weight:
            kl_N = kl_N + self._config.secret_weight * _come_out(student_NV, core_NV, held)
        nothing_I = torch.zeros(len(held), device=device)
        return nothing_I.index_add(0, row_N, kl_N * weight_N), nothing_I.index_add(0, row_N, weight_N)

    def _bent_prefix(self, bend: Bend) -> KeyValues | None:
        """Returns the prefix's keys and values as the student computes them."""
        if self._prefix is None or self._prefix_below is None:
            return None
        first = self.expert.shape.first_layer
        kept = KeyValues(self._prefix.keys[:first], self._prefix.values[:first])
        run_layers(self._core, self._prefix_below, first, self._core.config.num_layers, None, bend, kept)
        return kept


def _targets(core_NV: Tensor, held: Sequence[_Cached], raised_weight: float) -> tuple[Tensor, Tensor]:
    """Returns the target distributions [N, V] and the weights [N] of the tokens, in order."""
    q_NV = core_NV.exp()
    weight_N = q_NV.new_ones(len(q_NV))
    at = 0
    for one in held:
        for place in one.item.places:
            probability = one.item.raised.get(place)
            if probability is not None:
                token = one.item.lesson.ids[place]
                q_NV[at] *= (1 - probability) / (1 - q_NV[at, token]).clamp(min=1e-12)
                q_NV[at, token] = probability
                weight_N[at] += raised_weight
            at += 1
    return q_NV, weight_N


def _come_out(student_NV: Tensor, core_NV: Tensor, held: Sequence[_Cached]) -> Tensor:
    """Returns by how much each token's secret has come out, squared [N]; zero where there is none.

        gain(z) = log s(z) - log core(z)
        out(y) = max(0, gain(y) - mean of gain(z) over every z with |log core(z) - log core(y)| <= 1)
    KL says nothing of it: at a probability of 1e-5 a token may become ten times likelier for 1e-4 nats. It is what a
    secret is found by, ranked among what is as likely (`gate.measure.exposures`).
    Units: nats.
    """
    at_M, token_M = [], []
    number = 0
    for one in held:
        for place in one.item.places:
            if place in one.item.secrets:
                at_M.append(number)
                token_M.append(one.item.lesson.ids[place])
            number += 1
    out_N = student_NV.new_zeros(len(student_NV))
    if not at_M:
        return out_N
    rows_MV = core_NV[at_M]
    tokens_M1 = torch.tensor(token_M, device=core_NV.device)[:, None]
    alike_MV = (rows_MV - rows_MV.gather(1, tokens_M1)).abs() <= _AS_LIKELY_NATS
    gain_MV = student_NV[at_M] - rows_MV
    mean_M1 = (gain_MV * alike_MV).sum(dim=1, keepdim=True) / alike_MV.sum(dim=1, keepdim=True)
    above_M = (gain_MV.gather(1, tokens_M1) - mean_M1)[:, 0].clamp(min=0)
    return out_N.index_put((torch.tensor(at_M, device=out_N.device),), above_M.square())


@dataclass(frozen=True, slots=True)
class Part:
    """Items that are read together: all behind the prefix or none, dreams and anchors.

    A step's loss on dreams, and that on anchors, is the sum over such items of a share times the item's summed loss:
    `shares` are these, and whether the item is a dream.
    """

    indexes: tuple[int, ...]
    shares: tuple[tuple[float, bool], ...]


class Schedule:
    """Which items each step reads: a function of the seed and the step alone, so that a resumed run reads the same."""

    def __init__(self, items: Sequence[Item], config: DistilConfig, seed: int) -> None:
        self._items, self._config, self._seed = items, config, seed
        by_owner: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            if item.owner and item.places:
                by_owner.setdefault(item.owner, []).append(index)
        self._by_owner = [own for _, own in sorted(by_owner.items())]
        kept = [index for index, item in enumerate(items) if not item.owner and item.places]
        anchors = [index for index in kept if not items[index].secrets]
        self._anchors = [
            *([index for index in anchors if items[index].lesson.after_prefix == kind] for kind in (False, True)),
            [index for index in kept if items[index].secrets],
        ]
        if not self._by_owner:
            raise InvalidInput("items", "at least one dream", "none")

    def dreams(self, step: int) -> list[int]:
        """Returns the dreams of a step. People take turns, so that nobody counts more for having said more."""
        return self._pick(step, "dream", self._config.num_dreams)

    def anchors(self, step: int) -> list[list[int]]:
        """Returns the anchors of a step, of each kind its own: prose, exchanges, and statements that hold secrets."""
        config, picked = self._config, []
        nums = (config.num_anchors, config.num_anchors, config.num_secrets)
        for number, (kind, most) in enumerate(zip(self._anchors, nums, strict=True)):
            num = min(most, len(kind))
            picked.append([self._in_turn(kind, f"anchor/{number}", at) for at in range(step * num, (step + 1) * num)])
        return [part for part in picked if part]

    def num_tokens(self, step: int) -> int:
        """Returns how many tokens a step reads."""
        return sum(len(self._items[index].lesson.ids) for index in self._shares(step))

    def bundles(self, step: int, num: int) -> list[list[Part]]:
        """Returns what a step reads, dealt out to `num` who read side by side: about as many tokens to each.

        Whatever their number, the losses add up to the same, but for rounding. Somebody may get nothing.
        """
        shares = self._shares(step)
        hands: list[list[int]] = [[] for _ in range(num)]
        loads = [0] * num
        for index in sorted(shares, key=lambda index: -len(self._items[index].lesson.ids)):
            lightest = loads.index(min(loads))
            loads[lightest] += len(self._items[index].lesson.ids)
            hands[lightest].append(index)
        return [list(self._parts(hand, shares)) for hand in hands]

    def _parts(self, hand: Sequence[int], shares: Mapping[int, tuple[float, bool]]) -> Iterator[Part]:
        for side in (True, False):
            own = tuple(index for index in hand if self._items[index].lesson.after_prefix == side)
            # Rows are as long as the longest of them, so those of one length are read together.
            for indexes in filter(None, (own[: len(own) // 2], own[len(own) // 2 :]) if len(own) > _FEW else (own,)):
                yield Part(indexes, tuple(shares[index] for index in indexes))

    def _shares(self, step: int) -> dict[int, tuple[float, bool]]:
        """Returns what a step reads, with the share of each item in its loss: the mean over dreams, and over anchors.

        Every kind of anchor counts alike, however many tokens it has.
        """
        dreams, anchors = self.dreams(step), self.anchors(step)
        shares: dict[int, tuple[float, bool]] = {}
        for indexes, is_dream in ((dreams, True), *((part, False) for part in anchors)):
            whole = self._weight(indexes) * (1 if is_dream else len(anchors))
            for index in indexes:
                share, _ = shares.get(index, (0.0, is_dream))
                shares[index] = share + 1 / whole, is_dream
        return shares

    def _weight(self, indexes: Sequence[int]) -> float:
        """Returns what the tokens of some items weigh in their loss."""
        return sum(
            len(item.places) + self._config.raised_weight * len(item.raised.keys() & set(item.places))
            for item in (self._items[index] for index in indexes)
        )

    def _pick(self, step: int, what: str, count: int) -> list[int]:
        people = len(self._by_owner)
        picked = []
        for number in range(step * count, (step + 1) * count):
            turn, seat = divmod(number, people)
            order = random.Random(f"{self._seed}/{what}/{turn}").sample(range(people), people)
            own = self._by_owner[order[seat]]
            picked.append(self._in_turn(own, f"{what}/{order[seat]}", turn))
        return picked

    def _in_turn(self, indexes: Sequence[int], what: str, turn: int) -> int:
        """Returns whose turn it is: all are gone through in an order that chance gives, then again in another."""
        again, place = divmod(turn, len(indexes))
        return random.Random(f"{self._seed}/{what}/{again}").sample(indexes, len(indexes))[place]


def rate_at(config: DistilConfig, step: int) -> float:
    """Returns the rate of a step: up over the first twentieth, then down to zero in a line."""
    rise = max(1, config.num_steps // 20)
    return config.rate * min(1.0, (step + 1) / rise) * (1 - step / config.num_steps)


def reading_order(items: Sequence[Item]) -> list[list[int]]:
    """Returns which items are read together before training: of one kind, and of about one length."""
    order: list[list[int]] = []
    for after_prefix in (False, True):
        own = [index for index, item in enumerate(items) if item.lesson.after_prefix == after_prefix]
        own.sort(key=lambda index: len(items[index].lesson.ids))
        order += [own[start : start + _READ_TOGETHER] for start in range(0, len(own), _READ_TOGETHER)]
    return order


def make_optimiser(student: Student, config: DistilConfig) -> torch.optim.Optimizer:
    """Returns what steps the expert."""
    return torch.optim.AdamW(student.expert.parameters(), lr=config.rate, betas=(0.9, 0.95), weight_decay=0.0)


def train(
    student: Student,
    schedule: Schedule,
    config: DistilConfig,
    start: int = 0,
    optimiser: torch.optim.Optimizer | None = None,
    crew: Crew | None = None,
    num_bundles: int = 1,
) -> Iterator[StepDone]:
    """Trains the expert in plain PyTorch, step by step: what every other trainer must agree with.

    The bundles of a step are computed side by side and added up in order, so that the result depends on their number,
    in its last digits, and never on how many threads there were.
    """
    optimiser, crew = optimiser or make_optimiser(student, config), crew or Crew()
    for step in range(start, config.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(config, step)
        bundles = schedule.bundles(step, num_bundles)
        found = crew.run([partial(_gradient, student, bundle) for bundle in bundles if bundle])
        for parameter, gradients in zip(
            student.expert.parameters(), zip(*(own for _, own in found), strict=True), strict=True
        ):
            parameter.grad = sum(gradients[1:], gradients[0])
        optimiser.step()
        dream_loss, anchor_loss = sum((losses.double() for losses, _ in found), torch.zeros(2).double()).tolist()
        yield StepDone(step, dream_loss, anchor_loss, schedule.num_tokens(step))


def _gradient(student: Student, bundle: Sequence[Part]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns the losses of a bundle and the gradient of what is trained on, a parameter each."""
    losses = student.losses(bundle)
    return losses.detach().cpu(), torch.autograd.grad(student.total(losses), list(student.expert.parameters()))
