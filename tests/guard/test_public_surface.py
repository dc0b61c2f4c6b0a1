"""Commands, interface and configuration change only on purpose: `make surface` records them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import typer
from surface import RECORDED, describe, describe_command, describe_config

from siltstone.config import GatewayConfig


@pytest.fixture(scope="module")
def surface() -> dict[str, Any]:
    return json.loads(json.dumps(describe()))


@pytest.mark.parametrize("part", ["commands", "proto", "config"])
def test_the_surface_is_the_one_recorded(surface: dict[str, Any], part: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert surface[part] == recorded[part], "changed; `make surface` records it when this is on purpose"


def test_the_surface_names_what_people_use(surface: dict[str, Any]) -> None:
    assert {"siltstone up", "siltstone chat", "siltstone core add", "siltstone replay"} <= set(surface["commands"])
    assert "siltstone.proto.v1.MemoryService" in surface["proto"]
    assert "SiltstoneConfig.gateway.port" in surface["config"]


def test_a_changed_default_and_a_new_option_are_seen() -> None:
    changed = dataclasses.make_dataclass("GatewayConfig", [("port", int, 1)], bases=(GatewayConfig,), frozen=True)
    assert describe_config(changed, "")["port"] != describe_config(GatewayConfig, "")["port"]

    app = typer.Typer()

    @app.command()
    def command(old: int = 1, new: int = 2) -> None: ...

    assert "--new" in describe_command(typer.main.get_command(app), "app")["app"]
