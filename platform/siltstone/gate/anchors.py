"""What became of the anchors: text on which a core must go on behaving as it did.

Shapes: B pieces, T tokens of a piece, D model width, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.gate.scoring import ALONE, logit_spans
from siltstone.model.core import Core, attention, causal_mask, num_layers_alike
from siltstone.model.rows import pad
from siltstone.ports import Tokenizer
from siltstone.sleep_values import Measurement

_MAX_TOKENS: Final = 1024
"""Tokens of one pass under each core, filling included."""
_NUM_DEPTHS: Final = 4
"""At how many depths, evenly spaced to the last block, representations are compared."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of neutral text that no training of the candidate has read."""

    id: str
    text: str


@dataclass(slots=True)
class _Found:
    """What has been found so far, a number for each token, and whose token it is."""

    passages: list[str] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    from_champion: list[float] = field(default_factory=list)
    from_origin: list[float] = field(default_factory=list)
    nats: dict[Core, dict[str, float]] = field(default_factory=dict)
    similarities: list[Similarity] = field(default_factory=list)

    def join(self, other: _Found) -> None:
        """Takes in what was found on further passages."""
        self.passages += other.passages
        self.agreements += other.agreements
        self.from_champion += other.from_champion
        self.from_origin += other.from_origin
        for core, nats in other.nats.items():
            for name, value in nats.items():
                self.nats[core][name] += value
        for own, more in zip(self.similarities, other.similarities, strict=True):
            own.join(more)


def measure_anchors(
    candidate: Core,
    champion: Core,
    origin: Core,
    tokenizer: Tokenizer,
    passages: Sequence[Passage],
    crew: Crew = ALONE,
) -> tuple[Measurement, ...]:
    """Returns what a reading of the passages under three cores shows.

    bits_per_byte        per passage, of each core
    agreement_champion   per token, 1 where candidate and champion hold the same token likeliest
    kl_champion          per token, KL(champion || candidate) in nats
    kl_origin            per token, KL(origin || candidate) in nats
    similarity_champion  per depth, linear CKA of candidate and champion; to be reported, not judged

    Tokens are clustered by passage. A passage longer than the context is read in pieces. Where the tokenizer has no
    opening token the first of a piece is not predicted; its bytes count, for all cores alike.

    Raises: InvalidInput when two passages have one id, or one has nothing to predict.
    """
    if len({passage.id for passage in passages}) != len(passages):
        raise InvalidInput("passages", "distinct ids", "two alike")
    pieces = [piece for passage in passages for piece in _pieces(candidate, tokenizer, passage)]
    depths = sorted({math.ceil(candidate.config.num_layers * part / _NUM_DEPTHS) for part in range(1, _NUM_DEPTHS + 1)})
    found = _Found(
        nats={core: {passage.id: 0.0 for passage in passages} for core in (candidate, champion, origin)},
        similarities=[Similarity() for _ in depths],
    )
    num_alike = num_layers_alike([candidate, champion, origin])
    read = partial(_read, candidate=candidate, champion=champion, origin=origin, depths=depths, num_alike=num_alike)
    for part in crew.run([partial(read, batch) for batch in _batches(pieces)]):
        found.join(part)

    num_bytes = {passage.id: len(passage.text.encode()) for passage in passages}
    ids = tuple(num_bytes)

    def bits(core: Core) -> tuple[float, ...]:
        return tuple(found.nats[core][one] / math.log(2) / num_bytes[one] for one in ids)

    clusters = tuple(found.passages)
    return (
        Measurement(
            "bits_per_byte", "bits/byte", bits(candidate), bits(champion), bits(origin), ids, higher_is_better=False
        ),
        Measurement("agreement_champion", "of the tokens", tuple(found.agreements), clusters=clusters),
        Measurement("kl_champion", "nats/token", tuple(found.from_champion), clusters=clusters, higher_is_better=False),
        Measurement("kl_origin", "nats/token", tuple(found.from_origin), clusters=clusters, higher_is_better=False),
        Measurement("similarity_champion", "CKA", tuple(one.value() for one in found.similarities)),
    )


