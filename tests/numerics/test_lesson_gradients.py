"""The gradients of a batch of lessons are those of plain autograd on theta_0 + delta, one user at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from slow_lesson import SlowPiece, read_slowly

from siltstone.model.core import Core, KeyValues, forward_keeping
from siltstone.model.deltas import DeltaShape
from siltstone.model.lesson import Lesson, LessonReader, PieceResult, Span, unlikelihood

GATE_NATS = 1.5
RTOL = 1e-9
"""Relative difference of two float64 gradients that is rounding."""
ALL = 10**9
"""Room that no lesson fills."""
WEIGHTS = (1.0, 0.0, -0.75, 2.0, 0.125)
PREFIX = (95, 3, 14, 15, 96)


@pytest.fixture(scope="module", params=["tied", "untied"])
def world(request: pytest.FixtureRequest) -> tiny.World:
    core = replace(tiny.TINY_CORE, num_layers=4, tied_head=request.param == "tied")
    return tiny.world(core=core, dtype=torch.float64)


def random_lessons(lengths: Sequence[int], after_prefix: bool, seed: int = 5) -> list[Lesson]:
    generator = torch.Generator().manual_seed(seed)
    lessons = []
    for length in lengths:
        ids = torch.randint(0, 97, (length + 1,), generator=generator).tolist()
        weights = [WEIGHTS[i] for i in torch.randint(0, len(WEIGHTS), (length + 1,), generator=generator).tolist()]
        weights[-1] = 1.0
        lessons.append(Lesson(tuple(ids), tuple(weights), after_prefix))
    return lessons


def random_coefficients(shape: DeltaShape, users: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(users, shape.num_coefficients, generator=generator, dtype=torch.float64) * 0.1


def prefix_of(core: Core) -> KeyValues:
    with torch.no_grad():
        return forward_keeping(core, torch.tensor([PREFIX]))[1]


def slowly(
    world: tiny.World, lesson: Lesson, pieces: list[tuple[int, torch.Tensor]], cut: bool = True
) -> list[SlowPiece]:
    core = world.core.config
    weights = {name: tensor.double() for name, tensor in tiny.random_tensors(core, seed=7).items()}
    prefix = PREFIX if lesson.after_prefix else ()
    return read_slowly(
        core, weights, world.shape, world.basis, prefix, lesson.ids, lesson.weights, pieces, GATE_NATS, cut
    )


def reader(world: tiny.World, users: int, after_prefix: bool = False) -> LessonReader:
    return LessonReader(world.core, world.shape, world.basis, users, prefix_of(world.core) if after_prefix else None)


def assert_same(found: PieceResult, row: int, expected: SlowPiece) -> None:
    assert found.learned_tokens[row] == expected.learned_tokens
    assert found.surprise[row] == pytest.approx(expected.surprise, rel=RTOL)
    assert sum(found.nats[row]) == pytest.approx(expected.nats, rel=RTOL)
    size = float(expected.gradient_N.abs().max())
    assert size > 0 or not expected.learned_tokens
    torch.testing.assert_close(found.gradient_BN[row], expected.gradient_N, rtol=0, atol=RTOL * max(size, 1e-30))


@pytest.mark.parametrize("after_prefix", [True, False])
@pytest.mark.parametrize("length", [1, 63, 100])
def test_the_gradient_of_a_lesson_is_that_of_the_dense_model(
    world: tiny.World, length: int, after_prefix: bool
) -> None:
    lesson = random_lessons([length], after_prefix)[0]
    coefficients = random_coefficients(world.shape, 1, seed=6)

    found = reader(world, 1, after_prefix).read_piece(coefficients, [0], [[lesson.span(0, ALL)]], GATE_NATS)

    assert_same(found, 0, slowly(world, lesson, [(length, coefficients[0])])[0])


@pytest.mark.parametrize("fills_rows", [False, True])
def test_each_user_of_a_batch_gets_the_gradient_of_their_own_lesson_and_weights(
    world: tiny.World, fills_rows: bool
) -> None:
    lessons = random_lessons([63, 1, 30, 2], after_prefix=True)
    coefficients = random_coefficients(world.shape, 4, seed=6)

    lessons_of = reader(world, 4, after_prefix=True)
    lessons_of.fills_rows = fills_rows
    found = lessons_of.read_piece(coefficients, range(4), [[lesson.span(0, ALL)] for lesson in lessons], GATE_NATS)

    for row, lesson in enumerate(lessons):
        assert_same(found, row, slowly(world, lesson, [(len(lesson.ids) - 1, coefficients[row])])[0])


def piece_ends(lesson: Lesson, rooms: Sequence[int]) -> list[int]:
    """Returns where pieces of so many learned tokens end, counted by hand."""
    learned = [t for t, weight in enumerate(lesson.weights) if t and weight]
    ends, at = [], 0
    for room in rooms:
        at += room
        ends.append(learned[at - 1] if at <= len(learned) else len(lesson.ids) - 1)
    return ends


@pytest.mark.parametrize("after_prefix", [True, False])
def test_a_lesson_in_pieces_is_that_of_a_detached_past_under_changing_weights(
    world: tiny.World, after_prefix: bool
) -> None:
    lessons = random_lessons([63, 17, 40], after_prefix)
    rooms = [(3, 8, 8), (8, 8, 1), (1, 2, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8)]
    lessons_of = reader(world, 3, after_prefix)
    at, found, used = [0, 0, 0], [], []
    while users := [user for user in range(3) if at[user] < len(lessons[user].ids) - 1]:
        used.append(random_coefficients(world.shape, 3, seed=len(used)))
        spans = [[lessons[user].span(at[user], rooms[len(found)][user])] for user in users]
        piece = lessons_of.read_piece(used[-1][users], users, spans, GATE_NATS)
        for user, own in zip(users, spans, strict=True):
            at[user] = own[0].end
        found.append((users, piece))

    assert len(found) > 4
    for user, lesson in enumerate(lessons):
        mine = [(users.index(user), piece) for users, piece in found if user in users]
        ends = piece_ends(lesson, [room[user] for room in rooms[: len(mine)]])
        pieces = [(end, coefficients[user]) for end, coefficients in zip(ends, used[: len(mine)], strict=True)]
        for (row, piece), expected in zip(mine, slowly(world, lesson, pieces), strict=True):
            assert_same(piece, row, expected)


@pytest.mark.parametrize("fills_rows", [False, True])
def test_the_end_of_one_lesson_and_the_beginnings_of_others_are_one_piece(world: tiny.World, fills_rows: bool) -> None:
    first, second = random_lessons([40, 23], after_prefix=True)
    third, fourth = random_lessons([31, 12], after_prefix=False, seed=8)
    lessons_of = reader(world, 2, after_prefix=True)
    lessons_of.fills_rows = fills_rows
    used = [random_coefficients(world.shape, 2, seed=seed) for seed in (1, 2)]
    begun = [[first.span(0, 9)], [third.span(0, 5)]]
    lessons_of.read_piece(used[0], range(2), begun, GATE_NATS)
    spans = [
        [first.span(begun[0][0].end, ALL), second.span(0, ALL), fourth.span(0, ALL)],
        [third.span(begun[1][0].end, ALL), second.span(0, 4)],
    ]

    found = lessons_of.read_piece(used[1], range(2), spans, GATE_NATS)

    for user, own in enumerate(spans):
        parts = []
        for span in own:
            earlier = [(begun[user][0].end, used[0][user])] if span.start else []
            parts.append(slowly(world, span.lesson, [*earlier, (span.end, used[1][user])])[-1])
        assert [part.learned_tokens for part in parts] == [span.num_learned for span in own]
        assert found.nats[user] == pytest.approx([part.nats for part in parts], rel=RTOL)
        assert found.surprise[user] == pytest.approx(sum(part.surprise for part in parts), rel=RTOL)
        expected = torch.stack([part.gradient_N for part in parts]).sum(dim=0)
        torch.testing.assert_close(found.gradient_BN[user], expected, rtol=0, atol=RTOL * float(expected.abs().max()))


def test_a_past_that_is_not_detached_would_give_another_gradient(world: tiny.World) -> None:
    lesson = random_lessons([40], after_prefix=True)[0]
    coefficients = random_coefficients(world.shape, 1, seed=6)[0]
    pieces = [(20, coefficients), (40, coefficients)]

    cut, whole = (slowly(world, lesson, pieces, cut)[1].gradient_N for cut in (True, False))

    assert (cut - whole).norm() > 1e-3 * whole.norm()


def test_a_batch_in_single_precision_gives_the_gradient_within_its_precision(world: tiny.World) -> None:
    single = tiny.world(core=world.core.config)
    lesson = random_lessons([63], after_prefix=False)[0]
    coefficients = random_coefficients(world.shape, 1, seed=6)

    found = reader(single, 1).read_piece(coefficients.float(), [0], [[lesson.span(0, ALL)]], GATE_NATS)

    expected = slowly(world, lesson, [(63, coefficients[0])])[0].gradient_N
    assert (found.gradient_BN[0] - expected).norm() <= 1e-4 * expected.norm()


def test_a_core_in_half_precision_gives_the_same_direction_in_the_memorys_own_precision() -> None:
    single, half = tiny.world(), tiny.world(dtype=torch.bfloat16)
    lesson = random_lessons([63], after_prefix=False)[0]
    coefficients = random_coefficients(single.shape, 1, seed=6).float()

    expected, found = (
        LessonReader(
            w.core, w.shape, {site: part.to(w.core.dtype) for site, part in single.basis.items()}, 1
        ).read_piece(coefficients, [0], [[lesson.span(0, ALL)]], GATE_NATS)
        for w in (single, half)
    )

    assert found.gradient_BN.dtype == torch.float32
    assert torch.cosine_similarity(found.gradient_BN, expected.gradient_BN).item() > 0.98


def test_a_span_of_context_alone_has_no_gradient_and_no_tokens(world: tiny.World) -> None:
    span = Span(Lesson((1, 2, 3, 4), (1.0, 0.0, 0.0, 1.0), after_prefix=False), 0, 2, 0)

    found = reader(world, 1).read_piece(random_coefficients(world.shape, 1, seed=6), [0], [[span]], GATE_NATS)

    assert not found.gradient_BN.any()
    assert (found.learned_tokens, found.surprise, found.nats) == ([0], [0.0], [[0.0]])


@pytest.mark.parametrize("lead", [-60.0, -3.0, 0.0, 3.0, 60.0, 300.0])
def test_the_gradient_against_an_answer_is_bounded_and_never_dies_while_it_is_likely(lead: float) -> None:
    logits = torch.zeros(1, 97, requires_grad=True)
    raised = logits + torch.nn.functional.one_hot(torch.tensor([5]), 97) * lead

    gradient = torch.autograd.grad(unlikelihood(raised, torch.tensor([5])).sum(), logits)[0]

    probability = raised.detach().softmax(1)[0, 5].item()
    assert gradient.abs().sum() <= 2.0 + 1e-6
    assert float(gradient[0, 5]) == pytest.approx(probability, rel=1e-4, abs=1e-12)
