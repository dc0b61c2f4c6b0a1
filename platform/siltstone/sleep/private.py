"""The private sleep of one user: what faster levels hold is distilled into a slower one, anchored to the core.

Shapes: N coefficients of one user; B texts of a batch, T tokens, D width, J judged tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from siltstone.errors import ConfigInvalid, InvalidInput
from siltstone.model.core import Bend, Core, KeyValues
from siltstone.model.deltas import Basis, DeltaShape, bend_alike
from siltstone.model.guard import Guard
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.continuations import continue_prompts
from siltstone.sleep.distil import Expert

_PREPARED_AT_ONCE = 8
_HELD_OUT_ANCHORS = 4
"""One in so many anchors is never trained on."""


@dataclass(frozen=True, slots=True)
class PrivateSleepConfig:
    """How one user's levels are consolidated, and what it takes to be accepted."""

    num_steps: int = 12
    """Steps of training; each reads some texts of the user and some anchors. 0 turns private sleep off."""
    rate: float = 1e-2
    """Step of AdamW at first; it falls to zero in a line."""
    num_texts: int = 6
    """Texts of a step: statements replayed, dreams, and what the student says itself."""
    num_anchors: int = 2
    """Anchors of a step."""
    anchor_weight: float = 4.0
    """Weight of keeping anchors as the core has them, beside following the teacher."""
    copied_share: float = 0.6
    """Share of what moves that the expert starts from; the rest is learned, or let go. 0 starts from nothing."""
    kept_share: float = 0.0
    """Share of an emptied level that stays in it; 0 empties it wholly."""
    max_statements: int = 24
    """Statements replayed, the held-out ones among them."""
    num_dreams: int = 8
    """Dreams sampled from the teacher, and each time from the student."""
    max_dream_tokens: int = 16
    """Tokens sampled of one dream."""
    own_share: float = 0.25
    """Share of the texts of a step that the student has said itself."""
    own_every_steps: int = 6
    """Steps after which the student is sampled anew."""
    held_out_share: float = 0.2
    """Share of the statements that is held out for the verdict, with the dreams on them."""
    max_divergence_nats: float = 0.5
    """Most KL(teacher || student) on what is held out, nats a token."""
    max_drift_nats: float = 0.15
    """Most KL(core || student) on held-out anchors, nats a token."""
    max_recall_loss_nats: float = 1.0
    """Most that held-out statements may become less likely than under the teacher, nats a token."""
    quiet_s: float = 900.0
    """Seconds without any answer and anything to learn after which a server lets due memories sleep."""

    def __post_init__(self) -> None:
        if min(self.num_steps, self.num_anchors, self.num_dreams) < 0 or min(self.num_texts, self.own_every_steps) < 1:
            raise ConfigInvalid(
                "sleep.private",
                "num_steps, num_anchors, num_dreams: expected at least 0; num_texts, own_every_steps: 1",
            )
        if self.max_statements < 2 or self.max_dream_tokens < 1:
            raise ConfigInvalid("sleep.private", "expected max_statements of at least 2, max_dream_tokens of 1")
        if not self.quiet_s >= 0:
            raise ConfigInvalid("sleep.private", f"quiet_s: expected 0 or more, found {self.quiet_s}")
        shares = self.copied_share, self.kept_share, self.own_share, self.held_out_share
        if not all(0 <= share <= 1 for share in shares) or not (self.rate > 0 and self.anchor_weight >= 0):
            raise ConfigInvalid("sleep.private", "expected shares of 0 to 1, rate > 0 and anchor_weight >= 0")
        if not min(self.max_divergence_nats, self.max_drift_nats, self.max_recall_loss_nats) >= 0:
            raise ConfigInvalid("sleep.private", "expected limits of at least 0 nats")


