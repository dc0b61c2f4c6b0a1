"""Reads the Ubuntu IRC archive: public chat of many people, one log per channel and day."""

from __future__ import annotations

import gzip
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from siltstone.errors import InvalidInput
from siltstone.journal.sources.source import Skipped, SkipReason, SourceOptions, pseudonym, stable_id
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

LOG_SUFFIX: Final = ".raw.txt"
ARCHIVE_SUFFIXES: Final = (".tar.gz", ".tgz", ".tar")

_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SPOKEN = re.compile(r"\[(\d{2}):(\d{2})\] <[@+%&~ ]?([^>]+)>(?: (.*))?", re.DOTALL)
_NOTICE = re.compile(r"(?:\[\d{2}:\d{2}\])? *-([^\s:-][^\s:]*)(?::[^\s]+)?- ")
_ACTION = re.compile(r"(?:\[\d{2}:\d{2}\])? *\* +(\S+)")
_ANNOUNCED = re.compile(r"=== ([^\s/#]+)")
_RENAMED = re.compile(r"=== \S+ is now known as (\S+)")
_DONE_BY = re.compile(r"=== .* by (\S+)")
_FORMATTING = re.compile(r"\x03(?:\d{1,2}(?:,\d{1,2})?)?|[\x00-\x08\x0b-\x1f\x7f]")
_ARCHIVE_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)

_HALF_DAY_MINUTES: Final = 12 * 60
_CLOCK_SLACK_MINUTES: Final = 30


def read_irc(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Reads an archive, a folder or one log, in order of time.

    Each message is a document of the person who wrote it. Real nicknames do not leave this module: whoever speaks,
    joins, leaves or is renamed in a log is known, and stands in every text of that log under the hashed name, wherever
    the nickname is a word of its own, in upper or lower case. (So the word "the" is a name on the day when somebody
    of that name is there: better a few odd lines than a guess at who was meant.)

    Raises: InvalidInput when `path` is none of the three.
    """
    if path.is_dir():
        return _read_folder(path, options)
    if path.name.endswith(ARCHIVE_SUFFIXES):
        return _read_archive(path, options)
    if path.name.endswith(LOG_SUFFIX):
        return _read_file(path, options)
    raise InvalidInput("path", f"a folder, an archive ({', '.join(ARCHIVE_SUFFIXES)}) or a {LOG_SUFFIX} log", path.name)


def read_log(name: str, data: bytes, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Reads the log of one day; the day is in its name."""
    if len(data) > options.max_log_bytes:
        yield Skipped(SkipReason.TOO_LARGE, name)
        return
    midnight_ms = _midnight_ms(name)
    if midnight_ms is None:
        yield Skipped(SkipReason.NO_DATE, name)
        return
    lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
    hide_names = _name_hider(_nicknames(lines), options.salt)
    clock = _Clock()
    said: _Said | None = None
    for number, line in enumerate(lines, start=1):
        spoken = _SPOKEN.fullmatch(line.rstrip("\r"))
        minute = clock.read(int(spoken[1]), int(spoken[2])) if spoken else None
        if spoken is None or minute is None:
            yield Skipped(_why_not_spoken(line), f"{name}:{number}")
            continue
        text = hide_names(_FORMATTING.sub("", spoken[4] or "").strip())
        if not text:
            yield Skipped(SkipReason.EMPTY, f"{name}:{number}")
            continue
        speaker = pseudonym(spoken[3], options.salt)
        if said is not None and said.continues(speaker, minute, text, options):
            said.add(minute, text)
            continue
        if said is not None:
            yield said.interaction(name, midnight_ms, options)
        said = _Said(speaker, number, minute, minute, [text], len(text.encode()))
    if said is not None:
        yield said.interaction(name, midnight_ms, options)


@dataclass(slots=True)
class _Said:
    """What one person has said without anybody in between."""

    speaker: str
    first_line: int
    first_minute: int
    last_minute: int
    texts: list[str]
    num_bytes: int

    def continues(self, speaker: str, minute: int, text: str, options: SourceOptions) -> bool:
        return (
            options.merge_gap_s > 0
            and speaker == self.speaker
            and (minute - self.last_minute) * 60 <= options.merge_gap_s
            and self.num_bytes + 1 + len(text.encode()) <= options.max_merged_bytes
        )

    def add(self, minute: int, text: str) -> None:
        self.last_minute = minute
        self.texts.append(text)
        self.num_bytes += 1 + len(text.encode())

    def interaction(self, name: str, midnight_ms: int, options: SourceOptions) -> Interaction:
        return Interaction(
            id=stable_id("irc", name, self.first_line),
            owner=UserKey(options.tenant, self.speaker),
            kind=InteractionKind.DOCUMENT,
            occurred_at_ms=midnight_ms + self.first_minute * 60_000,
            messages=(Message(Role.USER, "\n".join(self.texts)),),
            consent=options.consent,
        )


@dataclass(slots=True)
class _Clock:
    """Minutes since the midnight a log begins with, never going back.

    A log may run past midnight, and some were written with a twelve-hour clock: after 11:59 comes 00:00, or 1:00
    after 12:59. Both show as a leap back, and the smallest number of half days that mends it is the right one.
    A step back of a few minutes is a clock that was set.
    """

    latest: int = 0
    passed: int = 0

    def read(self, hour: int, minute: int) -> int | None:
        if hour > 23 or minute > 59:
            return None
        now = hour * 60 + minute + self.passed
        if now < self.latest - _CLOCK_SLACK_MINUTES:
            leap = -((now - self.latest) // _HALF_DAY_MINUTES) * _HALF_DAY_MINUTES
            self.passed += leap
            now += leap
        self.latest = max(self.latest, now)
        return self.latest


def _midnight_ms(name: str) -> int | None:
    found = _DATE.search(name)
    if found is None:
        return None
    try:
        midnight = datetime(int(found[1]), int(found[2]), int(found[3]), tzinfo=UTC)
    except ValueError:
        return None
    return max(0, int(midnight.timestamp() * 1000))


def _why_not_spoken(line: str) -> SkipReason:
    if not line.strip():
        return SkipReason.EMPTY
    announced = line.startswith("===") or _ACTION.match(line) or _NOTICE.match(line)
    return SkipReason.SYSTEM_LINE if announced else SkipReason.MALFORMED


def _nicknames(lines: Iterable[str]) -> set[str]:
    names: set[str] = set()
    for line in lines:
        if spoken := _SPOKEN.match(line):
            names.add(spoken[3])
        else:
            patterns = (_ANNOUNCED, _RENAMED, _DONE_BY, _ACTION, _NOTICE)
            names.update(found[1] for pattern in patterns if (found := pattern.match(line)))
    # Without a letter or digit it is an emoticon or a shell operator far more often than anybody's name.
    return {name for name in names if any(letter.isalnum() for letter in name)}


def _name_hider(names: set[str], salt: str) -> Callable[[str], str]:
    """Returns a function that puts the hashed name wherever one of `names` stands as a word of its own."""
    if not names:
        return lambda text: text
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    any_name = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])", re.IGNORECASE)
    return lambda text: any_name.sub(lambda found: pseudonym(found[0], salt), text)


