from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from siltstone.errors import InvalidInput
from siltstone.journal.admit import AdmissionLimits, check
from siltstone.journal.sources import Skipped, SkipReason, SourceOptions, open_source
from siltstone.journal.sources.source import pseudonym
from siltstone.values import Interaction, InteractionKind, Role

DAY = "2007-01-19.train-a.raw.txt"
LOG = """\
=== wanda [n=wanda@host.example]  has joined #ubuntu
[05:29] <Bruno> hello all
[05:29] <Bruno> wanda, is that you?
[05:30] <wanda> BRUNO: yes, bruno_ was my other name. Brunost is a cheese
[05:31]  * wanda waves
[05:31] <Bruno> good
[05:40] <Bruno> still there?
=== bruno_ is now known as Bruno
[05:41] <silent>\x20
what is this
[99:99] <wanda> never
[05:41] -spambot:#ubuntu- buy now
"""


def _read(path: Path, **options: object) -> list[Interaction | Skipped]:
    return list(open_source("irc", path, SourceOptions(**options)))  # type: ignore[arg-type]


def _said(entries: list[Interaction | Skipped]) -> list[tuple[str, str]]:
    return [(entry.owner.user, entry.messages[0].text) for entry in entries if isinstance(entry, Interaction)]


def _log(folder: Path, text: str, name: str = DAY) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def _archive(path: Path, logs: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in logs.items():
            member = tarfile.TarInfo(f"ubuntu-irc/train/{name}")
            data = text.encode()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_log_becomes_the_messages_of_hashed_people(tmp_path: Path) -> None:
    entries = _read(_log(tmp_path, LOG), salt="s")
    bruno, wanda, alias = (pseudonym(name, "s") for name in ("bruno", "wanda", "bruno_"))
    assert _said(entries) == [
        (bruno, f"hello all\n{wanda}, is that you?"),
        (wanda, f"{bruno}: yes, {alias} was my other name. Brunost is a cheese"),
        (bruno, "good"),
        (bruno, "still there?"),
    ]
    first = entries[1]
    assert isinstance(first, Interaction)
    assert first.occurred_at_ms == int(datetime(2007, 1, 19, 5, 29, tzinfo=UTC).timestamp() * 1000)
    assert (first.kind, first.messages[0].role) == (InteractionKind.DOCUMENT, Role.USER)
    assert re.fullmatch(r"u_[0-9a-f]{12}", first.owner.user)
    skipped = Counter(entry.reason for entry in entries if isinstance(entry, Skipped))
    assert skipped == {SkipReason.SYSTEM_LINE: 4, SkipReason.EMPTY: 1, SkipReason.MALFORMED: 2}
    assert Skipped(SkipReason.MALFORMED, f"{DAY}:10") in entries


def test_every_message_is_fit_for_the_journal(tmp_path: Path) -> None:
    log = LOG + "[06:00] <wanda> \x02bold\x02 \x0304,01red\x03 nul\0 end\n"
    entries = _read(_log(tmp_path, log))
    assert _said(entries)[-1][1] == "bold red nul end"
    assert [check(entry, AdmissionLimits()) for entry in entries if isinstance(entry, Interaction)] == [None] * 5


def test_another_salt_gives_other_names_and_the_same_ids(tmp_path: Path) -> None:
    file = _log(tmp_path, LOG)
    one, other = (
        [entry for entry in _read(file, salt=salt) if isinstance(entry, Interaction)] for salt in ("one", "other")
    )
    assert {entry.owner for entry in one}.isdisjoint({entry.owner for entry in other})
    assert [entry.id for entry in one] == [entry.id for entry in other]
    assert len({entry.id for entry in one}) == len(one)


def test_lines_are_merged_up_to_the_gap_and_the_size_and_not_at_all_when_told_so(tmp_path: Path) -> None:
    log = "[01:00] <a1> one\n[01:02] <a1> two\n=== b2 [h]  has joined #x\n[01:04] <a1> three\n[01:07] <a1> four\n"
    file = _log(tmp_path, log)
    assert [text for _, text in _said(_read(file))] == ["one\ntwo\nthree", "four"]
    assert [text for _, text in _said(_read(file, merge_gap_s=60))] == ["one", "two", "three", "four"]
    assert [text for _, text in _said(_read(file, max_merged_bytes=8))] == ["one\ntwo", "three", "four"]
    flood = _log(tmp_path, "[01:00] <a1> one\n[01:00] <a1> two\n")
    assert [text for _, text in _said(_read(flood, merge_gap_s=0))] == ["one", "two"]


@pytest.mark.parametrize(
    ("clock", "minutes"),
    [
        (["23:58", "23:59", "00:01"], [0, 1, 3]),
        (["11:59", "00:00", "00:05"], [0, 1, 6]),
        (["12:59", "01:00"], [0, 1]),
        (["10:05", "10:04", "10:06"], [0, 0, 1]),
    ],
)
def test_time_goes_on_past_midnight_and_on_a_twelve_hour_clock(
    tmp_path: Path, clock: list[str], minutes: list[int]
) -> None:
    file = _log(tmp_path, "".join(f"[{time}] <a1> x\n" for time in clock))
    times = [entry.occurred_at_ms for entry in _read(file, merge_gap_s=0) if isinstance(entry, Interaction)]
    assert [(time - times[0]) // 60_000 for time in times] == minutes


def test_an_archive_a_folder_and_the_single_logs_give_the_same_in_order_of_time(tmp_path: Path) -> None:
    logs = {
        "2008-03-01.train-c.raw.txt": "[10:00] <c3> third day\n",
        DAY: LOG,
        "2007-02-01.train-c.raw.txt": "[10:00] <b2> second day\n",
        "2007-02-01.train-c.annotation.txt": "1 2 -\n",
        "2007-02-01.train-c.ascii.txt": "[10:00] <b2> second day\n",
    }
    archive = _archive(tmp_path / "irc.tar.gz", logs)
    folder = tmp_path / "irc" / "train"
    folder.mkdir(parents=True)
    files = [_log(folder, text, name) for name, text in logs.items()]
    packed, unpacked = _read(archive), _read(tmp_path / "irc")
    singly = [entry for file in sorted(files) if file.name.endswith(".raw.txt") for entry in _read(file)]
    assert packed == unpacked == singly
    times = [entry.occurred_at_ms for entry in packed if isinstance(entry, Interaction)]
    assert times == sorted(times)
    assert [text for _, text in _said(packed)][-2:] == ["second day", "third day"]


def test_a_cut_archive_gives_what_is_left_of_it_and_says_so(tmp_path: Path) -> None:
    noise = "".join(f"[10:00] <n{n}> {n * 7919 % 10_007}\n" for n in range(4000))
    archive = _archive(tmp_path / "irc.tar.gz", {DAY: LOG, "2007-02-01.x.raw.txt": noise})
    whole = _read(archive)
    archive.write_bytes(archive.read_bytes()[:-6000])
    cut = _read(archive)
    num_first = sum(1 for entry in _read(_log(tmp_path, LOG)))
    assert cut[:num_first] == whole[:num_first]
    assert cut[-1] == Skipped(SkipReason.MALFORMED, "irc.tar.gz")
    assert len(cut) < len(whole)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00rubbish and more rubbish", b"plain text" * 100])
def test_what_is_no_archive_is_skipped_whole(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "irc.tar.gz"
    file.write_bytes(data)
    assert _read(file) == [Skipped(SkipReason.MALFORMED, "irc.tar.gz")]


def test_an_archive_that_unpacks_to_more_than_allowed_is_not_unpacked_further(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "irc.tar.gz", {DAY: "x" * 5_000_000})
    assert _read(archive, max_archive_bytes=2_000_000)[-1] == Skipped(SkipReason.TOO_LARGE, "irc.tar.gz")


def test_a_log_without_a_day_or_too_large_or_of_another_suffix_is_refused(tmp_path: Path) -> None:
    assert _read(_log(tmp_path, LOG, "today.raw.txt")) == [Skipped(SkipReason.NO_DATE, "today.raw.txt")]
    assert _read(_log(tmp_path, LOG, "2007-13-41.raw.txt")) == [Skipped(SkipReason.NO_DATE, "2007-13-41.raw.txt")]
    assert _read(_log(tmp_path, LOG), max_log_bytes=50) == [Skipped(SkipReason.TOO_LARGE, DAY)]
    with pytest.raises(InvalidInput, match=r"\.raw\.txt"):
        _read(_log(tmp_path, LOG, "2007-01-19.tok.txt"))


def _leaks(log: str, said: list[str]) -> set[str]:
    """Returns the people who speak or join in a log and whose names stand as words in what was read from it."""
    people = set(re.findall(r"^\[\d\d:\d\d\] <([^>]+)>", log, re.MULTILINE))
    people |= set(re.findall(r"^=== (\S+) \[[^\]]*\]\s+has joined", log, re.MULTILINE))
    people = {name.casefold() for name in people if any(letter.isalnum() for letter in name)}
    text = re.sub(r"u_[0-9a-f]{12}", " ", "\n".join(said)).casefold()
    return {name for name in people if name in text and re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text)}


def test_the_search_for_leaks_finds_one() -> None:
    assert _leaks(LOG, ["ask WANDA, she knows"]) == {"wanda"}


def _read_archive_of_days(path: Path, max_days: int) -> tuple[dict[str, list[str]], Counter[str], Counter[SkipReason]]:
    """Returns what was said by day, how often each person spoke, and what was skipped, on the first days."""
    said: dict[str, list[str]] = {}
    people: Counter[str] = Counter()
    skipped: Counter[SkipReason] = Counter()
    ids: set[str] = set()
    for entry in open_source("irc", path, SourceOptions(salt="test", merge_gap_s=0)):
        if isinstance(entry, Skipped):
            skipped[entry.reason] += 1
            continue
        day = datetime.fromtimestamp(entry.occurred_at_ms / 1000, UTC).date().isoformat()
        if day not in said and len(said) == max_days:
            break
        said.setdefault(day, []).append(entry.messages[0].text)
        people[entry.owner.user] += 1
        ids.add(entry.id)
    assert len(ids) == people.total()
    return said, people, skipped


def _check_names(path: Path, said: dict[str, list[str]]) -> int:
    num_checked = 0
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            stream = archive.extractfile(member) if name.endswith(".raw.txt") and name[:10] in said else None
            if stream is not None:
                assert _leaks(stream.read().decode(), said[name[:10]]) == set(), name
                num_checked += 1
    return num_checked


@pytest.fixture
def ubuntu_archive(data_folder: Path) -> Path:
    return data_folder / "personalization" / "ubuntu-irc" / "ubuntu-irc.tar.gz"


@pytest.mark.data
def test_the_first_days_of_the_ubuntu_archive_hold_no_real_name(ubuntu_archive: Path) -> None:
    said, people, _ = _read_archive_of_days(ubuntu_archive, max_days=5)
    assert _check_names(ubuntu_archive, said) == 5
    assert len(people) > 300


@pytest.mark.data
@pytest.mark.slow
def test_the_whole_ubuntu_archive_gives_its_people_and_messages_and_none_of_their_names(ubuntu_archive: Path) -> None:
    said, people, skipped = _read_archive_of_days(ubuntu_archive, max_days=1000)
    assert len(people) > 12_500
    assert people.total() > 157_000
    assert sum(count >= 20 for count in people.values()) > 1_500
    assert skipped[SkipReason.SYSTEM_LINE] > 22_000
    assert skipped[SkipReason.MALFORMED] < 10
    assert _check_names(ubuntu_archive, said) == 122
