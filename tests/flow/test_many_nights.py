"""Night after night in one home and one process: what is kept has a bound, and so has the process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_home import tiny_config
from tiny_night import make_home, sizes, sleep

from siltstone.adapters.core_store import CoreStore
from siltstone.sleep_values import VersionState
from siltstone_services.night import open_registry

_RECORDS = ("registry.db", "mlflow.db")


@dataclass(frozen=True)
class Sample:
    """What a home and this process hold after so many nights."""

    num_nights: int
    num_cores: int
    num_folders: int
    num_copies: int
    kept_bytes: int
    record_bytes: int
    resident_bytes: int


def look(home: Path, num_nights: int) -> Sample:
    records = sum(path.stat().st_size for name in _RECORDS for path in home.rglob(f"{name}*"))
    return Sample(
        num_nights,
        len(CoreStore(home).list()),
        len([path for path in (home / "versions").iterdir() if path.is_dir()]),
        len([*(home / "mlflow").rglob("core.safetensors")]),
        sum(sizes(home).values()) - records,
        records,
        int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    )


def live(home: Path, num_nights: int, num_kept: int) -> list[Sample]:
    """Runs nights: two of three refused; of those accepted each third serves until the first core does again."""
    samples = []
    for number in range(1, num_nights + 1):
        accepts = number % 3 == 0
        done = sleep(home, number, accepts, {"sleep.keep_versions": num_kept})
        if accepts and number % 9 == 0:
            with open_registry(tiny_config(home)) as registry:
                champion = registry.champion()
                assert champion is not None
                served = registry.promote(done.version.number, champion.epoch)
                registry.promote(champion.number, served.epoch)
        if number % max(1, num_nights // 50) == 0:
            samples.append(look(home, number))
    return samples


def check(home: Path, samples: list[Sample], num_kept: int) -> None:
    # The newest refused and retired ones, as many that wait, the champion, the one to roll back to, the first core.
    bound = 2 * num_kept + 3
    assert max(one.num_cores for one in samples) <= bound
    assert max(one.num_folders for one in samples) <= bound
    assert max(one.num_copies for one in samples) <= bound
    assert len({core.num_parameters for core in CoreStore(home).list()}) == 1
    with open_registry(tiny_config(home)) as registry:
        versions, champion = registry.list(), registry.champion()
        assert champion is not None
        registry.artefact(champion.number)
    # The first core, and one a night.
    assert [version.number for version in versions] == list(range(1, samples[-1].num_nights + 2))
    assert not [version for version in versions if version.state is VersionState.CANDIDATE]


def test_ten_nights_keep_no_more_than_the_newest(tmp_path: Path) -> None:
    home = make_home(tmp_path)

    samples = live(home, 10, num_kept=1)

    check(home, samples, num_kept=1)
    # The last nights have added nothing but records.
    assert samples[-1].kept_bytes <= 1.05 * max(one.kept_bytes for one in samples[:-3])


def test_without_a_bound_every_night_stays(tmp_path: Path) -> None:
    """The control: what the tests look at grows when nothing is cleared up."""
    samples = live(make_home(tmp_path), 5, num_kept=1000)

    assert [one.num_cores for one in samples] == [2, 3, 4, 5, 6]
    assert [one.num_copies for one in samples] == [2, 3, 4, 5, 6]
    sizes_in_order = [one.kept_bytes for one in samples]
    assert sizes_in_order == sorted(sizes_in_order)
    assert sizes_in_order[-1] > 1.5 * sizes_in_order[0]


@pytest.mark.slow
def test_a_thousand_nights_are_bounded_in_cores_memory_and_disk(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    num_nights = int(os.environ.get("SILTSTONE_NIGHTS", "1000"))

    samples = live(home, num_nights, num_kept=3)

    for one in samples:
        print(one)
    check(home, samples, num_kept=3)
    settled = [one for one in samples if one.num_nights >= num_nights // 5]
    assert settled[-1].kept_bytes <= 1.1 * settled[0].kept_bytes
    # What is told of each version stays, as it must: some kilobytes a night.
    grown = (settled[-1].record_bytes - settled[0].record_bytes) / (settled[-1].num_nights - settled[0].num_nights)
    assert grown <= 32_768
    assert settled[-1].resident_bytes <= settled[0].resident_bytes + 64 * 1024 * 1024
