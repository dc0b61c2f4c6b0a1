"""The one loader takes what it knows, and says where anything else stands."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from siltstone.config import GatewayConfig, SiltstoneConfig, config_schema, load_config
from siltstone.config.reading import read_config
from siltstone.config.schema import describe_schema
from siltstone.errors import ConfigInvalid


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Part:
    """A part with a required field."""

    name: str
    """What it is called."""
    weight: float = 1.0


@dataclass(frozen=True)
class Whole:
    """Every type a config may have."""

    parts: tuple[Part, ...] = (Part("first"),)
    pair: tuple[int, str] = (1, "one")
    mode: Literal["slow", "fast"] = "slow"
    """How."""
    colour: Colour = Colour.RED
    limit: int | None = None
    is_on: bool = False
    names: dict[str, int] = field(default_factory=dict)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_everything_has_its_default() -> None:
    assert load_config(environment={"SILTSTONE_HOME": "/nowhere"}) == SiltstoneConfig(home="/nowhere")


def test_the_file_goes_before_the_default_the_environment_before_the_file_and_the_override_before_all(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "my.toml", 'home = "/file"\n[gateway]\nport = 1\nmax_calls = 3\n')
    assert load_config(path, {}, {}).home == "/file"
    assert load_config(path, {}, {"SILTSTONE_HOME": "/environment"}).home == "/environment"
    config = load_config(path, {"home": "/override", "gateway.port": 2}, {"SILTSTONE_HOME": "/environment"})
    assert (config.home, config.gateway.port, config.gateway.max_calls) == ("/override", 2, 3)


def test_the_file_of_the_home_folder_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert load_config(overrides={"home": str(tmp_path)}, environment={}).core == "default"
    write(tmp_path / "siltstone.toml", 'core = "mine"\n')
    assert load_config(overrides={"home": str(tmp_path)}, environment={}).core == "mine"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hom = 1", r"my.toml: hom: unknown key \(did you mean home\?\); known are home, core, gateway"),
        ("[gateway]\nprot = 1", r"my.toml: gateway.prot: unknown key \(did you mean port\?\)"),
        ("gateway = 7", "gateway: expected a table, found '7'"),
        ("[gateway]\nport = 'x'", "gateway.port: expected a whole number, found 'x'"),
        ("[gateway]\nport = true", "gateway.port: expected a whole number, found 'True'"),
        ("[gateway]\nport = 70000", "gateway: port: expected 0 to 65535, found 70000"),
        ("[gateway]\nmax_call_s = nan", "gateway.max_call_s: expected a finite number"),
        ("[gateway]\nmax_call_s = 0", "gateway: max_call_s: expected more than 0"),
        ("[gateway]\nmax_call_s = -1.5", "gateway: max_call_s: expected more than 0"),
        ("[gateway]\nhost = ''", "gateway: host: expected an address"),
        ("[gateway]\nexport_chunk_bytes = 9000000", "gateway: export_chunk_bytes: expected less than"),
        ("[reservoir]\nmax_entries = 0", "reservoir: max_entries and"),
        ("home =", "my.toml: not TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_where_it_stands(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        load_config(write(tmp_path / "my.toml", text), {}, {})


def test_a_file_that_is_not_there_and_an_override_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        load_config(tmp_path / "none.toml", {}, {})
    with pytest.raises(ConfigInvalid, match="nothing: unknown key"):
        load_config(None, {"home": "/nowhere", "nothing": 1}, {})
    with pytest.raises(ConfigInvalid, match="core is a value, not a table"):
        load_config(None, {"home": "/nowhere", "core": "x", "core.name": 1}, {})


def test_every_type_a_config_may_have_is_read() -> None:
    tree = {
        "parts": [{"name": "a"}, {"name": "b", "weight": 2}],
        "pair": [3, "three"],
        "mode": "fast",
        "colour": "green",
        "limit": 5,
        "is_on": True,
        "names": {"x": 1},
    }
    whole = read_config(Whole, tree)
    assert whole == Whole((Part("a"), Part("b", 2.0)), (3, "three"), "fast", Colour.GREEN, 5, True, {"x": 1})
    assert isinstance(whole.parts[1].weight, float)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"parts": [{"name": "a"}, {}]}, r"parts\[1\]: missing: name"),
        ({"parts": [{"name": "a", "size": 1}]}, r"parts\[0\].size: unknown key"),
        ({"parts": "a"}, "parts: expected a list"),
        ({"pair": [1]}, "pair: expected 2 values"),
        ({"pair": ["one", 1]}, r"pair\[0\]: expected a whole number"),
        ({"mode": "medium"}, "mode: expected one of 'slow', 'fast'"),
        ({"colour": "blue"}, "colour: expected one of 'red', 'green'"),
        ({"limit": "many"}, "limit: expected a whole number"),
        ({"is_on": 1}, "is_on: expected true or false"),
        ({"names": {"x": "one"}}, "names.x: expected a whole number"),
    ],
)
def test_a_wrong_value_of_any_type_is_refused(tree: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        read_config(Whole, tree)


def test_the_schema_tells_types_defaults_and_the_sentence_under_each_field() -> None:
    schema = describe_schema(Whole)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["mode"] == {"enum": ["slow", "fast"], "description": "How.", "default": "slow"}
    assert schema["properties"]["limit"] == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    part = schema["properties"]["parts"]["items"]
    assert part["required"] == ["name"]
    assert part["properties"]["name"] == {"type": "string", "description": "What it is called."}
    assert schema["properties"]["parts"]["default"] == [{"name": "first", "weight": 1.0}]


def defaults_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The tree of defaults that a schema tells."""
    return {
        name: described["default"] if "default" in described else defaults_of(described)
        for name, described in schema["properties"].items()
    }


