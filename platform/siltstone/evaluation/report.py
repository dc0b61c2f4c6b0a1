"""The report of a run: one HTML file that needs nothing but itself. Needs the extra `demo` for its plots."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

from siltstone.errors import InvalidInput
from siltstone.evaluation.figures import format_value
from siltstone.evaluation.plots import Plot, draw_svg
from siltstone.values import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts. The first column names the row; cells that are numbers are set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and whether it names the right value (None when nobody judged it)."""

    text: str
    is_right: bool | None = None


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One question of one user, answered by the bare core and under each way of recall."""

    user: str
    question: str
    expected: str
    core: Answer
    text: Answer
    weights: Answer
    both: Answer


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a run has to show, in the order in which it is shown."""

    title: str
    subtitle: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()
    answers: tuple[AnswerRow, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()


def write_report(path: Path, report: Report) -> None:
    """Writes the report as one HTML file; an existing file is replaced as a whole or stays."""
    page = render_report(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def render_report(report: Report) -> str:
    """Returns the page. Every text of the report is escaped, whatever it contains.

    Raises: InvalidInput when a table's row does not have a cell for each column, or a plot cannot be drawn.
    """
    style = resources.files("siltstone.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _figures_section(report.figures),
        *(_plot_section(plot) for plot in report.plots),
        *(_table_section(table) for table in report.tables),
        _answers_section(report.answers),
        _origin_section(report.figures, report.notes),
    ]
    # The policy makes the browser itself refuse anything from outside, and any script.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(report.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
<p class="subtitle">{escape(report.subtitle)}</p>
</header>
<main>
{"".join(sections)}</main>
</body>
</html>
"""


def _figures_section(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    with_target = [figure for figure in figures if figure.reached is not None]
    num_reached = sum(figure.reached is True for figure in with_target)
    lead = f'<p class="lead">{num_reached} of {len(with_target)} targets reached.</p>' if with_target else ""
    rows = (
        f'<tr><th scope="row">{escape(figure.name)}</th>'
        f'<td class="number"><strong>{escape(format_value(figure.value))}</strong> {escape(figure.unit)}</td>'
        f'<td class="number">{escape(figure.target) or "&ndash;"}</td><td>{_reached_mark(figure.reached)}</td>'
        f'<td class="soft">{escape(figure.spread)}</td></tr>'
        for figure in figures
    )
    head = _head_row(("Measure", "Value", "Target", "Reached", "Spread"), numbers=frozenset({1, 2}))
    return _section("Figures", lead + _grid(head, rows))


def _reached_mark(reached: bool | None) -> str:
    if reached is None:
        return '<span class="soft">no target</span>'
    return '<span class="mark right">&#10003; yes</span>' if reached else '<span class="mark wrong">&#10007; no</span>'


def _plot_section(plot: Plot) -> str:
    return _section(plot.title, f'<figure role="img" aria-label="{escape(plot.title)}">{draw_svg(plot)}</figure>')


def _table_section(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise InvalidInput(f"table {table.title}", f"{len(table.columns)} cells in a row", str(len(row)))
    numbers = frozenset(
        column
        for column in range(1, len(table.columns))
        if table.rows and all(_is_number(row[column]) for row in table.rows if row[column])
    )
    rows = (
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{_number_class(column in numbers)}>{escape(row[column])}</td>" for column in range(1, len(row)))
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return _section(table.title, _grid(_head_row(table.columns, numbers), rows) + note)


def _answers_section(answers: Sequence[AnswerRow]) -> str:
    if not answers:
        return ""
    head = _head_row(("Question", "Right value", "Bare core", "Text recall", "Weights", "Both"), numbers=frozenset())
    rows: list[str] = []
    for user, of_user in groupby(answers, key=lambda row: row.user):
        rows.append(f'<tr class="group"><th scope="rowgroup" colspan="6">{escape(user)}</th></tr>')
        rows.extend(
            f'<tr><th scope="row">{escape(row.question)}</th><td><strong>{escape(row.expected)}</strong></td>'
            + "".join(_answer_cell(answer) for answer in (row.core, row.text, row.weights, row.both))
            + "</tr>"
            for row in of_user
        )
    return _section("Answers in fresh conversations", _grid(head, rows, "answers"))


def _answer_cell(answer: Answer) -> str:
    if answer.is_right is None:
        return f"<td>{escape(answer.text)}</td>"
    name, sign = ("right", "&#10003;") if answer.is_right else ("wrong", "&#10007;")
    return f'<td><span class="mark {name}" title="{name}">{sign}</span> {escape(answer.text)}</td>'


def _origin_section(figures: Sequence[Figure], notes: Sequence[str]) -> str:
    terms = [
        (name, " · ".join(dict.fromkeys(values)))
        for name, values in (
            ("Command", [figure.command for figure in figures]),
            ("Commit", [figure.commit for figure in figures]),
            ("Hardware", [figure.hardware for figure in figures]),
            ("Date", [figure.date for figure in figures]),
        )
        if values
    ]
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in terms)
    remarks = "".join(f"<p>{escape(note)}</p>" for note in notes)
    content = remarks + (f"<dl>{facts}</dl>" if facts else "")
    return _section("How this was measured", content) if content else ""


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _grid(head: str, rows: Iterable[str], name: str = "") -> str:
    return (
        f'<div class="scroll"><table class="{name}"><thead>{head}</thead><tbody>\n{"".join(rows)}</tbody></table></div>'
    )


def _head_row(columns: Sequence[str], numbers: frozenset[int]) -> str:
    cells = (
        f'<th scope="col"{_number_class(number in numbers)}>{escape(column)}</th>'
        for number, column in enumerate(columns)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").removesuffix("%"))
    except ValueError:
        return False
    return True
