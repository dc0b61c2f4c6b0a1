"""The chart takes what the configuration takes: its schema is generated, and fresh."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import yaml
from repository import ROOT
from values_schema import SET_BY_CHART, WRITTEN, values_schema, written

from siltstone.config import config_schema

CHART = ROOT / "helm" / "siltstone"


def test_the_schema_of_the_values_is_the_one_generated() -> None:
    text = WRITTEN.read_text(encoding="utf-8")
    assert text == written(values_schema()), "changed; `make chart-schema` writes it anew"


def test_it_takes_the_values_that_the_chart_ships_and_nothing_else() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(WRITTEN.read_text(encoding="utf-8")))
    validator.check_schema(validator.schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert list(validator.iter_errors(values)) == []
    assert list(validator.iter_errors({**values, "unknown": 1}))
    assert list(validator.iter_errors({**values, "config": {"gateway": {"prot": 1}}}))


def field_names(schema: dict[str, Any], path: str = "") -> set[str]:
    found: set[str] = set()
    for name, described in schema.get("properties", {}).items():
        inner = field_names(described, f"{path}{name}.")
        found |= inner or {path + name}
    return found


def test_every_field_of_the_configuration_can_be_set_but_those_the_chart_sets() -> None:
    there = field_names(json.loads(WRITTEN.read_text(encoding="utf-8"))["properties"]["config"])
    assert field_names(config_schema()) - there == set(SET_BY_CHART)


def test_every_value_of_the_chart_has_a_place_in_values_yaml() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((ROOT / "helm" / "chart-values.schema.yaml").read_text(encoding="utf-8"))
    assert set(own["properties"]) - {"global"} == set(values)
