"""The chart rendered by real helm, as plain objects."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from fetch_helm import binary_path, tools

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "siltstone"
VERSIONS = [tool.version for tool in tools()]
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
POD_OWNERS = ("Deployment", "Job", "CronJob", "Pod", "RayCluster", "RayJob", "RayCronJob")

Manifest = dict[str, Any]


def helm_folder() -> Path:
    """Returns where the helm binaries are: $SILTSTONE_HELM, or where `make chart-tools` puts them."""
    return Path(os.environ.get("SILTSTONE_HELM", ROOT / ".venv" / "helm"))


def ci_values(value_set: str) -> Path:
    """Returns the file of one of the value sets that the chart ships for tests."""
    return CHART / "ci" / f"{value_set}-values.yaml"


def run_helm(version: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs helm, with nothing of this machine's settings."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home}
        command = [str(binary_path(helm_folder(), version)), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def try_render(
    version: str, value_set: str | None, values: Mapping[str, Any] | None = None, *words: str
) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` over a shipped value set, if any, and `values` over it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(dict(values or {}), file, ensure_ascii=False)
        file.flush()
        shipped = [] if value_set is None else ["-f", str(ci_values(value_set))]
        return run_helm(version, "template", "demo", str(CHART), *shipped, "-f", file.name, *words)


def render(version: str, value_set: str, values: Mapping[str, Any] | None = None, *words: str) -> list[Manifest]:
    """Returns the objects that helm renders."""
    done = try_render(version, value_set, values, *words)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.load_all(done.stdout, yaml.CSafeLoader) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Returns the objects of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """Returns the one object of a kind."""
    (found,) = of_kind(manifests, kind)
    return found


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every pod that an object makes, with a name: {metadata, spec}."""
    spec, name = manifest.get("spec", {}), f"{manifest['kind']}/{manifest['metadata']['name']}"
    match manifest["kind"]:
        case "Pod":
            yield name, manifest
        case "Deployment" | "Job":
            yield name, spec["template"]
        case "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]
        case "RayCluster":
            yield from _ray_pods(name, spec)
        case "RayJob" | "RayCronJob":
            job = spec["jobTemplate"] if manifest["kind"] == "RayCronJob" else spec
            if "submitterPodTemplate" in job:
                yield f"{name} submitter", job["submitterPodTemplate"]
            yield from _ray_pods(name, job["rayClusterSpec"])


def _ray_pods(name: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"{name} head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield f"{name} {group['groupName']}", group["template"]


def all_pods(manifests: list[Manifest]) -> list[tuple[str, dict[str, Any]]]:
    """Returns every pod of a release."""
    return [pod for manifest in manifests for pod in pod_templates(manifest)]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns all containers of a pod, those that come first included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
