"""The schema of the chart's values: the chart's own, with the configuration's in it. `make chart-schema` writes it."""

from __future__ import annotations

import json
from typing import Any

import yaml
from repository import ROOT

from siltstone.config import config_schema

OWN = ROOT / "helm" / "chart-values.schema.yaml"
WRITTEN = ROOT / "helm" / "siltstone" / "values.schema.json"
SET_BY_CHART = (
    "home",
    "gateway.host",
    "cluster.is_on",
    "cluster.ray_address",
    "sealing.master_key_file",
    "sealing.master_key_variable",
    "objects.secret_key_file",
    "objects.secret_key_variable",
    "objects.ca_file",
    *(
        f"{part}.{field}"
        for part in ("kafka", "redis", "key_store")
        for field in ("password_file", "password_variable", "ca_file", "cert_file", "key_file")
    ),
)
"""What is the chart's to say: where its pods listen, where it mounts its volumes and Secrets, how its pods find Ray."""


def values_schema() -> dict[str, Any]:
    """Returns the schema of the values: what the configuration takes, without what the chart sets itself."""
    schema = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    config = config_schema()
    del config["$schema"]
    for name in SET_BY_CHART:
        *parts, last = name.split(".")
        table = config
        for part in parts:
            table = table["properties"][part]
        del table["properties"][last]
    _drop_defaults(config)
    # A file may leave anything out, and so may values.
    schema["properties"]["config"] = {
        **config,
        "description": "siltstone.toml; `siltstone config show` prints the defaults.",
    }
    return schema


def _drop_defaults(schema: dict[str, Any]) -> None:
    """Takes the defaults of tables out: those of their fields say the same."""
    for described in schema.get("properties", {}).values():
        if described.get("type") == "object":
            described.pop("default", None)
            _drop_defaults(described)


def written(schema: dict[str, Any]) -> str:
    """Returns the text of the file."""
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(written(values_schema()), encoding="utf-8")
