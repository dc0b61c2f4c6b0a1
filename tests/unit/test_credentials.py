"""Secrets come from where the configuration says, and are never shown."""

from __future__ import annotations

import pytest

from siltstone.adapters.credentials import read_secret
from siltstone.adapters.redis_config import RedisConfig
from siltstone.config.reading import read_config
from siltstone.config.schema import describe_schema
from siltstone.errors import ConfigInvalid


def test_a_secret_is_read_without_the_end_of_its_line(tmp_path):
    (tmp_path / "secret").write_text(" pass word \n")
    assert read_secret("redis", str(tmp_path / "secret"), "") == " pass word "
    assert read_secret("redis", "", "WORD", {"WORD": "from there"}) == "from there"
    assert read_secret("redis", "", "") is None


def test_a_secret_that_is_not_there_is_told_by_its_place(tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for file, variable in [("/no/such/file", ""), ("", "NONE"), (str(tmp_path / "empty"), ""), ("a", "b")]:
        with pytest.raises(ConfigInvalid):
            read_secret("redis", file, variable, {})
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        read_secret("redis", str(tmp_path / "binary"), "")


@pytest.mark.parametrize(
    "address",
    ["redis://:hush@host:1", "redis://user:hush@host", "hush://host", "redis://", "redis://host/0?password=hush", ""],
)
def test_an_address_that_cannot_be_or_holds_a_secret_is_refused_and_not_shown(address):
    with pytest.raises(ConfigInvalid) as caught:
        RedisConfig(address)
    assert "hush" not in str(caught.value)


def test_a_redis_configuration_is_read_and_described_like_any_other():
    tree = {"address": "rediss://store:6380", "is_cluster": True, "password_variable": "STORE_PASSWORD"}
    config = read_config(RedisConfig, tree)
    assert (config.has_tls, config.is_cluster, config.id_window) == (True, True, 4_096)
    assert set(describe_schema(RedisConfig)["properties"]) >= {"address", "password_file", "num_partitions"}
    for wrong in ({"password": "hush"}, {"namespace": "{a}"}, {"num_partitions": 0}, {"cert_file": "only"}):
        with pytest.raises(ConfigInvalid) as caught:
            read_config(RedisConfig, wrong)
        assert "hush" not in str(caught.value)
