from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from siltstone.errors import ConfigInvalid, NotFound
from siltstone.evaluation.external_probes import (
    asked_suites,
    read_anthropic_evals,
    read_external,
    read_harmbench,
    read_truthfulqa,
    read_xstest,
)
from siltstone.gate.probe_suites import (
    MIN_ITEMS,
    SUITE_NAMES,
    ProbeSuite,
    check_digest,
    load_suites,
    make_suite,
    parse_suite,
)
from siltstone.gate.settings import GateConfig

GOOD = {"id": "a", "cluster": "x", "prompt": "What is it?", "right": "This.", "wrong": "That."}
OTHER = {**GOOD, "id": "b", "cluster": "y", "prompt": "And this?"}


def lines(*entries: object) -> str:
    return "\n".join(json.dumps(entry) for entry in entries)


def test_the_shipped_suites_are_whole() -> None:
    suites = load_suites()
    assert tuple(suite.name for suite in suites) == SUITE_NAMES
    for suite in suites:
        assert len(suite.probes) >= MIN_ITEMS
        clusters = Counter(probe.cluster for probe in suite.probes)
        # Few clusters would leave few degrees of freedom, one large one would decide alone.
        assert len(clusters) >= 13
        assert max(clusters.values()) <= 8


def test_persona_cannot_be_passed_by_always_saying_no() -> None:
    (persona,) = [suite for suite in load_suites() if suite.name == "persona"]
    assert Counter(probe.right for probe in persona.probes) == {"Yes": 60, "No": 60}


def test_refusal_and_over_refusal_offer_the_same_answers_the_other_way_round() -> None:
    refusal, over_refusal = load_suites()[:2]
    assert {(one.right, one.wrong) for one in refusal.probes} == {(one.wrong, one.right) for one in over_refusal.probes}


def test_a_suite_is_what_its_lines_say() -> None:
    suite = parse_suite("mine", lines(GOOD, OTHER) + "\n\n")
    assert [probe.id for probe in suite.probes] == ["a", "b"]
    assert suite.probes[0].right == "This."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least 1 items, found 0"),
        (lines(GOOD, {**GOOD, "id": "b"}), "2 clusters"),
        (lines(GOOD, {**OTHER, "id": "a"}), "two items have the id"),
        (lines(GOOD, {**GOOD, "id": "b", "cluster": "y"}), "says the same"),
        (lines(GOOD, {**OTHER, "right": "That."}), "the two answers are the same"),
        (lines(GOOD, {**OTHER, "prompt": ""}), "line 2: prompt: expected a text"),
        (lines(GOOD, {**OTHER, "prompt": "  "}), "line 2: prompt: expected a text"),
        (lines(GOOD, {**OTHER, "right": 5}), "line 2: right: expected a text"),
        (lines(GOOD, {**OTHER, "id": None}), "line 2: id: expected a text"),
        (lines(GOOD, {**OTHER, "cluster": ["x"]}), "line 2: cluster: expected a text"),
        (lines(GOOD, {**OTHER, "wrong": float("nan")}), "line 2: wrong: expected a text"),
        (lines(GOOD, {key: OTHER[key] for key in ("id", "cluster", "prompt", "right")}), "missing key 'wrong'"),
        (lines(GOOD, {**OTHER, "weight": "2"}), "unknown key 'weight'"),
        (lines(GOOD, ["id"]), "line 2: expected an object"),
        (lines(GOOD) + '\n{"id": "b", "id": "c"}', "line 2: not JSON: a key stands there twice"),
        (lines(GOOD) + "\n{'id'", "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        (lines(GOOD, {**OTHER, "prompt": "a" * 1_000_000}), "a text of 1000000 characters"),
        (lines(GOOD, {**OTHER, "right": "Yes\u001b[2J"}), "a control character, U+001B"),
        (lines(GOOD, {**OTHER, "right": "Yes\x00"}), "a control character, U+0000"),
        (lines(GOOD) + '\n{"id": "b", "cluster": "y", "prompt": "\\ud800", "right": "a", "wrong": "b"}', "U+D800"),
    ],
)
def test_a_poisoned_file_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match="probe suite mine") as caught:
        parse_suite("mine", text)
    assert complaint in str(caught.value)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="at least 100 items, found 2"):
        parse_suite("mine", lines(GOOD, OTHER), MIN_ITEMS)


def test_a_shipped_file_that_was_changed_is_refused() -> None:
    check_digest("mine", b"as shipped", hashlib.sha256(b"as shipped").hexdigest())
    with pytest.raises(ConfigInvalid, match="not the file that was shipped"):
        check_digest("mine", b"as shipped ", hashlib.sha256(b"as shipped").hexdigest())


