"""The benchmark's mechanics on a shape that takes no time; no test looks at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from siltstone.evaluation.figures import observe_origin, read_figures, write_figures
from siltstone.inference.rows import Rows
from siltstone.memory.user_memory import MemoryConfig
from siltstone.model.config import CoreConfig
from siltstone.model.lesson import LessonReader, PieceResult, Span
from siltstone.values import Snapshot
from siltstone_services import bench
from siltstone_services.benchmark.decode import check_decode, run_decode
from siltstone_services.benchmark.gpu import copy_rate, run_large
from siltstone_services.benchmark.products import ProductLimit
from siltstone_services.benchmark.readings import Outcome, Reading, at_least, at_most, ratio_readings
from siltstone_services.benchmark.store import Stored, check_swap, run_stored_users, run_swap, stored
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.update import check_update, run_update, update_products
from siltstone_services.benchmark.world import COMMON, SMOLLM2, NumberTokenizer, Shape, World

TINY = Shape(
    "tiny",
    CoreConfig(97, 32, 3, 4, 2, 8, 48, 10_000.0, 1e-5, 256, tied_head=True),
    MemoryConfig(num_layers=2, rank=4, guarded_directions=8),
)


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World(TINY)


def silent(text: str) -> None:
    """Says nothing."""


class RowsOfTheNeighbour(Rows):
    """Answers every user from the next one's deltas."""

    def decode(self) -> torch.Tensor:
        return super().decode().roll(1, dims=0)


class RowsWithoutDeltas(Rows):
    """Answers everybody from the core."""

    def decode(self) -> torch.Tensor:
        for answer in self.answers:
            answer.coefficients = None
        return super().decode()


class LessonsOfTheNeighbour(LessonReader):
    """Hands every user the next one's gradient."""

    def read_piece(
        self, coefficients_BN: torch.Tensor, users: Sequence[int], spans: Sequence[Sequence[Span]], gate_nats: float
    ) -> PieceResult:
        piece = super().read_piece(coefficients_BN, users, spans, gate_nats)
        return replace(piece, gradient_BN=piece.gradient_BN.roll(1, dims=0))


class Lazy(Stored):
    """Writes nothing, and says so to nobody."""

    def commit(self, snapshots: Sequence[Snapshot]) -> None:
        """Leaves what was there."""


def test_decoding_is_checked_and_then_timed(world: World) -> None:
    outcome = run_decode(world, (1, 8), rounds=2, steps=2, say=silent)

    assert outcome.refusal == ""
    names = [reading.name for reading in outcome.readings]
    assert "decode, tiny, 8 users / bare core" in names
    assert all(reading.value > 0 for reading in outcome.readings)


@pytest.mark.parametrize("wrong", [RowsOfTheNeighbour, RowsWithoutDeltas])
def test_wrong_decoding_is_not_timed(world: World, wrong: type[Rows]) -> None:
    outcome = run_decode(world, (8,), rounds=2, steps=2, say=silent, rows=wrong)

    assert "logits differ" in outcome.refusal
    assert outcome.readings == ()


def test_decoding_that_nothing_bends_checks_nothing_and_is_refused(world: World) -> None:
    straight = World(TINY)
    straight.basis = {site: torch.zeros_like(basis) for site, basis in straight.basis.items()}

    assert "hardly bend" in check_decode(straight)
    assert check_decode(world) == ""


def test_learning_is_checked_and_then_timed_against_the_limit_and_a_peer(world: World) -> None:
    peers = {"PEFT, 1 loaded": (lambda: 0.5, at_least(2, "x"))}

    outcome = run_update(world, 3, rounds=2, say=silent, peers=peers)

    assert outcome.refusal == ""
    by_name = {reading.name: reading for reading in outcome.readings}
    assert by_name["PEFT, 1 loaded, sequential"].value == 2
    assert by_name["update, tiny, 3 users x 32 tokens / PEFT, 1 loaded"].target == at_least(2, "x")


def test_wrong_learning_is_not_timed(world: World) -> None:
    outcome = run_update(world, 3, rounds=2, say=silent, reader=LessonsOfTheNeighbour)

    assert "measured slope" in outcome.refusal
    assert outcome.readings == ()
    assert check_update(world) == ""


def test_the_limit_counts_the_core_forward_the_bent_layers_back_and_the_head_twice(world: World) -> None:
    c = world.core.config
    head = c.vocab_size * c.d_model
    body = world.core.num_parameters - head

    expected = 2 * 10 * (body * (1 + world.deltas.num_layers / c.num_layers) + 2 * head)

    assert ProductLimit(world, update_products(world, 10)).num_flop == pytest.approx(expected)


