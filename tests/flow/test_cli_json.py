"""What a program reads of nights and versions: JSON on the standard output, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_night import make_home, sleep
from typer.testing import CliRunner

from siltstone_services.cli import app


def read(home: Path, *words: str) -> Any:
    result = CliRunner().invoke(app, ["--home", str(home), *words, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_program_reads_versions_their_verdicts_and_nights(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    assert read(home, "versions", "list") == {"champion": None, "versions": []}
    assert read(home, "sleep", "status") == []
    version = sleep(home, accepts=False).version

    listed = read(home, "versions", "list")
    assert [(one["number"], one["state"]) for one in listed["versions"]] == [(1, "serving"), (2, "refused")]
    report = read(home, "versions", "show", "2")
    assert report["card"] == listed["versions"][1]
    assert report["card"]["digest"] == version.digest
    assert {one["name"] for one in report["measurements"]} >= {"bits_per_byte", "agreement_champion"}
    verdict = read(home, "gate", "explain", "2")
    assert verdict == report["verdict"]
    assert not verdict["accepted"]
    assert [one["check"] for one in verdict["results"]] == ["the same next token"]
    compared = read(home, "versions", "compare", "1", "2")
    assert compared["reports"][1] == report
    assert compared["mean_kl_nats"] is None
