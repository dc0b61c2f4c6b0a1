"""Secrets come from where the configuration says, and are never shown."""

from __future__ import annotations

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from siltstone.adapters.credentials import read_secret, tls_context
from siltstone.adapters.kafka_client import connection_of
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_server import RedisServer
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


def test_a_kafka_configuration_is_read_and_described_like_any_other():
    tree = {"brokers": "a:1, b:2", "security": "SASL_SSL", "username": "siltstone", "password_variable": "WORD"}
    config = read_config(KafkaConfig, tree)
    assert (config.has_tls, config.has_sasl, config.num_partitions) == (True, True, 256)
    assert set(describe_schema(KafkaConfig)["properties"]) >= {"brokers", "password_file", "accepts_plain"}
    for wrong in (
        {"password": "hush"},
        {"brokers": "host"},
        {"brokers": ""},
        {"num_partitions": 0},
        {"security": "TLS"},
        {"security": "SASL_SSL"},
        {"username": "siltstone"},
        {"min_insync_replicas": 4},
        {"key_file": "only"},
        {"id_window": -1},
    ):
        with pytest.raises(ConfigInvalid) as caught:
            read_config(KafkaConfig, wrong)
        assert "hush" not in str(caught.value)


def test_a_kafka_password_reaches_the_client_and_nothing_that_is_printed(tmp_path, monkeypatch):
    (tmp_path / "word").write_text("hush\n")
    monkeypatch.setenv("WORD", "hush")
    for source in ({"password_file": str(tmp_path / "word")}, {"password_variable": "WORD"}):
        config = KafkaConfig(security="SASL_SSL", mechanism="PLAIN", username="siltstone", **source)
        assert "hush" not in repr(config)
        options = connection_of(config)
        assert options["sasl_plain_password"] == "hush"
        assert (options["sasl_mechanism"], options["security_protocol"]) == ("PLAIN", "SASL_SSL")
    with pytest.raises(ConfigInvalid, match="neither"):
        connection_of(KafkaConfig(security="SASL_PLAINTEXT", username="siltstone"))
    assert "sasl_mechanism" not in connection_of(KafkaConfig())


@pytest.mark.parametrize("file", ["ca_file", "cert_file"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_that_holds_no_certificate_is_told_as_such_before_anybody_is_asked(tmp_path, file, content):
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    files = {file: str(path)} | ({"key_file": str(path)} if file == "cert_file" else {})
    with pytest.raises(ConfigInvalid, match=f"{file}.*expected"):
        connection_of(KafkaConfig(security="SSL", **files))
    with pytest.raises(ConfigInvalid, match=f"{file}.*expected"):
        RedisServer(RedisConfig("rediss://nowhere.invalid:1", **files))


def test_a_key_that_is_locked_is_refused_and_nobody_is_asked_for_its_word(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hush")
    )
    certificate = Authority(tmp_path).sign("client")
    (tmp_path / "locked.pem").write_bytes(locked)
    with pytest.raises(ConfigInvalid, match="key_file"):
        tls_context("kafka", "", str(certificate), str(tmp_path / "locked.pem"))
