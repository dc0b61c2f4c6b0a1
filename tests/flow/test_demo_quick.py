"""The demo in its quick form: on a core that knows nothing for the mechanics, on the real one for the meaning."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore, tensor_shapes
from siltstone.adapters.tokenizer import plain_chat
from siltstone.adapters.tokenizer_json import byte_level_bpe
from siltstone.config import SiltstoneConfig, load_config
from siltstone.errors import NotFound
from siltstone.evaluation.figures import read_figures
from siltstone.evaluation.office_material import load_office
from siltstone.model.config import CoreConfig
from siltstone.values import Figure
from siltstone_services.demo import full_plan, run_demo
from siltstone_services.demo_figures import quantile
from siltstone_services.demo_setting import at_once

TOKENS = [*sorted(ByteLevel.alphabet()), "<|end|>"]
TINY = CoreConfig(
    vocab_size=len(TOKENS),
    d_model=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_mlp=24,
    rope_base=10_000.0,
    norm_eps=1e-5,
    max_context=1024,
    tied_head=True,
)


def configured(home: Path, **overrides: object) -> SiltstoneConfig:
    return load_config(None, {"home": str(home), "engine.num_threads": 1, **overrides}, {})


def add_tiny_core(home: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in tensor_shapes(TINY).items()}
    tokenizer_json = byte_level_bpe(TOKENS, [], [len(TOKENS) - 1], [], "gpt-2")
    CoreStore(home).add(ImportedCore("tiny", TINY, tensors, tokenizer_json, plain_chat("", ("<|end|>",)), {}), "tiny")


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a tiny core, and the folder of runs after a quick demo on it."""
    home, runs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("runs")
    add_tiny_core(home)
    assert run_demo(quick=True, json_path=runs / "figures.json", config=configured(home), runs=runs) == 0
    return home, runs


def by_name(path: Path) -> dict[str, Figure]:
    return {figure.name: figure for figure in read_figures(path)}


def test_the_figures_tell_every_measure_with_its_target(demonstrated: tuple[Path, Path]) -> None:
    figures = by_name(demonstrated[1] / "figures.json")
    assert {figure.target for figure in figures.values()} >= {">= 90 %", ">= 50 %", "<= 1 %", "0"}
    assert figures["demo absorbed"].value > 0
    assert figures["demo interaction to effect, p50"].value <= figures["demo interaction to effect, p95"].value
    assert "of 12" in figures["demo forced choice after"].spread
    for figure in figures.values():
        assert (figure.reached is None) == (figure.target == ""), figure.name


def test_nobody_else_changes_and_who_is_forgotten_is_gone(demonstrated: tuple[Path, Path]) -> None:
    figures = by_name(demonstrated[1] / "figures.json")
    assert figures["demo other users changed"].value == 0
    assert figures["demo user who learned meanwhile changed"].value == 1
    forgotten = figures["demo forgotten user's difference from the core"]
    assert (forgotten.value, forgotten.reached) == (0.0, True)
    # The control: before, that user's memory did answer differently.
    assert not forgotten.spread.endswith("; 0 before")


def test_a_core_without_language_reaches_no_target_of_recall(demonstrated: tuple[Path, Path]) -> None:
    figures = by_name(demonstrated[1] / "figures.json")
    assert figures["demo free answers, weights"].reached is False
    assert figures["demo free answers, both"].reached is False


def test_the_report_stands_in_a_folder_of_its_run(demonstrated: tuple[Path, Path]) -> None:
    runs = demonstrated[1]
    latest = runs / "latest"
    assert latest.is_symlink()
    page = (latest / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "Maya" in page
    assert by_name(latest / "figures.json") == by_name(runs / "figures.json")


def test_the_users_own_home_stays_as_it_was(demonstrated: tuple[Path, Path]) -> None:
    home, runs = demonstrated
    assert {path.name for path in home.iterdir()} == {"cores", "bases"}
    run_home = runs / "latest" / "home"
    assert (run_home / "siltstone.db").is_file()
    pinned = load_config(None, {"home": str(run_home)}, {})
    assert pinned.core == CoreStore(home).resolve("tiny")


def test_a_second_run_has_a_folder_of_its_own(demonstrated: tuple[Path, Path]) -> None:
    home, runs = demonstrated
    first = (runs / "latest").resolve()
    assert run_demo(quick=True, json_path=None, config=configured(home), runs=runs) == 0
    assert (runs / "latest").resolve() != first
    assert (first / "report.html").is_file()


def test_a_core_that_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run_demo(quick=True, json_path=None, config=configured(tmp_path / "home", core="mine"), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_full_course_asks_for_every_kind_of_fact_and_quotes_only_what_was_recalled() -> None:
    office = load_office()
    plan = full_plan(office)
    for chosen in (plan.answered, plan.helped):
        assert {fact.slot for user in plan.users for fact in chosen(user)} == set(office.slots)
    assert all(set(plan.helped(user)) <= set(plan.answered(user)) for user in plan.users)


async def test_a_call_that_fails_is_told_by_its_own_error_and_ends_the_others() -> None:
    started, ended = set(), set()

    async def call(number: int) -> None:
        started.add(number)
        if number == 3:
            raise NotFound("number", "3")
        try:
            await asyncio.Event().wait()
        finally:
            ended.add(number)

    with pytest.raises(NotFound):
        await at_once(range(6), call, max_running=4)
    assert started >= {0, 1, 2, 3}
    assert ended == started - {3}


async def test_no_more_calls_run_at_once_than_allowed_and_results_keep_their_order() -> None:
    running: set[int] = set()
    most = 0

    async def call(number: int) -> int:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.remove(number)
        return 10 * number

    assert await at_once(range(7), call, max_running=3) == [0, 10, 20, 30, 40, 50, 60]
    assert most == 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.95, 4.0), (0.25, 1.0), (1.0, 4.0), (0.0, 1.0)])
def test_a_quantile_is_one_of_the_measured_times(share: float, expected: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == expected


@pytest.mark.slow
def test_the_real_core_learns_its_users_and_nothing_else(tmp_path: Path) -> None:
    assert run_demo(True, tmp_path / "figures.json", configured(tmp_path / "home"), tmp_path / "runs") == 0
    figures = by_name(tmp_path / "figures.json")
    assert figures["demo forced choice after"].reached
    assert figures["demo forced choice before"].value < figures["demo forced choice after"].value
    assert figures["demo free answers, core"].value < figures["demo free answers, both"].value
    assert figures["demo other users changed"].reached
