"""Schemas that know every field: of Kubernetes for its own kinds, of KubeRay's CRDs for Ray's."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from rendering import ROOT, Manifest

CRDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}


def crd_folder() -> Path:
    """Returns where KubeRay's CRDs are: $SILTSTONE_CRDS, or beside the checkout."""
    return Path(os.environ.get("SILTSTONE_CRDS", ROOT.parent / "shared" / "crds"))


def has_crds() -> bool:
    """Says whether KubeRay's CRDs are there."""
    return all((crd_folder() / f"ray.io_{name}.yaml.gz").is_file() for name in CRDS.values())


def complaints(manifest: Manifest, kubernetes: str) -> list[str]:
    """Returns what is wrong with an object, for one version of Kubernetes. Nobody is silent about an unknown kind."""
    kind = manifest["kind"]
    if kind == "RayCronJob":
        return list(_cron_job_complaints(manifest, kubernetes))
    if kind in CRDS:
        return _ray_complaints(kind, manifest)
    try:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [f"{kind}: {error}"]
    return []


def _ray_complaints(kind: str, manifest: Manifest) -> list[str]:
    found = _validator(kind).iter_errors(manifest)
    return [f"{kind}: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def _cron_job_complaints(manifest: Manifest, kubernetes: str) -> Iterator[str]:
    """The CRD of the alpha RayCronJob is not at hand: its few fields are named here, and the rest is a RayJob's."""
    if manifest["apiVersion"] != "ray.io/v1":
        yield f"RayCronJob: apiVersion {manifest['apiVersion']}"
    if unknown := set(manifest["spec"]) - {"schedule", "jobTemplate", "suspend", "timeZone"}:
        yield f"RayCronJob: unknown {unknown}"
    if not isinstance(manifest["spec"].get("schedule"), str):
        yield "RayCronJob: no schedule"
    job = {**manifest, "kind": "RayJob", "spec": manifest["spec"]["jobTemplate"]}
    yield from complaints(job, kubernetes)


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    with gzip.open(crd_folder() / f"ray.io_{CRDS[kind]}.yaml.gz") as file:
        crd = yaml.load(file, yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    _close(schema)
    # What the API server checks before any CRD: the CRD itself only says that it is an object.
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    return jsonschema.Draft202012Validator(schema)


def _close(schema: Any) -> None:
    """Refuses fields that a CRD does not name: a server would drop them without a word."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
        return
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not is_open:
        schema["additionalProperties"] = False
    for part in schema.values():
        _close(part)
