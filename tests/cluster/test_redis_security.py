"""Who is let in to the store's server over an encrypted connection. Valkey speaks in the clear: a proxy encrypts."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from dataclasses import replace

import pytest
import redis
import servers
from certificates import Authority
from proxy import proxy_to
from test_redis_snapshots import OWNERS, QUICK, config_of, snapshot

from siltstone.adapters.master_key import open_master_key
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_key_vault import RedisKeyVault
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.errors import ConfigInvalid, KeyMissing, Unavailable
from siltstone.values import Commit


@pytest.fixture
def server(tmp_path):
    with servers.valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@contextmanager
def encrypted(server, authority, context=None, **changes):
    """The configuration of a store behind a proxy that encrypts."""
    with proxy_to(server.port, context or authority.server()) as outside:
        files = {"ca_file": str(authority.file)}
        yield RedisConfig(f"rediss://127.0.0.1:{outside.port}", **(QUICK | files | changes))


def works(config):
    with RedisSnapshotStore(config) as store:
        store.commit(Commit(store.acquire(0, "shard"), 0, 1, (snapshot(),)))
        return store.load(OWNERS[0]) == snapshot()


def test_an_encrypted_connection_is_made_and_an_unknown_authority_is_not_believed(server, authority, tmp_path):
    with encrypted(server, authority) as config:
        assert works(config)
        for other in ("", str(Authority(tmp_path, "other").file)):
            with pytest.raises(Unavailable, match="certificate verify failed"):
                RedisSnapshotStore(replace(config, ca_file=other))


def test_a_certificate_of_another_host_is_not_believed(server, authority):
    elsewhere = authority.server("valkey.example", "10.0.0.1")
    reason = r"certificate verify failed.*mismatch"
    with encrypted(server, authority, elsewhere) as config, pytest.raises(Unavailable, match=reason):
        RedisSnapshotStore(config)


def test_who_encrypts_where_nobody_does_and_who_does_not_where_all_do_is_not_let_in(server, authority):
    with encrypted(server, authority) as config, pytest.raises(Unavailable):
        RedisSnapshotStore(replace(config, address=config.address.replace("rediss", "redis"), ca_file=""))
    with pytest.raises(Unavailable):
        RedisSnapshotStore(replace(config, address=f"rediss://127.0.0.1:{server.port}"))


def test_a_server_that_asks_for_a_certificate_gets_ours_and_refuses_none_and_a_strangers(server, authority, tmp_path):
    ours = str(authority.sign("siltstone"))
    stranger = str(Authority(tmp_path, "stranger-authority").sign("stranger"))
    context = authority.server(asks=authority)
    with encrypted(server, authority, context, cert_file=ours, key_file=ours) as config:
        assert works(config)
        for other in ("", stranger):
            with pytest.raises(Unavailable):
                RedisSnapshotStore(replace(config, cert_file=other, key_file=other))


def test_a_user_with_a_password_over_an_encrypted_connection_has_store_and_keys(server, authority, master, monkeypatch):
    rights = ["+@read", "+@write", "+@scripting", "+@connection", "-@dangerous", "+info", "+waitaof"]
    with redis.Redis(port=server.port) as client:
        client.acl_setuser("store", enabled=True, passwords=["+open-sesame"], keys=["{siltstone:*", "siltstone:*"])
        client.execute_command("ACL", "SETUSER", "store", *rights)
        # Nobody else, as on a server that is shared: the default user is off.
        client.execute_command("ACL", "SETUSER", "default", "off")
    monkeypatch.setenv("STORE_PASSWORD", "open-sesame")
    with encrypted(server, authority, username="store", password_variable="STORE_PASSWORD") as config:
        assert works(config)
        with RedisKeyVault(config, master) as vault:
            assert len(vault.current([OWNERS[0]])) == 1
        monkeypatch.setenv("STORE_PASSWORD", "hush-and-wrong")
        with pytest.raises(ConfigInvalid, match="refuses the password of user store") as caught:
            RedisSnapshotStore(config)
        assert "hush" not in str(caught.value)
    with pytest.raises(ConfigInvalid, match=r"wants a password|refuses the password"):
        RedisSnapshotStore(config_of(server.port))


def test_a_wrong_master_key_is_told_at_the_start_and_makes_no_keys(server, master, monkeypatch):
    config = config_of(server.port)
    with RedisKeyVault(config, master) as vault:
        keys = vault.current([OWNERS[0]])
    monkeypatch.setenv("OTHER_KEY", base64.b64encode(bytes(32)).decode())
    other = open_master_key(SealingConfig(master_key_variable="OTHER_KEY"))
    with pytest.raises(ConfigInvalid, match="another master key"):
        RedisKeyVault(config, other)
    with RedisKeyVault(config, replace(other, previous=master)) as vault:
        assert vault.current([OWNERS[0]]) == keys
        assert [anew for _, anew in vault.rewrap()] == [1]
    with RedisKeyVault(config, other) as vault:
        assert vault.current([OWNERS[0]]) == keys
    with pytest.raises(ConfigInvalid, match="another master key"):
        RedisKeyVault(config, master)


def test_one_user_whose_key_another_master_key_has_wrapped_is_that_users_trouble_only(server, master, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", base64.b64encode(bytes(32)).decode())
    other = open_master_key(SealingConfig(master_key_variable="OTHER_KEY"))
    with RedisKeyVault(config_of(server.port), master) as vault:
        (foreign, own) = vault.current(OWNERS[:2])
        with redis.Redis(port=server.port) as client:
            client.hset(vault._key(OWNERS[0]), foreign.name, other.wrap_key(OWNERS[0], foreign))
        for ask in (lambda: vault.find(OWNERS[0], foreign.name), lambda: vault.current([OWNERS[0]])):
            # Damage, by which a partition stands still, and not a configuration that ends the shard.
            with pytest.raises(KeyMissing, match="another master key"):
                ask()
        assert vault.find(OWNERS[1], own.name) == own
        assert vault.current([OWNERS[1]]) == [own]