def describe_fields(schema: dict[str, Any], path: str = "") -> dict[str, str]:
    found = {}
    for name, described in schema["properties"].items():
        found[path + name] = described.get("description", "")
        if "properties" in described:
            found |= describe_fields(described, f"{path}{name}.")
    return found


def test_the_schema_of_everything_is_json_and_its_defaults_are_the_config() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert read_config(SiltstoneConfig, defaults_of(schema)) == SiltstoneConfig()


def test_every_field_that_can_be_set_has_a_sentence() -> None:
    assert [name for name, sentence in describe_fields(config_schema()).items() if not sentence] == []


def test_the_server_listens_on_this_machine_only_unless_told() -> None:
    assert GatewayConfig().host == "127.0.0.1"
    assert dataclasses.replace(GatewayConfig(), host="0.0.0.0").host == "0.0.0.0"


SEALED = {"cluster.is_on": True, "sealing.master_key_variable": "KEY"}


def test_a_cluster_is_off_unless_it_is_asked_for_and_needs_no_other_part_then() -> None:
    assert not load_config(environment={}, overrides={"kafka.num_partitions": 8}).cluster.is_on


def test_a_cluster_has_as_many_partitions_everywhere() -> None:
    with pytest.raises(ConfigInvalid, match=r"redis: num_partitions: expected 8, as kafka has, found 256"):
        load_config(environment={}, overrides={**SEALED, "kafka.num_partitions": 8})
    eight = {f"{part}.num_partitions": 8 for part in ("kafka", "redis", "key_store")}
    assert load_config(environment={}, overrides={**SEALED, **eight}).cluster.is_on


def test_a_cluster_without_a_master_key_is_refused_since_it_could_forget_nobody() -> None:
    with pytest.raises(ConfigInvalid, match="sealing: expected a master key"):
        load_config(environment={}, overrides={"cluster.is_on": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_shards", 0),
        ("cpus_per_shard", 0.0),
        ("gpus_per_shard", -1.0),
        ("stalled_after_s", 0.6),
        ("max_restarts", -2),
        ("ray_address", ""),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigInvalid, match=f"cluster: .*{name}"):
        load_config(environment={}, overrides={f"cluster.{name}": value})