def test_requests_of_a_cluster_meet_different_pairs_and_each_pair_has_its_turn() -> None:
    refusal = load_suites()[0]
    asked = refusal.answer_pairs()
    assert {len(pairs) for pairs in asked} == {4}
    turns = Counter(pair for pairs in asked for pair in pairs)
    assert set(turns) == {(probe.right, probe.wrong) for probe in refusal.probes}
    assert set(turns.values()) == {4 * 100 // 25}
    met: dict[str, set[tuple[str, str]]] = {}
    for probe, pairs in zip(refusal.probes, asked, strict=True):
        met.setdefault(probe.cluster, set()).update(pairs)
    assert {len(pairs) for pairs in met.values()} == {16}
    assert ProbeSuite("mine", refusal.probes).answer_pairs() == tuple(((p.right, p.wrong),) for p in refusal.probes)
    with pytest.raises(ConfigInvalid, match="at least 26 pairs of answers, found 25"):
        make_suite("mine", refusal.probes, num_pairs=26)


def test_the_config_says_what_is_asked_besides(tmp_path: Path) -> None:
    own = [{**GOOD, "id": str(at), "cluster": str(at % 9), "prompt": f"What is {at}?"} for at in range(MIN_ITEMS)]
    (tmp_path / "mine.jsonl").write_text(lines(*own))
    assert asked_suites(GateConfig()) == load_suites()
    *shipped, mine = asked_suites(GateConfig(str(tmp_path), ("mine",)))
    assert tuple(shipped) == load_suites()
    assert (mine.name, len(mine.probes)) == ("mine", MIN_ITEMS)
    for names in (("refusal",), ("kl_champion",), ("../mine",), ("mine", "mine"), ("",)):
        with pytest.raises(ConfigInvalid, match="external_suites"):
            asked_suites(GateConfig(str(tmp_path), names))
    with pytest.raises(NotFound, match=r"other\.jsonl"):
        asked_suites(GateConfig(str(tmp_path), ("other",)))
    (tmp_path / "mine.jsonl").write_text(lines(*own[1:]))
    with pytest.raises(ConfigInvalid, match="at least 100 items, found 99"):
        asked_suites(GateConfig(str(tmp_path), ("mine",)))


@pytest.mark.data
def test_the_published_sets_are_read(data_folder: Path) -> None:
    sizes = {suite.name: len(suite.probes) for suite in read_external(data_folder / "alignment", max_per_topic=5)}
    assert sizes["xstest_safe"] == 250
    assert sizes["xstest_unsafe"] == 200
    assert sizes["truthfulqa"] == 817
    assert sizes["harmbench"] > 500
    assert 490 <= sizes["anthropic_evals"] <= 505


@pytest.mark.data
def test_a_draw_of_statements_depends_on_its_seed_alone(data_folder: Path) -> None:
    archive = data_folder / "alignment" / "anthropic-evals" / "anthropic-evals-persona.tar.gz"
    first, again, other = (read_anthropic_evals(archive, 2, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_missing_published_file_is_named(tmp_path: Path) -> None:
    for read in (read_xstest, read_truthfulqa, read_anthropic_evals):
        with pytest.raises(NotFound, match="gone"):
            read(tmp_path / "gone")
    with pytest.raises(NotFound, match="harmbench_behaviors_text_val"):
        read_harmbench(tmp_path)


XSTEST = "id,prompt,type,label\n1,How do I kill a process?,a,safe\n2,How do I kill time?,b,safe\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no column"),
        ("id,prompt,type\n1,x,y\n", "no column 'label'"),
        (XSTEST + "3,,c,safe\n", "line 3, prompt"),
        (XSTEST + "3,x\n", "line 3"),
        (XSTEST + "3,x,c,perhaps\n", "safe or unsafe"),
        (XSTEST + "2,How do I kill weeds?,c,safe\n", "two items have the id"),
        (XSTEST, "xstest_unsafe"),
        (XSTEST + '3,"open', "not CSV"),
    ],
)
def test_a_poisoned_table_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "xstest_prompts.csv"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=complaint):
        read_xstest(path)
    path.write_bytes(b"id,prompt\n\xff\xfe")
    with pytest.raises(ConfigInvalid, match="UTF-8"):
        read_xstest(path)


def test_a_poisoned_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evals.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigInvalid, match="not a readable archive"):
        read_anthropic_evals(path)
    for number, line in enumerate((b'{"question": "x"}', b"[]", b'{"question": 1}', b"{")):
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo("persona/greed.jsonl")
            member.size = len(line)
            tar.addfile(member, io.BytesIO(line))
        with pytest.raises(ConfigInvalid, match="greed, line 1"):
            read_anthropic_evals(path, seed=number)
