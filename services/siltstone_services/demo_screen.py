"""What the demo shows while it runs, and the table it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from siltstone.evaluation.figures import format_value
from siltstone.ports import Clock
from siltstone.values import Figure
from siltstone_services.commands.screen import table

if TYPE_CHECKING:
    from siltstone.evaluation.report import Table

Count = Callable[[int], None]
"""Called when one more is done, with the tokens that it generated."""


class DemoScreen:
    """Progress beside the results, so that these can be piped on."""

    def __init__(self, beside: Console, results: Console, clock: Clock) -> None:
        self._beside, self._results, self._clock = beside, results, clock
        self._started_s = clock.monotonic_s()
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._latest_s = self._tokens_per_s = 0.0
        self._lag = 0

    def say(self, text: str) -> None:
        """Prints one line that stays, with the seconds since the start."""
        elapsed_s = self._clock.monotonic_s() - self._started_s
        self._beside.print(f"[dim]{elapsed_s:6.1f} s[/dim]  ", Text(text), sep="", soft_wrap=True)

    @contextmanager
    def teaching(self, num_statements: Mapping[str, int]) -> Iterator[None]:
        """Shows a bar for every user, the rate, the lag and the time to effect, while the block runs."""
        self._progress = _progress(self._beside)
        self._bars = {
            user: self._progress.add_task(user, total=total, rate="") for user, total in num_statements.items()
        }
        with Live(self._teaching_now(), console=self._beside, refresh_per_second=4) as self._live:
            yield
        self._progress = self._live = None
        if not self._beside.is_interactive:
            self._beside.print()  # there, what was live last ends without its line's end

    def learned(self, user: str, effect_s: float) -> None:
        """Says that a statement of a user has become part of the user's memory."""
        self._latest_s = effect_s
        if self._progress is not None:
            self._progress.advance(self._bars[user])
        self._redraw()

    def look(self, tokens_per_s: float, lag: int) -> None:
        """Says how fast learning goes."""
        self._tokens_per_s, self._lag = tokens_per_s, lag
        self._redraw()

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(self._teaching_now())

    def _teaching_now(self) -> Group:
        assert self._progress is not None
        rate = f"{format_value(self._tokens_per_s)} tokens/s"
        return Group(
            self._progress, f"          {rate}   lag {self._lag}   from sent to learned {self._latest_s:.1f} s"
        )

    @contextmanager
    def counting(self, title: str, total: int) -> Iterator[Count]:
        """Shows a bar while the block runs; what is given is to be called for every one done."""
        with _progress(self._beside) as progress:
            bar, started_s, num_tokens = progress.add_task(title, total=total, rate=""), self._clock.monotonic_s(), 0

            def count(tokens: int) -> None:
                nonlocal num_tokens
                num_tokens += tokens
                elapsed_s = self._clock.monotonic_s() - started_s
                rate = f"{format_value(num_tokens / elapsed_s)} tokens/s" if num_tokens and elapsed_s else ""
                progress.update(bar, advance=1, rate=rate)

            yield count

    def show(self, tables: Sequence[Table], figures: Sequence[Figure]) -> None:
        """Prints the results, and what was not reached."""
        for shown in tables:
            made = table(shown.columns[0], *(f"#{column}" for column in shown.columns[1:]), title=f"\n{shown.title}")
            for row in shown.rows:
                made.add_row(*map(Text, row))
            self._results.print(made)
            if shown.note:
                self._results.print(shown.note, style="dim", markup=False)
        made = table("", "#value", "unit", "target", "reached", "spread", title="\nFigures")
        for figure in figures:
            reached = {None: "", True: "yes", False: "[bold red]no[/bold red]"}[figure.reached]
            name, value = Text(figure.name.removeprefix("demo ")), format_value(figure.value)
            made.add_row(name, value, figure.unit, Text(figure.target), reached, Text(figure.spread))
        self._results.print(made)
        missed = [figure for figure in figures if figure.reached is False]
        for figure in missed:
            told = f"not reached: {figure.name} is {format_value(figure.value)} {figure.unit}, target {figure.target}"
            self._results.print(told, style="red", markup=False, soft_wrap=True)
        if not missed:
            self._results.print("every target was reached")

    def tell(self, text: str) -> None:
        """Prints a line of the results as it is."""
        self._results.print(text, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("          {task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
    )
