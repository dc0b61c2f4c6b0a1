"""The rendered night, by the real command line: what the cluster would start is understood, and begins."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pod_here import START, Machine
from rendering import Manifest, only, render

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.config.reading import read_config
from siltstone.sleep_values import NightStage
from siltstone_services.nights import Nights

BOTH = {"sleep": {"night": "first", "schedule": "30 2 * * *", "seed": 7, "workers": {"replicas": 3}}}
SECRETS = {"username": "night", "password": "a word"}
MISUSED, NOT_FOUND = 2, 4
RAY_KINDS = ("RayJob", "RayCronJob")


class Night:
    """A rendered night: its entrypoint, and the head of the cluster that runs it, on this machine."""

    def __init__(self, folder: Path, manifests: list[Manifest], kind: str) -> None:
        spec = only(manifests, kind)["spec"]
        job = spec["jobTemplate"] if kind == "RayCronJob" else spec
        self.words = shlex.split(job["entrypoint"])
        self._machine = Machine(folder, manifests, job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"])
        self._machine.write_config()
        self.home = self._machine.place("/var/lib/siltstone")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line as Ray's driver on the head would: its words, its environment, nothing of ours."""
        assert words[0] == "siltstone"
        command = [sys.executable, "-c", START, *map(self._machine.here, words[1:])]
        environment = self._machine.environment(SECRETS)
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.fixture(params=[(values, kind) for values in ("cluster", "gpu") for kind in RAY_KINDS], ids="-".join)
def rendered(request: pytest.FixtureRequest, newest_helm: str, tmp_path: Path) -> tuple[str, Night]:
    value_set, kind = request.param
    return value_set, Night(tmp_path, render(newest_helm, value_set, BOTH), kind)


def test_the_configuration_of_a_night_is_what_its_entrypoint_sets(rendered: tuple[str, Night]) -> None:
    value_set, night = rendered
    before, command = night.words[: night.words.index("sleep")], night.words[night.words.index("sleep") :]
    assert command == ["sleep", "run", "--seed", "7"]
    shown = night.run(*before, "config", "show")
    assert shown.returncode == 0, shown.stderr
    config: SiltstoneConfig = read_config(SiltstoneConfig, tomllib.loads(shown.stdout))
    train = config.sleep.train
    assert (train.trainer, train.ray_address, train.num_workers) == ("ray", "auto", 3)
    assert train.uses_gpu == (value_set == "gpu")
    # What is not set comes from the file, and the home from the environment.
    assert config.cluster.is_on
    assert config.kafka.brokers == "kafka-0.kafka:9092,kafka-1.kafka:9092" or value_set == "gpu"
    assert config.home_path == night.home


@pytest.mark.parametrize("value_set", ["cluster", "gpu"])
def test_a_rendered_night_begins_and_says_what_is_missing(newest_helm: str, tmp_path: Path, value_set: str) -> None:
    night = Night(tmp_path, render(newest_helm, value_set, BOTH), "RayJob")
    done = night.run(*night.words)
    # On this machine there is no core in its home: it has understood all it was told, and looks for that first.
    assert done.returncode == NOT_FOUND, done.stderr
    (told,) = Nights(night.home, SystemClock(), 1).list()
    assert (told.seed, told.stage) == (7, NightStage.FAILED)
    assert "core" in told.error


@pytest.mark.parametrize(
    ("word", "misspelt"), [("sleep.train.trainer=ray", "sleep.train.trainr=ray"), ("--seed", "--sed"), ("run", "rnu")]
)
def test_an_entrypoint_that_nobody_understands_is_seen(
    newest_helm: str, tmp_path: Path, word: str, misspelt: str
) -> None:
    night = Night(tmp_path, render(newest_helm, "cluster", BOTH), "RayJob")
    assert word in night.words
    done = night.run(*[misspelt if one == word else one for one in night.words])
    assert done.returncode == MISUSED, done.stderr
    assert not (night.home / "nights").exists()


@pytest.mark.parametrize("kind", ["Job", "CronJob"])
def test_the_night_of_one_pod_asks_the_server_that_the_chart_makes(newest_helm: str, tmp_path: Path, kind: str) -> None:
    manifests = render(newest_helm, "embedded", BOTH)
    spec: dict[str, Any] = only(manifests, kind)["spec"]
    if kind == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    service = only(manifests, "Service")
    assert words[-1] == f"--address={service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    # Nobody is there under that name: it has tried, and says so.
    home = tmp_path / "home"
    command = [sys.executable, "-c", START, *words[1:-1], "--address=127.0.0.1:1"]
    command[command.index("/tmp/home")] = str(home)
    environment = Machine(tmp_path, manifests).environment(SECRETS)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == MISUSED, done.stderr
    assert "127.0.0.1:1" in done.stderr
