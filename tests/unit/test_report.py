"""A report shows everything it was given, as text, and asks nothing of the world outside."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from siltstone.errors import InvalidInput
from siltstone.evaluation.figures import Origin
from siltstone.evaluation.plots import Plot, PlotKind, Series, draw_svg
from siltstone.evaluation.report import Answer, AnswerRow, Report, Table, render_report, write_report

HOSTILE = '</style><script src="https://example.org/x.js">alert(1)</script>&"\'$'
ORIGIN = Origin("siltstone demo --quick", "0123abc", "a machine, 2 cores", "2026-01-01T00:00:00+00:00")
BARS = Plot(
    "Recall",
    "bars",
    (Series("before", (0.1, 0.0)), Series("after", (0.9, 1.0))),
    places=("Maya", "Tomas"),
    reference=1 / 12,
    reference_name="chance",
)
STEPS = Plot("Time to effect", "steps", (Series("all", (0.5, 1.0), (1.0, 2.0)),), x_label="seconds")


def answer_row(user: str, question: str = "Where was I born?") -> AnswerRow:
    return AnswerRow(
        user,
        question,
        "Lisbon",
        core=Answer("I do not know.", False),
        text=Answer("In Lisbon, I think.", True),
        weights=Answer("You were born in Lisbon.", True),
        both=Answer("Lisbon it is.", None),
    )


def full_report() -> Report:
    return Report(
        "Twelve people, one model",
        "A run of the demo",
        figures=(
            ORIGIN.figure("recall", 0.925, "share", target=">= 0.9", reached=True, spread="0.9..1, n=3"),
            ORIGIN.figure("free answers", 0.4, "share", target=">= 0.5", reached=False),
            ORIGIN.figure("decode rate", 1234.5, "tokens/s"),
        ),
        tables=(
            Table("Users", ("User", "Right", "Pet"), (("Maya", "8", "dog"), ("Tomas", "7.5 %", "cat")), "A note."),
        ),
        answers=(answer_row("Maya"), answer_row("Maya", "What is my hobby?"), answer_row("Tomas")),
        plots=(BARS, STEPS),
        notes=("Greedy decoding.",),
    )


class Page(HTMLParser):
    """Collects tags and texts, and checks that every element that was opened is closed in order."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_figure_appears_with_its_target_and_whether_it_was_reached() -> None:
    text = Page(render_report(full_report())).text
    for expected in ("recall", "0.925", ">= 0.9", "0.9..1, n=3", "free answers", "decode rate", "1,234", "tokens/s"):
        assert expected in text
    assert "1 of 2 targets reached." in text
    assert text.count("✓ yes") == 1
    assert text.count("✗ no") == 1
    assert text.count("no target") == 1


def test_every_table_answer_note_and_plot_appears() -> None:
    page = Page(render_report(full_report()))
    for expected in ("Users", "7.5 %", "A note.", "I do not know.", "You were born in Lisbon.", "Greedy decoding."):
        assert expected in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 2
    for expected in ("before", "after", "chance", "Maya", "seconds"):
        assert expected in page.text


def test_the_answers_of_a_user_stand_under_one_heading() -> None:
    page = Page(render_report(replace(full_report(), tables=(), plots=())))
    assert page.text.count("Maya") == 1
    assert page.text.count("Where was I born?") == 2
    marks = [attrs["class"] for tag, attrs in page.tags if tag == "span" and "title" in attrs]
    assert marks == ["mark wrong", "mark right", "mark right"] * 3


def test_the_origin_of_the_figures_is_told_once() -> None:
    text = Page(render_report(full_report())).text
    for expected in ("siltstone demo --quick", "0123abc", "a machine, 2 cores", "2026-01-01T00:00:00+00:00"):
        assert text.count(expected) == 1


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    origin = Origin(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    cell = Answer(HOSTILE, True)
    report = Report(
        HOSTILE,
        HOSTILE,
        (origin.figure(HOSTILE, 1.0, HOSTILE, target=HOSTILE, reached=True, spread=HOSTILE),),
        (Table(HOSTILE, (HOSTILE, HOSTILE), ((HOSTILE, HOSTILE),), HOSTILE),),
        (AnswerRow(HOSTILE, HOSTILE, HOSTILE, cell, cell, cell, cell),),
        (
            Plot(
                HOSTILE,
                "bars",
                (Series(HOSTILE, (1.0,)), Series(HOSTILE, (2.0,))),
                (HOSTILE,),
                HOSTILE,
                HOSTILE,
                0.5,
                HOSTILE,
            ),
        ),
        (HOSTILE,),
    )
    rendered = render_report(report)
    page = Page(rendered)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in rendered
    # The title twice; subtitle; four texts of the figure; command, commit, hardware, date; note; 5 + 7 + 6 cells of
    # table, answers and plot with their headings. Each is there, and unchanged.
    assert page.text.count(HOSTILE) == 2 + 1 + 4 + 4 + 1 + 6 + 7 + 7


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Page(render_report(full_report()))
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "image"}
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith("#")
    assert any("default-src 'none'" in (attrs.get("content") or "") for tag, attrs in page.tags if tag == "meta")


def test_references_inside_a_plot_lead_into_that_plot_only() -> None:
    page = Page(render_report(full_report()))
    ids = [attrs["id"] for tag, attrs in page.tags if tag in {"clippath", "path"} and "id" in attrs]
    marks = [name for name in ids if name and not re.match(r"patch_|line", name)]
    assert len(set(marks)) == len(marks) > 0


def test_a_plot_takes_its_colours_from_the_page() -> None:
    svg = draw_svg(BARS)
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "var(--ink-soft)" in svg
    assert "#0102" not in svg


def test_equal_plots_are_drawn_equally() -> None:
    assert draw_svg(BARS) == draw_svg(replace(BARS))
    assert draw_svg(BARS) != draw_svg(replace(BARS, reference=0.5))


@pytest.mark.parametrize(
    "plot",
    [
        Plot("empty", "bars", (), places=("Maya",)),
        Plot("too few bars", "bars", (Series("a", (1.0,)),), places=("Maya", "Tomas")),
        Plot("no places", "bars", (Series("a", ()),)),
        Plot("points without places", "lines", (Series("a", (1.0, 2.0), (1.0,)),)),
    ],
)
def test_a_series_that_does_not_fit_its_plot_is_refused(plot: Plot) -> None:
    with pytest.raises(InvalidInput, match=plot.title):
        draw_svg(plot)


@pytest.mark.parametrize("kind", ["lines", "steps"])
def test_one_point_is_enough_for_a_plot(kind: PlotKind) -> None:
    assert draw_svg(Plot("one", kind, (Series("a", (1.0,), (1.0,)),))).startswith("<svg")


def test_columns_of_numbers_are_set_to_the_right_and_others_are_not() -> None:
    rendered = render_report(Report("t", "s", (), (full_report().tables[0],)))
    assert '<td class="number">7.5 %</td>' in rendered
    assert "<td>cat</td>" in rendered


def test_a_row_with_a_missing_cell_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "report.html"
    write_report(path, full_report())
    before = path.read_bytes()
    spoiled = replace(full_report(), tables=(Table("Users", ("User", "Right"), (("Maya",),)),))
    with pytest.raises(InvalidInput, match="2 cells"):
        write_report(path, spoiled)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert before.decode("utf-8") == render_report(full_report())


def test_an_empty_report_is_a_page_without_sections() -> None:
    page = Page(render_report(Report("t", "s", ())))
    assert "section" not in {tag for tag, _ in page.tags}
