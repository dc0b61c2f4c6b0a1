"""Values that cannot be are refused before anything reaches a cluster, and the rest becomes siltstone.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from rendering import CHART, only, render, run_helm, try_render

from siltstone.config import SiltstoneConfig
from siltstone.config.reading import read_config


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"gatewy": {}}, "gatewy"),
        ({"config": {"gateway": {"prot": 1}}}, "prot"),
        ({"config": {"gateway": {"port": "50550"}}}, "port"),
        ({"config": {"gateway": {"max_calls": 1.5}}}, "max_calls"),
        ({"config": {"nothing": {}}}, "nothing"),
        ({"config": {"home": "/elsewhere"}}, "home"),
        ({"config": {"gateway": {"host": "0.0.0.0"}}}, "host"),
        ({"config": {"cluster": {"is_on": False}}}, "is_on"),
        ({"config": {"kafka": {"password_file": "/somewhere"}}}, "password_file"),
        ({"config": {"objects": {"secret_key_file": "/somewhere"}}}, "secret_key_file"),
        ({"config": {"sleep": {"train": {"trainer": "magic"}}}}, "trainer"),
        ({"mode": "both"}, "mode"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"secrets": {"redis": {"password": "hunter2"}}}, "password"),
        ({"gateway": {"resources": {"requests": None}}}, "requests"),
        ({"ray": {"version": "2.51.0"}}, "version"),
        ({"ray": {"workerGroups": {"Cpu": {"enabled": True}}}}, "Cpu"),
        ({"ray": {"workerGroups": {"cpu": {"replicas": 0}}}}, "replicas"),
        ({"sleep": {"night": "First Night"}}, "night"),
        ({"sleep": {"submissionMode": "SidecarMode"}}, "submissionMode"),
        ({"networkPolicy": {"clients": [{}]}}, "clients"),
        ({"service": {"type": "ExternalName"}}, "type"),
    ],
)
def test_a_value_nobody_knows_or_of_a_wrong_type_is_refused(helm: str, values: dict[str, Any], complaint: str) -> None:
    refused = try_render(helm, "cluster", values)
    assert refused.returncode != 0
    assert "schema" in refused.stderr
    assert complaint in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"secrets": {"sealing": {"existingSecret": ""}}}, "a cluster needs a master key"),
        ({"config": {"kafka": {"brokers": ""}}}, "config.kafka.brokers: a cluster needs"),
        ({"config": {"redis": {"address": ""}}}, "config.redis.address: a cluster needs"),
        ({"config": {"key_store": {"address": ""}}}, "config.key_store.address: a cluster needs"),
        ({"ray": {"workerGroups": {"cpu": {"enabled": False}}}}, "no place for a shard"),
        ({"ray": {"gcsFaultTolerance": {"enabled": True}}}, "which Redis keeps"),
        ({"gateway": {"preStopSeconds": 30}}, "terminationGracePeriodSeconds: expected more"),
        ({"config": {"gateway": {"drain_budget_s": 60}}}, "terminationGracePeriodSeconds: expected more"),
    ],
)
def test_values_that_do_not_belong_together_are_refused(helm: str, values: dict[str, Any], complaint: str) -> None:
    refused = try_render(helm, "cluster", values)
    assert refused.returncode != 0
    assert complaint in refused.stderr


def test_without_values_it_says_what_a_cluster_needs(newest_helm: str) -> None:
    refused = try_render(newest_helm, None)
    assert refused.returncode != 0
    assert "a cluster needs" in refused.stderr
    assert try_render(newest_helm, None, {"mode": "embedded"}).returncode == 0


def configuration(helm: str, value_set: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    text = only(render(helm, value_set, values), "ConfigMap")["data"]["siltstone.toml"]
    return tomllib.loads(text)


AWKWARD: dict[str, Any] = {
    "gateway": {"port": 50551, "max_message_bytes": 67_108_864, "max_call_s": 1e-05, "drain_budget_s": 7},
    "core": 'a "quoted" \\ name <&> é\n𝄞',
    "sleep": {"train": {"bf16": True, "zero_stage": 2}},
    "gate": {"external_suites": ["xstest", "mine.jsonl"]},
    "sealing": {"master_command": ["wrap", "--key", "a b"]},
}


def test_the_configuration_is_what_values_say_number_for_number(helm: str) -> None:
    found = configuration(helm, "embedded", {"config": AWKWARD})
    found["gateway"].pop("host")
    found["gateway"].pop("max_calls")
    assert found.pop("memory") == {"num_layers": 6}
    assert found == AWKWARD
    assert type(found["gateway"]["max_message_bytes"]) is int


@pytest.mark.parametrize("value_set", ["cluster", "gpu", "embedded"])
def test_siltstone_takes_the_rendered_configuration(helm: str, value_set: str) -> None:
    config = read_config(SiltstoneConfig, configuration(helm, value_set))
    assert config.gateway.host == "0.0.0.0"
    assert config.cluster.is_on == (value_set != "embedded")


def test_a_cluster_finds_its_secrets_where_they_are_mounted(newest_helm: str) -> None:
    manifests = render(newest_helm, "cluster")
    config = read_config(SiltstoneConfig, tomllib.loads(only(manifests, "ConfigMap")["data"]["siltstone.toml"]))
    named = [config.sealing.master_key_file, config.objects.secret_key_file, config.objects.ca_file]
    for part in (config.kafka, config.redis, config.key_store):
        named += [part.password_file, part.ca_file]
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    gateway = spec["containers"][0]
    there = {
        f"{mount['mountPath']}/{item['path']}"
        for mount in gateway["volumeMounts"]
        if mount["name"] in secrets
        for item in secrets[mount["name"]]["items"]
    }
    assert set(named) == there
    assert config.cluster.ray_address == "auto"


def test_a_home_that_is_given_is_used_and_none_is_made(newest_helm: str) -> None:
    manifests = render(newest_helm, "gpu")
    assert not [manifest for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"]
    assert only(render(newest_helm, "cluster"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert only(render(newest_helm, "embedded"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_chart_can_be_packaged_and_says_what_it_wants(newest_helm: str, tmp_path: Path) -> None:
    done = run_helm(newest_helm, "package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["siltstone-0.1.0.tgz"]
    refused = try_render(newest_helm, "embedded", None, "--kube-version", "1.28.0")
    assert "incompatible with Kubernetes" in refused.stderr