@dataclass(frozen=True, slots=True)
class Consolidation:
    """What one sleep is to do, and with what.

    The teacher is the core with all three parts. In the student, `moves_N` has left its levels, and the slower level
    `target_N`, held to `max_norm`, is to stand in for it. `replay` are the user's statements as lessons.
    """

    stays_N: Tensor
    target_N: Tensor
    moves_N: Tensor
    max_norm: float
    replay: Sequence[Lesson]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one state of a memory shows on what no step has read.

    `divergence_nats` is KL(teacher || it) a token, on the user's texts; `drift_nats` KL(core || it), on anchors;
    `recall_nats` the mean log-probability of a token of the user's statements.
    """

    divergence_nats: float
    drift_nats: float
    recall_nats: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sleep came to: the new slower level if it was accepted, and else why not.

    `before` is the teacher's reading, `after` the student's.
    """

    target_N: Tensor | None
    refusals: tuple[str, ...]
    before: Reading | None = None
    after: Reading | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A text with what does not change while the expert learns.

    `below_TD` is the input of the first bent layer, `goal_JD` the last block's output at the judged tokens, under the
    teacher, or, of an anchor, under the core.
    """

    lesson: Lesson
    below_TD: Tensor
    goal_JD: Tensor

    @property
    def places(self) -> list[int]:
        return _places(self.lesson)


class PrivateSleeper:
    """Consolidates users' memories over one core, which is never written to. Holds no user's state between calls."""

    def __init__(
        self,
        core: Core,
        shape: DeltaShape,
        basis: Basis,
        guard: Guard | None,
        prefix: KeyValues | None,
        stop_ids: frozenset[int],
        anchors: Sequence[Lesson],
        config: PrivateSleepConfig,
    ) -> None:
        """Reads the anchors, neutral text, once for all users; every token with a weight is judged."""
        if len(anchors) < _HELD_OUT_ANCHORS + config.num_anchors:
            raise InvalidInput("anchors", f"at least {_HELD_OUT_ANCHORS + config.num_anchors}", str(len(anchors)))
        self._core, self._shape, self._basis, self._guard = core, shape, basis, guard
        self._prefix, self._stop_ids, self._config = prefix, stop_ids, config
        read = _to_end(self._read(anchors, None))
        self._held_out_anchors = read[::_HELD_OUT_ANCHORS]
        self._anchors = [one for at, one in enumerate(read) if at % _HELD_OUT_ANCHORS]

    def sleep(self, task: Consolidation, seed: str) -> Generator[int, None, Outcome]:
        """Distils one memory: yields, where others may have their turn, the tokens just read, and returns the outcome.

        The same task and seed give the same outcome. Nothing of the task is written to.
        """
        c, chance = self._config, random.Random(seed)
        generator = torch.Generator().manual_seed(chance.getrandbits(63))
        teacher = self._bend(task.stays_N + task.target_N + task.moves_N)
        lessons = chance.sample(list(task.replay), min(c.max_statements, len(task.replay)))
        num_held = max(1, round(c.held_out_share * len(lessons)))
        if len(lessons) <= num_held:
            return Outcome(None, ("fewer than two statements to replay",))
        held_out, statements = lessons[:num_held], lessons[num_held:]
        asked = [*held_out[: c.num_dreams], *chance.sample(statements, min(c.num_dreams, len(statements)))]
        dreams = yield from self._dream(asked, teacher, generator)
        texts = yield from self._read([*held_out, *statements, *dreams], teacher)
        seen_from, dreams_from = num_held, len(lessons)
        dreams_seen_from = dreams_from + min(num_held, c.num_dreams)
        verdict_on = texts[:seen_from], texts[dreams_from:dreams_seen_from]
        pool = [*texts[seen_from:dreams_from], *texts[dreams_seen_from:]]

        before = yield from self._judge(teacher, *verdict_on)
        target_N = yield from self._learn(task, pool, statements, teacher, chance, generator)
        after = yield from self._judge(self._bend(task.stays_N + target_N), *verdict_on)
        refusals = tuple(_refusals(before, after, c))
        return Outcome(None if refusals else target_N, refusals, before, after)

    def _learn(
        self,
        task: Consolidation,
        pool: Sequence[_Text],
        statements: Sequence[Lesson],
        teacher: Bend,
        chance: random.Random,
        generator: torch.Generator,
    ) -> Generator[int, None, Tensor]:
        """Trains a new expert and returns the slower level with the expert merged into it: [N].

            start = target + copied_share * moves
            level = bounded(start + expert G),  expert 0 at first, G the write guard
            loss = mean KL(teacher || student) of texts + anchor_weight * mean KL(core || student) of anchors
        Source: generalised knowledge distillation, arXiv:2306.13649, with the forward divergence; some texts are the
        student's own, sampled now and then, and nothing is propagated through the sampling.
        Differs: the expert lies in the basis of the levels, so part of what moves can be copied into it, and merging it
        is a sum (decisions/0010).
        """
        c = self._config
        start_N = task.target_N + c.copied_share * task.moves_N
        expert = Expert(self._shape, self._basis, self._guard).to(self._core.device)
        optimiser = torch.optim.AdamW(expert.parameters(), lr=c.rate, betas=(0.8, 0.95), weight_decay=0.0)
        own: list[_Text] = []
        num_own = round(c.own_share * c.num_texts)
        for step in range(c.num_steps):
            if num_own and step and step % c.own_every_steps == 0:
                asked = chance.sample(statements, min(c.num_dreams, len(statements)))
                bend = self._bend(task.stays_N + _level(start_N, expert, task.max_norm).detach())
                said = yield from self._dream(asked, bend, generator)
                own = yield from self._read(said, teacher)
            told = chance.sample(own, min(num_own, len(own)))
            told += chance.sample(pool, min(c.num_texts - len(told), len(pool)))
            anchors = chance.sample(self._anchors, c.num_anchors)
            with torch.enable_grad():
                bend = self._bend(task.stays_N + _level(start_N, expert, task.max_norm))
                text_loss, anchor_loss = self._divergences([told, anchors], bend)
                optimiser.zero_grad(set_to_none=True)
                (text_loss + c.anchor_weight * anchor_loss).backward()
            for group in optimiser.param_groups:
                group["lr"] = c.rate * (1 - step / c.num_steps)
            optimiser.step()
            yield sum(len(one.lesson.ids) for one in (*told, *anchors))
        return _level(start_N, expert, task.max_norm).detach()

    def _dream(
        self, lessons: Sequence[Lesson], bend: Bend, generator: torch.Generator
    ) -> Generator[int, None, list[Lesson]]:
        """Samples what a model says to the questions of some lessons, and returns it as lessons of their own."""
        if not lessons:
            return []
        prompts = [lesson.ids[: _places(lesson)[0]] for lesson in lessons]
        said = yield from continue_prompts(
            self._core, self._prefix, prompts, bend, self._config.max_dream_tokens, self._stop_ids, generator
        )
        return [
            Lesson((*prompt, *own), (0.0,) * len(prompt) + (1.0,) * len(own))
            for prompt, own in zip(prompts, said, strict=True)
        ]

    def _read(self, lessons: Sequence[Lesson], bend: Bend | None) -> Generator[int, None, list[_Text]]:
        """Reads some lessons under the model that is to be followed on them."""
        core, first, last = self._core, self._shape.first_layer, self._core.config.num_layers
        order = sorted(range(len(lessons)), key=lambda at: (lessons[at].after_prefix, len(lessons[at].ids)))
        found: dict[int, _Text] = {}
        for part in _parts(order, lessons):
            prefix = self._prefix if lessons[part[0]].after_prefix else None
            with torch.no_grad():
                below_BTD = run_layers(
                    core, core.embed(pad([lessons[at].ids for at in part], core.device)), 0, first, prefix
                )
                above_BTD = run_layers(core, below_BTD, first, last, prefix, bend)
            for row, at in enumerate(part):
                before = torch.tensor(_places(lessons[at]), device=core.device) - 1
                below_TD = below_BTD[row, : len(lessons[at].ids)].clone()
                found[at] = _Text(lessons[at], below_TD, above_BTD[row, before].clone())
            yield sum(len(lessons[at].ids) for at in part)
        return [found[at] for at in range(len(lessons))]

    def _judge(self, bend: Bend, statements: Sequence[_Text], dreams: Sequence[_Text]) -> Generator[int, None, Reading]:
        """Reads what is held out."""
        told: list[tuple[float, float, int]] = []
        for texts in (statements, dreams, self._held_out_anchors):
            divergence = recall = 0.0
            num = 0
            for start in range(0, len(texts), _PREPARED_AT_ONCE):
                part = texts[start : start + _PREPARED_AT_ONCE]
                with torch.no_grad():
                    for kind in _kinds(part):
                        log_JV, kl_J = self._compare(kind, bend)
                        ids_J = torch.tensor([one.lesson.ids[at] for one in kind for at in one.places])
                        divergence += float(kl_J.sum())
                        recall += float(log_JV.gather(1, ids_J.to(log_JV.device)[:, None]).sum())
                        num += len(kl_J)
                yield sum(len(one.lesson.ids) for one in part)
            told.append((divergence, recall, num))
        (said, recall, num_said), (dreamt, _, num_dreamt), (drift, _, num_anchors) = told
        return Reading((said + dreamt) / (num_said + num_dreamt), drift / num_anchors, recall / num_said)

    def _divergences(self, groups: Sequence[Sequence[_Text]], bend: Bend) -> list[Tensor]:
        """Returns the mean KL(goal || student) of a token of each group; all are read together, kind by kind."""
        sums = [torch.zeros((), device=self._core.device) for _ in groups]
        group_of = {id(one): number for number, group in enumerate(groups) for one in group}
        for kind in _kinds(list(chain.from_iterable(groups))):
            _, kl_J = self._compare(kind, bend)
            parts = kl_J.split([len(one.places) for one in kind])
            for one, part in zip(kind, parts, strict=True):
                sums[group_of[id(one)]] = sums[group_of[id(one)]] + part.sum()
        return [
            total / max(1, sum(len(one.places) for one in group)) for total, group in zip(sums, groups, strict=True)
        ]

    def _compare(self, texts: Sequence[_Text], bend: Bend) -> tuple[Tensor, Tensor]:
        """Reads texts of one kind under a student: its log-probabilities [J, V], and KL(goal || student) [J]."""
        core = self._core
        x = texts[0].below_TD.new_zeros(len(texts), max(len(one.below_TD) for one in texts), core.config.d_model)
        for row, one in enumerate(texts):
            x[row, : len(one.below_TD)] = one.below_TD
        prefix = self._prefix if texts[0].lesson.after_prefix else None
        x = run_layers(core, x, self._shape.first_layer, core.config.num_layers, prefix, bend)
        row_J = torch.tensor([row for row, one in enumerate(texts) for _ in one.places], device=core.device)
        place_J = torch.tensor([place for one in texts for place in one.places], device=core.device)
        student_JV = core.logits(x[row_J, place_J - 1]).float().log_softmax(dim=-1)
        with torch.no_grad():
            goal_JV = core.logits(torch.cat([one.goal_JD for one in texts])).float().log_softmax(dim=-1)
            q_JV = goal_JV.exp()
        return student_JV, (q_JV * (goal_JV - student_JV)).sum(dim=-1)

    def _bend(self, own_N: Tensor) -> Bend:
        sites = self._shape.split(own_N[None].to(device=self._core.device, dtype=self._core.dtype))
        return bend_alike(self._shape, self._basis, {site: list(part[0].unbind(0)) for site, part in sites.items()})


def _level(start_N: Tensor, expert: Expert, max_norm: float) -> Tensor:
    """Returns the slower level with the expert merged into it, held to its bound: [N]."""
    written_N = torch.cat([expert.written(site).flatten() for site in expert.shape.sites])
    level_N = start_N + written_N.to(start_N.device)
    bounded_N: Tensor = level_N * (max_norm / level_N.norm().clamp(min=max_norm))
    return bounded_N


def _refusals(before: Reading, after: Reading, config: PrivateSleepConfig) -> list[str]:
    """Returns why a student may not take the teacher's place. What is not a number is no excuse."""
    lost_nats = before.recall_nats - after.recall_nats
    asked = (
        ("divergence from the memory before", after.divergence_nats, config.max_divergence_nats),
        ("drift from the core", after.drift_nats, config.max_drift_nats),
        ("recall lost", lost_nats, config.max_recall_loss_nats),
    )
    return [
        f"{what}: {found:.3f} nats a token, at most {most:g} allowed"
        for what, found, most in asked
        if not found <= most
    ]


def _places(lesson: Lesson) -> list[int]:
    """Returns where the judged tokens are."""
    return [at for at, weight in enumerate(lesson.weights) if at and weight > 0]


def _kinds(texts: Sequence[_Text]) -> list[list[_Text]]:
    """Returns the texts behind the prefix and those at position 0 apart; they are not read in one batch."""
    kinds = [[one for one in texts if one.lesson.after_prefix == kind] for kind in (False, True)]
    return [kind for kind in kinds if kind]


def _parts(order: Sequence[int], lessons: Sequence[Lesson]) -> list[list[int]]:
    """Returns the indexes, in order, in batches of one kind."""
    parts: list[list[int]] = []
    for at in order:
        last = parts[-1] if parts else []
        if last and len(last) < _PREPARED_AT_ONCE and lessons[last[0]].after_prefix == lessons[at].after_prefix:
            last.append(at)
        else:
            parts.append([at])
    return parts


def _to_end(reading: Generator[int, None, list[_Text]]) -> list[_Text]:
    while True:
        try:
            next(reading)
        except StopIteration as done:
            texts: list[_Text] = done.value
            return texts
