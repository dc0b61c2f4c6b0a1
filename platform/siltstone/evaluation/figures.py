"""Figures on paper: where they come from, how they are written and read back."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from siltstone.errors import Corrupt, InvalidInput
from siltstone.values import Figure

UNKNOWN_COMMIT: Final = "unknown"

_FIELD_TYPES: Final[dict[str, tuple[type, ...]]] = {
    field.name: {"value": (int, float), "reached": (bool, type(None))}.get(field.name, (str,))
    for field in fields(Figure)
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What all figures of one run have in common."""

    command: str
    commit: str
    hardware: str
    date: str

    def figure(
        self, name: str, value: float, unit: str, *, target: str = "", reached: bool | None = None, spread: str = ""
    ) -> Figure:
        """Returns a figure of this run. `reached` is None when there is no target."""
        return Figure(name, value, unit, target, reached, spread, self.command, self.commit, self.hardware, self.date)


def observe_origin(accelerator: str = "") -> Origin:
    """Returns the origin of figures measured by this process, now. `accelerator` is the name of the GPU in use."""
    return Origin(command_text(sys.argv), commit_id(), hardware_text(accelerator), date_text(datetime.now(UTC)))


def command_text(argv: Sequence[str]) -> str:
    """Returns a command line as it could be typed again, the program without its folder."""
    return shlex.join([Path(argv[0]).name, *argv[1:]]) if argv else ""


def commit_id(folder: Path = Path(__file__).parent) -> str:
    """Returns the commit that the code in `folder` was checked out from, "unknown" when it was not.

    A "+" at the end says that tracked files of the checkout differ from that commit. An installed copy that merely
    lies inside somebody's checkout is not tracked there, so it is unknown.
    """
    tracked = _git_output(folder, "ls-files", "--", ".")
    commit = _git_output(folder, "rev-parse", "--short=12", "HEAD")
    if not tracked or not commit:
        return UNKNOWN_COMMIT
    return commit + ("+" if _git_output(folder, "status", "--porcelain", "--untracked-files=no") else "")


def hardware_text(accelerator: str = "") -> str:
    """Returns the processor, the cores this process may use, the memory and the accelerator in words."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [_cpu_model(), f"{num_cores} core{'s' * (num_cores != 1)}", f"{memory_bytes / 2**30:.0f} GiB memory"]
    return ", ".join([*parts, accelerator] if accelerator else parts)


def date_text(moment: datetime) -> str:
    """Returns an instant as UTC in ISO 8601, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def spread_text(values: Sequence[float]) -> str:
    """Returns "min..max, n=.." of repeated measurements."""
    if not values:
        raise InvalidInput("values", "at least one measurement", "none")
    return f"{format_value(min(values))}..{format_value(max(values))}, n={len(values)}"


def count_text(num_events: int, num_trials: int) -> str:
    """Returns how often something happened. Zero comes with its bound: at 95 % confidence the rate is under 3/n."""
    if not 0 <= num_events <= num_trials or num_trials == 0:
        raise InvalidInput(
            "num_events", "0 <= num_events <= num_trials and at least one trial", f"{num_events} of {num_trials}"
        )
    if num_events == 0:
        return f"0 of {num_trials}, rate below {format_value(min(1.0, 3 / num_trials) * 100)} % (3/n)"
    return f"{num_events} of {num_trials}, {format_value(num_events / num_trials * 100)} %"


def format_value(value: float) -> str:
    """Returns a number as people read it: four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Writes figures as a JSON list; an existing file is replaced as a whole or stays.

    Raises: InvalidInput when a value is not finite, since JSON has no such number.
    """
    for figure in figures:
        if not math.isfinite(figure.value):
            raise InvalidInput(f"figure {figure.name}", "a finite value", str(figure.value))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(
            json.dumps([asdict(figure) for figure in figures], indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_figures(path: Path) -> list[Figure]:
    """Returns the figures of a file that `write_figures` wrote.

    Raises: Corrupt when the file is not a list of complete figures.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Corrupt(path.name, "a JSON list of figures", str(error)) from error
    if not isinstance(entries, list):
        raise Corrupt(path.name, "a JSON list of figures", type(entries).__name__)
    return [_parse_figure(path.name, entry) for entry in entries]


def _parse_figure(where: str, entry: object) -> Figure:
    if not isinstance(entry, dict) or set(entry) != set(_FIELD_TYPES):
        found = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise Corrupt(where, f"a figure with {', '.join(_FIELD_TYPES)}", found)
    for name, types in _FIELD_TYPES.items():
        if not isinstance(entry[name], types) or (name == "value" and isinstance(entry[name], bool)):
            raise Corrupt(f"{where}: {name}", " or ".join(kind.__name__ for kind in types), repr(entry[name]))
    return Figure(**{**entry, "value": float(entry["value"])})


def _git_output(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"