def test_the_common_shape_is_the_one_the_peers_were_measured_on() -> None:
    torch.set_num_threads(1)
    common = World(COMMON)
    assert common.core.num_parameters == pytest.approx(4.21e6, rel=0.001)
    lora = 8 * sum(4 * (256 + 256) + 3 * (256 + 688) for _ in range(4))
    assert lora == 156_160
    assert common.deltas.num_coefficients == pytest.approx(lora, rel=0.01)
    assert SMOLLM2.memory == MemoryConfig()


def test_swapping_and_many_stored_users_are_timed(world: World, tmp_path: Path) -> None:
    swapped = run_swap(world, 4, 5, tmp_path, silent)
    many = run_stored_users(world, (20, 40), 8, 2, tmp_path, silent)

    assert (swapped.refusal, many.refusal) == ("", "")
    assert [str(reading.target) for reading in swapped.readings] == ["<= 0.6 ms", "<= 5 ms"]
    assert any(reading.name == "absorb and commit, 40 stored users / 20" for reading in many.readings)
    assert list(tmp_path.iterdir()) == [], "the stores were left behind"


def test_a_memory_that_changes_on_its_way_is_not_timed(world: World, tmp_path: Path) -> None:
    with stored(tmp_path) as place:
        first = world.memory_of(0)
        assert check_swap(place, world, first) == ""
        changed = first.next(numbers=first.numbers + 1)
        assert "did not come back" in check_swap(Lazy(place.file, place.store, place.leases), world, changed)


def test_a_large_shape_runs_the_same_code_on_any_device(world: World) -> None:
    copied = copy_rate("cpu", 1 << 10, rounds=2)
    outcomes = run_large(TINY, (1, 4), "cpu", torch.float32, copied, silent, rounds=2, steps=2, tolerance=1e-3)

    assert [outcome.refusal for outcome in outcomes] == ["", "", ""]
    names = [reading.name for outcome in outcomes for reading in outcome.readings]
    assert "decode, tiny, 4 users, of the copy rate" in names
    assert any(name.startswith("update, tiny, 4 users") for name in names)


def test_figures_say_what_was_reached_and_can_be_read_back(tmp_path: Path) -> None:
    readings = [
        *ratio_readings("a / b", [1.0, 1.2, 1.4], [1.0, 1.0, 1.0], at_most(1.25, "x")),
        Reading("rate", (1.0, 5.0), "users/s", at_least(10, "users/s")),
    ]
    figures = [reading.figure(observe_origin()) for reading in readings]

    write_figures(tmp_path / "figures.json", figures)

    assert read_figures(tmp_path / "figures.json") == figures
    assert [(f.value, f.target, f.reached) for f in figures] == [
        (1.2, "<= 1.25 x", True),
        (1.0, "", None),
        (1.0, "", None),
        (3.0, ">= 10 users/s", False),
    ]
    assert figures[0].spread == "median of 1..1.4, n=3"
    assert all(f.hardware and f.commit and f.date for f in figures)


def test_what_is_compared_takes_turns_and_starts_prepared() -> None:
    seen: list[str] = []
    turns = {name: Turn(lambda n=name: seen.append(n), lambda n=name: seen.append(f"prepare {n}")) for name in "ab"}  # type: ignore[misc]

    seconds = take_turns(turns, rounds=2)

    first = ["prepare a", "a", "a", "prepare b", "b", "b"]
    assert seen == [*first, *first[3:], *first[:3]]
    assert all(len(one) == 2 and all(math.isfinite(s) for s in one) for one in seconds.values())


def test_a_refused_case_makes_the_run_fail_and_an_absent_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sound = Outcome("sound", (Reading("speed", (1.0,), "x", at_least(2, "x")),))
    absent = Outcome("GPU", absence="no CUDA device")
    refused = Outcome("wrong", refusal="logits differ")

    assert bench.report([sound, absent], tmp_path / "figures.json") == 0
    assert bench.report([sound, absent, refused], None) == 1

    told = capsys.readouterr().out
    assert "GPU: not run: no CUDA device" in told
    assert "wrong: not timed, logits differ" in told
    (entry,) = json.loads((tmp_path / "figures.json").read_text())
    assert (entry["name"], entry["reached"]) == ("speed", False)


def test_the_numbers_of_a_text_are_its_tokens() -> None:
    assert NumberTokenizer().encode("5 17 x") == [5, 17, 0]
