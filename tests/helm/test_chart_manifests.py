"""What the chart renders is what Kubernetes and KubeRay know, under both helms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from rendering import CHART, VALUE_SETS, VERSIONS, Manifest, all_pods, ci_values, of_kind, only, render, run_helm
from strict_schemas import CRDS, complaints, crd_folder, has_crds

KUBERNETES = ("1.29.0", "1.31.0", "1.34.0", "1.37.0")
needs_crds = pytest.mark.skipif(not has_crds(), reason=f"no CRDs of KubeRay in {crd_folder()} (set SILTSTONE_CRDS)")


def names(manifests: list[Manifest]) -> list[tuple[str, str]]:
    return sorted((manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests)


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_the_chart_passes_strict_lint(helm: str, value_set: str) -> None:
    done = run_helm(helm, "lint", "--strict", str(CHART), "-f", str(ci_values(value_set)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_both_helms_render_the_same(newest_helm: str, helm: str, value_set: str) -> None:
    def in_order(version: str) -> list[Manifest]:
        return sorted(render(version, value_set), key=lambda found: (found["kind"], found["metadata"]["name"]))

    assert in_order(helm) == in_order(newest_helm)


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_kubernetes_knows_every_field(newest_helm: str, value_set: str, kubernetes: str) -> None:
    manifests = render(newest_helm, value_set, None, "--kube-version", kubernetes)
    own = [manifest for manifest in manifests if not manifest["apiVersion"].startswith("ray.io/")]
    assert len(own) >= 8
    assert [line for manifest in own for line in complaints(manifest, kubernetes)] == []


@needs_crds
@pytest.mark.parametrize("value_set", ["cluster", "gpu"])
def test_kuberay_knows_every_field(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set, {"sleep": {"night": "first", "schedule": "30 2 * * *"}})
    rays = [manifest for manifest in manifests if manifest["apiVersion"] == "ray.io/v1"]
    assert {manifest["kind"] for manifest in rays} == {"RayCluster", "RayJob", "RayCronJob"}
    assert [line for manifest in rays for line in complaints(manifest, "1.34.0")] == []


def misspell_probe(manifests: list[Manifest]) -> Manifest:
    gateway = only(manifests, "Deployment")
    container = gateway["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    return gateway


def name_probe_port(manifests: list[Manifest]) -> Manifest:
    gateway = only(manifests, "Deployment")
    gateway["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["grpc"]["port"] = "grpc"
    return gateway


def take_removed_version(manifests: list[Manifest]) -> Manifest:
    budget = of_kind(manifests, "PodDisruptionBudget")[0]
    budget["apiVersion"] = "policy/v1beta1"
    return budget


def invent_kind(manifests: list[Manifest]) -> Manifest:
    return {**only(manifests, "ConfigMap"), "kind": "ConfigurationMap"}


@pytest.mark.parametrize("spoil", [misspell_probe, name_probe_port, take_removed_version, invent_kind])
def test_what_kubernetes_does_not_know_is_found(newest_helm: str, spoil: Callable[[list[Manifest]], Manifest]) -> None:
    assert complaints(spoil(render(newest_helm, "cluster")), "1.34.0")


def worker(manifest: Manifest) -> dict[str, Any]:
    spec = manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]
    found: dict[str, Any] = spec["workerGroupSpecs"][0]
    return found


def add_unknown_field(manifest: Manifest) -> None:
    worker(manifest)["replica"] = 3


def misspell_container_field(manifest: Manifest) -> None:
    container = worker(manifest)["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")


def drop_max_replicas(manifest: Manifest) -> None:
    del worker(manifest)["maxReplicas"]


def take_old_version(manifest: Manifest) -> None:
    manifest["apiVersion"] = "ray.io/v1alpha1"


@needs_crds
@pytest.mark.parametrize("kind", sorted(CRDS))
@pytest.mark.parametrize("spoil", [add_unknown_field, misspell_container_field, drop_max_replicas, take_old_version])
def test_what_kuberay_does_not_know_is_found(newest_helm: str, kind: str, spoil: Callable[[Manifest], None]) -> None:
    manifest = copy.deepcopy(only(render(newest_helm, "cluster"), kind))
    assert complaints(manifest, "1.34.0") == []
    spoil(manifest)
    assert complaints(manifest, "1.34.0")


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_no_two_objects_have_one_name_and_none_names_a_namespace(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set)
    assert len(set(names(manifests))) == len(manifests)
    assert not [manifest for manifest in manifests if "namespace" in manifest["metadata"]]


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_names_end_in_time_whatever_the_release_is_called(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set, {"fullnameOverride": "a" * 63, "sleep": {"night": "b" * 16}})
    for kind, name in names(manifests):
        # KubeRay writes head's and workers' words behind a cluster's name, a controller its own behind a Job's.
        limit = {"RayCluster": 41, "RayJob": 53, "RayCronJob": 41, "CronJob": 52}.get(kind, 63)
        assert len(name) <= limit, (kind, name)
    gateway = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert all(len(str(label)) <= 63 for label in gateway.values())


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_selectors_find_the_pods_they_mean(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set)
    labels = {name: pod["metadata"]["labels"] for name, pod in all_pods(manifests)}

    def found_by(selector: dict[str, str]) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    service = only(manifests, "Service")
    assert found_by(service["spec"]["selector"]) == {"Deployment/demo-siltstone"}
    assert only(manifests, "Deployment")["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for manifest in of_kind(manifests, kind):
            selector = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
            assert found_by(selector["matchLabels"]), manifest["metadata"]["name"]
    assert all(own["app.kubernetes.io/instance"] == "demo" for own in labels.values())


def test_a_changed_configuration_starts_the_pods_anew(newest_helm: str) -> None:
    def checksums(max_calls: int) -> dict[str, str]:
        manifests = render(newest_helm, "cluster", {"config": {"gateway": {"max_calls": max_calls}}})
        found = ((name, pod["metadata"].get("annotations", {})) for name, pod in all_pods(manifests))
        return {name: own["checksum/config"] for name, own in found if "checksum/config" in own}

    one, other = checksums(10), checksums(11)
    assert {"Deployment/demo-siltstone", "RayCluster/demo-siltstone-ray cpu"} <= set(one)
    assert all(one[name] != other[name] for name in one)
    assert checksums(10) == one


def test_both_helms_are_tested() -> None:
    assert [version.split(".")[0] for version in VERSIONS] == ["3", "4"]
