"""A home whose configuration names a master key: the same service, and no word of anybody in the file."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from tiny_home import ADA, BEN, add_tiny_core, said, scores, teach, tiny_config, write_config
from typer.testing import CliRunner

from siltstone.errors import ConfigInvalid
from siltstone_services.cli import app
from siltstone_services.wiring import embedded_host

LINE = "My dog is called Ferro and he is nine years old."


async def test_a_sealed_home_learns_forgets_and_opens_with_its_key_only(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    key = tmp_path / "master.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    sealed = tiny_config(tmp_path, {"sealing.master_key_file": str(key)})
    async with embedded_host(sealed) as host:
        await teach(host, said(ADA, "a0", LINE), said(BEN, "b0", LINE))
        learned = await scores(host, ADA)
        assert any(user != core for user, core in learned)
    async with embedded_host(sealed) as host:
        assert await scores(host, ADA) == learned
        assert [record.interaction_id for record in (await host.export(ADA)).journal] == ["a0"]
        erasure = await host.forget(BEN)
        assert (erasure.had_memory, erasure.num_interactions) == (True, 1)
    for path in tmp_path.glob("siltstone.db*"):
        assert LINE.encode() not in path.read_bytes()
    with pytest.raises(ConfigInvalid, match="found a sealed one"):
        async with embedded_host(tiny_config(tmp_path)):
            pass
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    async with embedded_host(sealed) as host:
        with pytest.raises(ConfigInvalid, match="another master key"):
            await scores(host, ADA)


async def test_a_home_goes_on_under_a_new_master_key_and_without_the_old_one(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    old, new = (tmp_path / name for name in ("old.key", "new.key"))
    for key in (old, new):
        key.write_text(base64.b64encode(os.urandom(32)).decode())
    async with embedded_host(tiny_config(tmp_path, {"sealing.master_key_file": str(old)})) as host:
        await teach(host, said(ADA, "a0", LINE), said(BEN, "b0", LINE))
        learned = await scores(host, ADA)
    rotate = ["--home", str(tmp_path), "keys", "rotate"]
    assert CliRunner().invoke(app, rotate).exit_code == 2
    write_config(tmp_path, {"sealing.master_key_file": str(new)})
    refused = CliRunner().invoke(app, rotate)
    assert (refused.exit_code, "another master key" in refused.stderr) == (2, True)
    changing = {"sealing.master_key_file": str(new), "sealing.previous_key_file": str(old)}
    write_config(tmp_path, changing)
    async with embedded_host(tiny_config(tmp_path, changing)) as host:
        rotated = CliRunner().invoke(app, rotate)
        assert (rotated.exit_code, rotated.stdout[:31]) == (0, "2 looked at, 2 wrapped anew; th")
        assert await scores(host, ADA) == learned
    old.unlink()
    write_config(tmp_path, {"sealing.master_key_file": str(new)})
    async with embedded_host(tiny_config(tmp_path, {"sealing.master_key_file": str(new)})) as host:
        assert await scores(host, ADA) == learned
        assert [record.interaction_id for record in (await host.export(BEN)).journal] == ["b0"]
