"""What decides who owns what, and in which order it is learned, asks no wall clock: a clock that jumps changes nothing.

Waiting goes by the monotonic clock, order by positions and epochs. Where the time of day is asked, it is named here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

FOLDERS = (
    "platform/siltstone/placement",
    "platform/siltstone/memory",
    "services/siltstone_services/cluster",
)
ASKED = {
    ("services/siltstone_services/cluster/router.py", "ClusterHost._record_exchange"): (
        "says when an answered question happened, as a caller says it of what it records: content, never an order"
    ),
    ("services/siltstone_services/cluster/conductor.py", "Conductor._look_at_ages"): (
        "warns of records that wait for long, by the broker's clock and ours: a warning, and nothing is done about it"
    ),
    ("services/siltstone_services/cluster/journal_age.py", "look_at_ages"): "the same warning, once, at start",
}

OF_TIME = {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "clock_gettime"}
OF_DATES = {"now", "utcnow", "today", "fromtimestamp", "utcfromtimestamp"}
MONOTONIC = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "thread_time", "process_time", "sleep"}


class _Askings(ast.NodeVisitor):
    """Gathers where a file asks the time of day, by the class and function it stands in."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._where: list[str] = []
        self._modules: dict[str, str] = {}

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _inside

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            if name.name in ("time", "datetime"):
                self._modules[name.asname or name.name] = name.name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            if node.module == "time" and name.name in OF_TIME:
                # Imported by itself, whatever it is called there.
                self._note()
            elif node.module == "datetime":
                self._modules[name.asname or name.name] = name.name

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "now_ms" or self._is_of_time(node):
            self._note()
        self.generic_visit(node)

    def _is_of_time(self, node: ast.Attribute) -> bool:
        root: ast.expr = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        module = self._modules.get(root.id, "") if isinstance(root, ast.Name) else ""
        return node.attr in (OF_TIME if module == "time" else OF_DATES if module else ())

    def _note(self) -> None:
        self.found.add(".".join(self._where) or "<module>")


def askings(source: str) -> set[str]:
    visitor = _Askings()
    visitor.visit(ast.parse(source))
    return visitor.found


def askings_in(root: Path) -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            for where in askings(path.read_text(encoding="utf-8")):
                yield path.relative_to(root).as_posix(), where


def test_the_time_of_day_is_asked_only_where_a_reason_is_given() -> None:
    assert set(askings_in(ROOT)) == set(ASKED)


PLANTED = {
    "time.time": "import time\ndef f():\n    return time.time()",
    "under another name": "import time as t\ndef f():\n    return t.time_ns()",
    "as a default": "import time\ndef f(now=time.time):\n    return now()",
    "imported by itself": "def f():\n    from time import time as now\n    return now()",
    "datetime.now": "from datetime import UTC, datetime\ndef f():\n    return datetime.now(UTC)",
    "through its module": "import datetime\ndef f():\n    return datetime.datetime.utcnow()",
    "a date": "from datetime import date as day\ndef f():\n    return day.today()",
    "our port": "def f(clock):\n    return clock.now_ms()",
    "our clock": "from siltstone.adapters.system_clock import SystemClock\ndef f():\n    return SystemClock().now_ms()",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED.keys())
def test_one_that_is_planted_is_found(source: str) -> None:
    assert askings(source) == {"f"}


def test_one_that_is_planted_in_a_file_is_named(tmp_path: Path) -> None:
    planted = tmp_path / FOLDERS[0] / "coordinator.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("import time\nclass Coordinator:\n    def tick(self):\n        return time.time()\n")
    assert list(askings_in(tmp_path)) == [(f"{FOLDERS[0]}/coordinator.py", "Coordinator.tick")]


@pytest.mark.parametrize("name", sorted(MONOTONIC))
def test_a_clock_that_cannot_jump_is_no_offence(name: str) -> None:
    assert askings(f"import time\ndef f():\n    return time.{name}") == set()
