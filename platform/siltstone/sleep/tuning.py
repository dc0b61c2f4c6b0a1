"""Fine-tuning isolated low-rank copies of a core on texts, and asking them questions.

Shapes: B texts of a batch, T tokens, D width, N learned tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siltstone.model.core import Core, KeyValues
from siltstone.model.deltas import Basis, DeltaShape, bend_alike
from siltstone.model.guard import Guard
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.distil import Expert


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text of which some tokens are learned, and the input of the first bent layer, which no copy changes."""

    lesson: Lesson
    below_TD: Tensor

    @property
    def places(self) -> list[int]:
        """Where the learned tokens are."""
        return [at for at, weight in enumerate(self.lesson.weights) if at and weight > 0]


class Tuner:
    """Makes low-rank copies of one core. All texts stand behind the default prefix, as the core reads it."""

    def __init__(
        self, core: Core, shape: DeltaShape, basis: Basis, guard: Guard | None, prefix: KeyValues | None
    ) -> None:
        self._core, self._shape, self._basis, self._guard, self._prefix = core, shape, basis, guard, prefix

    def read(self, lessons: Sequence[Lesson]) -> list[ReadText]:
        """Reads texts up to the first bent layer, once."""
        found = []
        for lesson in lessons:
            with torch.no_grad():
                x = self._core.embed(pad([lesson.ids], self._core.device))
                below = run_layers(self._core, x, 0, self._shape.first_layer, self._prefix)
            found.append(ReadText(lesson, below[0]))
        return found

    def tune(self, texts: Sequence[ReadText], num_steps: int, rate: float, batch: int) -> Expert:
        """Returns a copy that starts as the core and was trained on the texts, some in turn at every step."""
        expert = Expert(self._shape, self._basis, self._guard).to(self._core.device)
        optimiser = torch.optim.AdamW(expert.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        for step in range(num_steps):
            part = [texts[(step * batch + at) % len(texts)] for at in range(min(batch, len(texts)))]
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / num_steps)
            optimiser.zero_grad(set_to_none=True)
            self._loss(expert, part).backward()
            optimiser.step()
        return expert

    def importance(self, texts: Sequence[ReadText]) -> float:
        """Returns the norm of the gradient of fine-tuning on the texts, with respect to a new copy's written side.

        Source: Sleep, section 3.4, g = grad L_SFT(dream), of which the scalar is not published.
        """
        expert = Expert(self._shape, self._basis, self._guard).to(self._core.device)
        grads = torch.autograd.grad(self._loss(expert, texts), list(expert.parameters()))
        return math.sqrt(sum(float(grad.float().pow(2).sum()) for grad in grads))

    def log_likelihoods(self, expert: Expert | None, texts: Sequence[ReadText], batch: int = 32) -> list[float]:
        """Returns the log-probability of each text's learned tokens together, under a copy or the core, nats."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index].lesson.ids))
        found = [0.0] * len(texts)
        with torch.no_grad():
            for start in range(0, len(order), batch):
                part = order[start : start + batch]
                logp_N = self._logp(expert, [texts[index] for index in part])
                sizes = [len(texts[index].places) for index in part]
                for index, own in zip(part, logp_N.split(sizes), strict=True):
                    found[index] = float(own.sum())
        return found

    def _loss(self, expert: Expert, texts: Sequence[ReadText]) -> Tensor:
        return -self._logp(expert, texts).mean()

    def _logp(self, expert: Expert | None, texts: Sequence[ReadText]) -> Tensor:
        core, device = self._core, self._core.device
        x = torch.nn.utils.rnn.pad_sequence([text.below_TD for text in texts], batch_first=True)
        bend = None if expert is None else bend_alike(self._shape, self._basis, expert.layers(core.dtype))
        x = run_layers(core, x, self._shape.first_layer, core.config.num_layers, self._prefix, bend)
        row_N = torch.tensor([row for row, text in enumerate(texts) for _ in text.places], device=device)
        place_N = torch.tensor([place for text in texts for place in text.places], device=device)
        token_N = torch.tensor([text.lesson.ids[place] for text in texts for place in text.places], device=device)
        logits_NV = core.logits(x[row_N, place_N - 1]).float()
        return logits_NV.log_softmax(dim=-1).gather(1, token_N[:, None])[:, 0]


def coefficients_of(expert: Expert) -> Tensor:
    """Returns a copy's written side as the coefficients of a user who holds it: [N]."""
    return torch.cat([expert.written(site).detach().flatten() for site in expert.shape.sites]).cpu()
