"""What every pod of the chart is not allowed to do, whatever values say; each rule has a pod that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rendering import VALUE_SETS, Manifest, all_pods, containers, of_kind, only, render

Pod = dict[str, Any]


def offences(name: str, pod: Pod) -> Iterator[str]:
    """Yields what a pod is allowed that it should not be."""
    spec = pod["spec"]
    whole = spec.get("securityContext", {})
    if not (whole.get("runAsNonRoot") and whole.get("runAsUser", 0) > 10_000 and whole.get("runAsGroup", 0) > 10_000):
        yield f"{name}: may be root"
    if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{name}: no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{name}: a token of Kubernetes is mounted"
    if any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{name}: shares something with its machine"
    if any("hostPath" in volume for volume in spec.get("volumes", [])):
        yield f"{name}: mounts a folder of its machine"
    for container in containers(pod):
        yield from _container_offences(f"{name} {container['name']}", container)


def _container_offences(name: str, container: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield f"{name}: may gain rights"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: writes to its root"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name}: keeps capabilities"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
        yield f"{name}: no requests, or no limit of memory"
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        yield f"{name}: an image of any version"
    for variable in container.get("env", []):
        secret = any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "KEY"))
        if secret and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"{name}: {variable['name']} stands in the open"


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_no_pod_has_more_rights_than_it_needs(newest_helm: str, value_set: str) -> None:
    pods = all_pods(render(newest_helm, value_set, {"sleep": {"night": "first", "schedule": "30 2 * * *"}}))
    assert len(pods) >= 4
    assert [line for name, pod in pods for line in offences(name, pod)] == []


def spoiled(change: Callable[[Pod, dict[str, Any]], None]) -> Callable[[Pod], Pod]:
    def spoil(pod: Pod) -> Pod:
        other = copy.deepcopy(pod)
        change(other["spec"], other["spec"]["containers"][0])
        return other

    return spoil


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoiled(lambda spec, _: spec["securityContext"].update(runAsUser=0)), "may be root"),
        (spoiled(lambda spec, _: spec["securityContext"].pop("seccompProfile")), "no seccomp"),
        (spoiled(lambda spec, _: spec.pop("automountServiceAccountToken")), "a token of Kubernetes"),
        (spoiled(lambda spec, _: spec.update(hostNetwork=True)), "shares something"),
        (spoiled(lambda spec, _: spec["volumes"].append({"hostPath": {"path": "/"}})), "a folder of its machine"),
        (spoiled(lambda _, own: own.pop("securityContext")), "may gain rights"),
        (spoiled(lambda _, own: own["securityContext"].update(readOnlyRootFilesystem=False)), "writes to its root"),
        (spoiled(lambda _, own: own["securityContext"].pop("capabilities")), "keeps capabilities"),
        (spoiled(lambda _, own: own["resources"].pop("limits")), "no limit of memory"),
        (spoiled(lambda _, own: own.update(image="siltstone:latest")), "any version"),
        (spoiled(lambda _, own: own["env"].append({"name": "A_PASSWORD", "value": "x"})), "stands in the open"),
    ],
)
def test_a_pod_with_too_many_rights_is_found(newest_helm: str, spoil: Callable[[Pod], Pod], complaint: str) -> None:
    (_, pod), *_ = [pod for pod in all_pods(render(newest_helm, "cluster")) if pod[0].startswith("Deployment")]
    assert any(complaint in line for line in offences("it", spoil(pod)))


def ray_specs(manifests: list[Manifest]) -> list[dict[str, Any]]:
    specs = [manifest["spec"] for manifest in of_kind(manifests, "RayCluster")]
    specs += [manifest["spec"]["rayClusterSpec"] for manifest in of_kind(manifests, "RayJob")]
    return specs + [manifest["spec"]["jobTemplate"]["rayClusterSpec"] for manifest in of_kind(manifests, "RayCronJob")]


@pytest.mark.parametrize("value_set", ["cluster", "gpu"])
def test_ray_is_never_without_a_token(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set)
    specs = ray_specs(manifests)
    assert len(specs) == 2
    assert {spec["authOptions"]["mode"] for spec in specs} == {"token"}
    gateway = only(manifests, "Deployment")["spec"]["template"]
    secret = specs[0]["authOptions"].get("secretName", only(manifests, "RayCluster")["metadata"]["name"])
    for container in containers(gateway):
        if container["name"] == "core":
            continue
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        asked = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert asked == {"name": secret, "key": "auth_token"}


@pytest.mark.parametrize("value_set", ["cluster", "gpu"])
def test_every_pod_of_a_cluster_has_the_same_configuration_home_and_secrets(newest_helm: str, value_set: str) -> None:
    manifests = render(newest_helm, value_set)
    wanted = None
    for name, pod in all_pods(manifests):
        if name.endswith("submitter") or name.startswith("Pod/"):
            continue
        shared = sorted((m["name"], m["mountPath"]) for m in containers(pod)[-1]["volumeMounts"])
        wanted = wanted or shared
        assert shared == wanted, name


def test_a_group_with_gpus_runs_the_gpu_image_and_the_others_do_not(newest_helm: str) -> None:
    both = {"ray": {"workerGroups": {"cpu": {"enabled": True}}}}
    manifests = render(newest_helm, "gpu", both)
    for name, pod in all_pods(manifests):
        for container in pod["spec"]["containers"]:
            gpus = [container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")]
            has_gpu = name.endswith((" gpu", " trainers"))
            assert gpus == (["1", "1"] if has_gpu else [None, None]), name
            assert ("siltstone-gpu" in container["image"]) == has_gpu, name


def test_only_chosen_pods_reach_the_gateway_and_only_rays_own_reach_ray(newest_helm: str) -> None:
    policies = {policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: policy["spec"]
                for policy in of_kind(render(newest_helm, "cluster"), "NetworkPolicy")}  # fmt: skip
    assert set(policies) == {"gateway", "ray", "sleep"}
    for spec in policies.values():
        assert "Ingress" in spec["policyTypes"]
        # An entry without `from` would let everybody in.
        assert all(rule.get("from") for rule in spec["ingress"])
    to_gateway = policies["gateway"]["ingress"][0]
    assert to_gateway["ports"] == [{"port": 50550, "protocol": "TCP"}]
    assert {"podSelector": {"matchLabels": {"siltstone-client": "true"}}} in to_gateway["from"]
    peers = [peer for rule in policies["ray"]["ingress"] if "ports" not in rule for peer in rule["from"]]
    found = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in peers}
    assert found == {"gateway", "ray"}


def test_what_leaves_is_dns_the_release_and_the_ports_of_the_configured_servers(newest_helm: str) -> None:
    values = {"networkPolicy": {"egress": {"enabled": True, "extraPorts": [4317]}}}
    for policy in of_kind(render(newest_helm, "cluster", values), "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        dns, own, outside = policy["spec"]["egress"]
        assert {entry["port"] for entry in dns["ports"]} == {53}
        assert own["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "demo"
        assert {entry["port"] for entry in outside["ports"]} == {9092, 6380, 6381, 9000, 5000, 4317}


@pytest.mark.parametrize(
    ("objects", "ports"),
    [
        ({"url": "s3://memories", "endpoint": ""}, {443}),
        ({"url": "s3://memories", "endpoint": "http://objects"}, {80}),
        ({"url": "file:///var/lib/siltstone/objects", "endpoint": ""}, set()),
        ({"url": ""}, set()),
    ],
)
def test_an_object_store_is_reached_where_there_is_one_outside(
    newest_helm: str, objects: dict[str, str], ports: set[int]
) -> None:
    values = {"config": {"objects": objects}, "networkPolicy": {"egress": {"enabled": True}}}
    for policy in of_kind(render(newest_helm, "cluster", values), "NetworkPolicy"):
        outside = policy["spec"]["egress"][2]
        assert {entry["port"] for entry in outside["ports"]} == {9092, 6380, 6381, 5000} | ports


def test_the_gateway_is_asked_by_number_and_drains_before_it_is_killed(newest_helm: str) -> None:
    manifests = render(newest_helm, "cluster", {"config": {"gateway": {"port": 6000}}})
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    gateway = spec["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway[probe]["grpc"]["port"] == 6000
    assert only(manifests, "Service")["spec"]["ports"][0]["targetPort"] == 6000
    slept = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    assert slept + 10 + 20 < spec["terminationGracePeriodSeconds"]
