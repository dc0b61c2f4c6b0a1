"""What the log warns of stands in the operations page, with what it means and what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT, SOURCE_ROOTS

LEVELS = {"warning", "error", "exception", "critical"}
PAGE = ROOT / "docs" / "operations.md"


def alarms(source: str) -> Iterator[tuple[int, str | None]]:
    """Yields the line and the text of every warning and error that a file logs; None for a text that is not constant.

    A logger is what `logging.getLogger` was called for, under whatever name.
    """
    tree = ast.parse(source)
    loggers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _makes_logger(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in LEVELS:
            continue
        called_on = node.func.value
        if _makes_logger(called_on) or (isinstance(called_on, ast.Name) and called_on.id in {*loggers, "logging"}):
            text = node.args[0] if node.args else None
            is_constant = isinstance(text, ast.Constant) and isinstance(text.value, str)
            yield node.lineno, text.value if is_constant else None


def _makes_logger(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "getLogger"


def unexplained(roots: tuple[Path, ...], page: str) -> list[str]:
    """Returns a sentence for every alarm that begins no row of a table in the page."""
    explained = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    offences = []
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            for line, text in alarms(path.read_text(encoding="utf-8")):
                if text is None:
                    offences.append(f"{path.name}:{line}: its text is not constant")
                elif text not in explained:
                    offences.append(f"{path.name}:{line}: `{text}` is not explained")
    return offences


def test_every_warning_and_error_has_its_row_in_the_operations_page() -> None:
    assert unexplained(SOURCE_ROOTS, PAGE.read_text(encoding="utf-8")) == []


def test_the_alarms_are_seen() -> None:
    found = [text for root in SOURCE_ROOTS for path in root.rglob("*.py") for _, text in alarms(path.read_text())]
    # Otherwise a page without any would do.
    assert {"shard gone", "partition damaged", "MLflow is behind", "night failed"} <= set(found)
    assert len(found) > 30


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ('_LOG.warning("sky is falling", extra={"piece": 1})', "`sky is falling` is not explained"),
        ('_LOG.error(\n    "sky is falling",\n)', "`sky is falling` is not explained"),
        ('logging.getLogger("other").critical("sky is falling")', "`sky is falling` is not explained"),
        ('logging.error("sky is falling")', "`sky is falling` is not explained"),
        ('_LOG.error(f"shard {1} gone")', "not constant"),
    ],
)
def test_an_alarm_that_nobody_explains_is_found(tmp_path: Path, call: str, complaint: str) -> None:
    known = '_LOG.error("shard gone")\n_LOG.info("ready")'
    (tmp_path / "planted.py").write_text(
        f"import logging\n\n_LOG: object = logging.getLogger(__name__)\n{known}\n{call}\n"
    )
    page = "Where the `sky is falling` in passing.\n\n| `shard gone` | error | its process has ended |\n"
    (offence,) = unexplained((tmp_path,), page)
    assert complaint in offence