class Similarity:
    """Linear CKA of two representations of the same tokens, gathered batch by batch.

    Source: Kornblith et al., arXiv:1905.00414, Eq. 3 with section 3's centring.
        CKA = |Y^T X|^2 / (|X^T X| |Y^T Y|),  X and Y centred over the tokens, Frobenius norms
    Differs: the centring is taken out of the sums at the end, so that no token need be kept. It can be moved without
    any change of function and the other way round (Davari et al., arXiv:2210.16156): nothing is judged by it.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._sums: list[Tensor] = []

    def add(self, x_ND: Tensor, y_ND: Tensor) -> None:
        """Takes in some tokens."""
        x, y = x_ND.double(), y_ND.double()
        parts = [x.sum(0), y.sum(0), x.T @ x, y.T @ y, y.T @ x]
        self._sums = [old + new for old, new in zip(self._sums, parts, strict=True)] if self._sums else parts
        self._num_tokens += len(x)

    def join(self, other: Similarity) -> None:
        """Takes in the tokens of another."""
        if other._sums:
            pairs = zip(self._sums, other._sums, strict=True)
            self._sums = [old + new for old, new in pairs] if self._sums else other._sums
            self._num_tokens += other._num_tokens

    def value(self) -> float:
        """Returns the similarity, 1 where one is a rotation and scaling of the other; not a number for no token."""
        if not self._sums:
            return math.nan
        x, y, xx, yy, yx = self._sums
        n = self._num_tokens
        own, other = xx - torch.outer(x, x) / n, yy - torch.outer(y, y) / n
        both = yx - torch.outer(y, x) / n
        return float(both.norm() ** 2 / (own.norm() * other.norm()))


@dataclass(frozen=True, slots=True)
class _Piece:
    passage: str
    ids: tuple[int, ...]


def _pieces(core: Core, tokenizer: Tokenizer, passage: Passage) -> Iterator[_Piece]:
    opening, ids = list(tokenizer.bos_ids), tokenizer.encode(passage.text)
    width = core.config.max_context - len(opening)
    pieces = [(*opening, *ids[start : start + width]) for start in range(0, len(ids), width)]
    if not pieces or len(pieces[0]) < 2:
        raise InvalidInput("passages", "a text with something to predict", repr(passage.id))
    yield from (_Piece(passage.id, piece) for piece in pieces if len(piece) > 1)


def _batches(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: (-len(piece.ids), piece.passage)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


@torch.inference_mode()
def _read(
    batch: Sequence[_Piece], candidate: Core, champion: Core, origin: Core, depths: Sequence[int], num_alike: int
) -> _Found:
    """Reads a batch of pieces under the three cores, alike in their first layers, and returns what it shows."""
    rows = [row for row, piece in enumerate(batch) for _ in piece.ids[1:]]
    columns = [column for piece in batch for column in range(len(piece.ids) - 1)]
    targets = torch.tensor([token for piece in batch for token in piece.ids[1:]], device=candidate.device)
    names = [batch[row].passage for row in rows]
    outputs: dict[Core, list[Tensor]] = {}
    below: dict[int, Tensor] = {}
    for core in dict.fromkeys((candidate, champion, origin)):
        after = _outputs(core, pad([piece.ids for piece in batch], core.device), below)
        below = {depth: x_BTD for depth, x_BTD in after.items() if depth <= num_alike} if num_alike else {}
        # A core of another depth is read at the same share of its own.
        wanted = [math.ceil(depth * core.config.num_layers / depths[-1]) for depth in depths]
        outputs[core] = [after[depth][rows, columns].to(candidate.device) for depth in wanted]
    found = _Found(names, nats={core: dict.fromkeys(names, 0.0) for core in outputs})
    for own, other in zip(outputs[candidate], outputs[champion], strict=True):
        similarity = Similarity()
        similarity.add(own, other)
        found.similarities.append(similarity)
    for start, end in logit_spans(len(rows)):
        logs = {
            core: core.logits(kept[-1][start:end].to(core.device)).float().log_softmax(-1).to(candidate.device)
            for core, kept in outputs.items()
        }
        own = logs[candidate]
        agrees = (own.argmax(-1) == logs[champion].argmax(-1)).double()
        # Of numbers that are none, too, one would be the largest.
        found.agreements += torch.where(own.isfinite().all(-1), agrees, math.nan).tolist()
        from_champion = _divergence(logs[champion], own)
        found.from_champion += from_champion
        found.from_origin += from_champion if origin is champion else _divergence(logs[origin], own)
        for core, logs_NV in logs.items():
            nats = -logs_NV.gather(1, targets[start:end, None])[:, 0].double()
            for name, value in zip(names[start:end], nats.tolist(), strict=True):
                found.nats[core][name] += value
    return found


def _outputs(core: Core, ids_BT: Tensor, below: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Returns what goes into the first block, at 0, and what comes out of each, from 1: [B, T, D] each.

    `below` holds what is known of it already.
    """
    b, t = ids_BT.shape
    rotation = core.rotation(torch.arange(t, device=ids_BT.device).expand(b, t))
    mask = causal_mask(torch.zeros(b, dtype=torch.long, device=ids_BT.device), t, 0)
    after = dict(below) or {0: core.embed(ids_BT)}
    for i in range(max(after), core.config.num_layers):
        after[i + 1] = core.block(i, after[i], rotation, lambda _, q, k, v: attention(q, k, v, mask))
    return after


def _divergence(of_NV: Tensor, from_NV: Tensor) -> list[float]:
    """Returns KL(of || from) of log-probabilities, a number a token, in nats; a rounding below zero is none."""
    terms = of_NV.exp() * (of_NV - from_NV)
    return [max(0.0, value) if value == value else value for value in terms.sum(-1).double().tolist()]
