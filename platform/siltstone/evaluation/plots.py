"""Plots of a report as SVG text that takes its colours from the page around it. Needs the extra `demo`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from siltstone.errors import InvalidInput

PlotKind = Literal["bars", "lines", "steps"]
"""Groups of bars over named places; points joined by lines; points joined by steps, as for a share over time."""

# matplotlib writes fixed colours. These stand for the page's own, so that one plot serves light and dark.
_INK: Final = "#010203"
_GRID: Final = "#010204"
_SERIES: Final = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_PAGE_COLOURS: Final = {
    _INK: "var(--ink-soft)",
    _GRID: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)},
}
# Keyed by what matplotlib of one version calls str and of another a literal.
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": ["sans-serif"],
    "font.size": 10,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "text.color": _INK,
    # A dollar sign in a label is a dollar sign.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One row of values. `xs` are their places on the x axis; bars have none, they stand at the plot's places."""

    name: str
    ys: tuple[float, ...]
    xs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """What to draw. `reference` is a level to compare with, such as chance, named by `reference_name`."""

    title: str
    kind: PlotKind
    series: tuple[Series, ...]
    places: tuple[str, ...] = ()
    x_label: str = ""
    y_label: str = ""
    reference: float | None = None
    reference_name: str = ""


def draw_svg(plot: Plot) -> str:
    """Returns the plot as an `svg` element, equal for equal plots.

    Raises: InvalidInput when a series does not fit the kind of plot.
    """
    _check(plot)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": repr(plot)}):
        canvas = Canvas(figsize=(8.4, 3.2), layout="constrained")
        canvas.patch.set_visible(False)
        axes = canvas.add_subplot()
        axes.patch.set_visible(False)
        if plot.kind == "bars":
            _draw_bars(axes, plot)
        else:
            _draw_lines(axes, plot)
        if plot.reference is not None:
            axes.axhline(plot.reference, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label=plot.reference_name)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        num_named = len(axes.get_legend_handles_labels()[1])
        if num_named > 1:
            canvas.legend(loc="outside upper left", ncols=num_named, fontsize=9)
        page = io.StringIO()
        canvas.savefig(page, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = page.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, page_colour in _PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    return svg


def _draw_bars(axes: Axes, plot: Plot) -> None:
    width = 0.8 / len(plot.series)
    for number, series in enumerate(plot.series):
        offset = (number - (len(plot.series) - 1) / 2) * width
        centres = [place + offset for place in range(len(plot.places))]
        axes.bar(centres, series.ys, width=width * 0.92, color=_colour(plot, number), label=series.name)
    axes.set_xticks(range(len(plot.places)), plot.places)
    if max(map(len, plot.places)) * len(plot.places) > 110:
        axes.tick_params(axis="x", rotation=30)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        axes.plot(
            series.xs,
            series.ys,
            color=_colour(plot, number),
            label=series.name,
            linewidth=2,
            drawstyle="steps-post" if plot.kind == "steps" else "default",
        )
    axes.margins(x=0.02)
    if plot.kind == "steps":
        axes.set_ylim(bottom=0)


def _colour(plot: Plot, number: int) -> str:
    # The first colour is a quiet one, for what the others are compared with. One series alone gets the second.
    return _SERIES[(number + (len(plot.series) == 1)) % len(_SERIES)]


def _check(plot: Plot) -> None:
    if not plot.series:
        raise InvalidInput(f"plot {plot.title}", "at least one series", "none")
    for series in plot.series:
        places: Sequence[object] = plot.places if plot.kind == "bars" else series.xs
        if not series.ys or len(series.ys) != len(places):
            raise InvalidInput(f"plot {plot.title}, {series.name}", f"{len(places)} values", str(len(series.ys)))