def _read_file(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    try:
        with path.open("rb") as stream:
            data = stream.read(options.max_log_bytes + 1)
    except OSError:
        yield Skipped(SkipReason.MALFORMED, path.name)
        return
    yield from read_log(path.name, data, options)


def _read_folder(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    for log in sorted(path.rglob(f"*{LOG_SUFFIX}"), key=lambda found: (found.name, str(found))):
        yield from _read_file(log, options)


def _read_archive(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    # Members lie in no order, and going back in a compressed stream means unpacking it again from its start. So it is
    # unpacked once, to a file without a name: the nicknames in it are gone when it is closed, however that happens.
    with tempfile.TemporaryFile() as unpacked:
        damage = _unpack(path, unpacked, options.max_archive_bytes)
        try:
            unpacked.seek(0)
            with tarfile.open(fileobj=unpacked, mode="r:") as archive:
                members, intact = _logs_in(archive)
                if not intact:
                    damage = damage or SkipReason.MALFORMED
                for member in members:
                    yield from _read_member(archive, member, options)
        except tarfile.TarError:
            damage = damage or SkipReason.MALFORMED
    if damage is not None:
        yield Skipped(damage, path.name)


def _logs_in(archive: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], bool]:
    """Returns the logs of an archive in order of time, and whether its list of members could be read to the end."""
    logs: list[tarfile.TarInfo] = []
    intact = True
    try:
        for member in archive:
            if member.isfile() and member.name.endswith(LOG_SUFFIX):
                logs.append(member)
    except _ARCHIVE_ERRORS:
        intact = False
    return sorted(logs, key=lambda log: (Path(log.name).name, log.name)), intact


def _read_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, options: SourceOptions
) -> Iterator[Interaction | Skipped]:
    name = Path(member.name).name
    try:
        stream = archive.extractfile(member)
        data = stream.read(options.max_log_bytes + 1) if stream is not None else b""
    except _ARCHIVE_ERRORS:
        yield Skipped(SkipReason.MALFORMED, name)
        return
    yield from read_log(name, data, options)


def _unpack(path: Path, target: IO[bytes], max_bytes: int) -> SkipReason | None:
    """Writes the plain tar in `path` to `target` as far as it can be read; says what kept it from the rest."""
    num_bytes = 0
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            while block := stream.read1(1 << 16):
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    return SkipReason.TOO_LARGE
                target.write(block)
    except _ARCHIVE_ERRORS:
        return SkipReason.MALFORMED
    return None
