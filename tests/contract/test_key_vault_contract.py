"""What `ports.KeyVault` promises, for every backend, and what the sealer makes of it."""

from __future__ import annotations

import base64
import threading
from dataclasses import replace

import pytest

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.master_key import open_master_key
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.errors import ConfigInvalid, Corrupt
from siltstone.values import UserKey

ADA, BOB = UserKey("office", "ada"), UserKey("office", "bob")


def test_every_owner_gets_one_key_also_after_a_restart(vault_backend, master):
    with vault_backend.open(master) as vault:
        first = vault.current([ADA, BOB, ADA])
        assert vault.current([]) == []
    assert first[0] == first[2]
    assert len({key.secret for key in first}) == len({key.name for key in first}) == 2
    with vault_backend.open(master) as vault:
        assert vault.current([ADA, BOB, ADA]) == first
        assert vault.find(BOB, first[1].name) == first[1]


def test_a_destroyed_key_is_told_from_one_that_never_was(vault_backend, master):
    with vault_backend.open(master) as vault:
        (old,) = vault.current([ADA])
        assert vault.destroy(ADA) == old.name
        assert vault.destroy(ADA) == ""
        assert vault.destroy(BOB) == ""
        (new,) = vault.current([ADA])
        assert (new.name, new.secret) != (old.name, old.secret)
    with vault_backend.open(master) as vault:
        assert vault.find(ADA, old.name) is None
        assert vault.find(ADA, new.name) == new
        for owner, name in [(ADA, "00" * 8), (BOB, old.name)]:
            with pytest.raises(Corrupt):
                vault.find(owner, name)


def test_of_many_who_make_a_key_at_once_all_get_the_same(vault_backend, master):
    keys, errors = [], []
    owners = [UserKey("office", f"user{number}") for number in range(10)]

    def client():
        try:
            with vault_backend.open(master) as vault:
                keys.append(tuple(vault.current(owners)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(keys)) == 1


def test_another_master_key_opens_nothing_and_is_told_as_such(vault_backend, master, monkeypatch):
    with vault_backend.open(master) as vault:
        vault.current([ADA])
    monkeypatch.setenv("OTHER_KEY", base64.b64encode(bytes(32)).decode())
    other = open_master_key(SealingConfig(master_key_variable="OTHER_KEY"))
    with pytest.raises(ConfigInvalid, match="another master key"), vault_backend.open(other) as vault:
        vault.current([ADA])


NEW_KEY = base64.b64encode(bytes(range(32, 64))).decode()


@pytest.fixture
def both(monkeypatch, master):
    """The new master key with the old one as the previous one, and the new one alone."""
    monkeypatch.setenv("NEW_KEY", NEW_KEY)
    new = open_master_key(SealingConfig(master_key_variable="NEW_KEY"))
    return replace(new, previous=master), new


def test_after_a_rotation_every_key_is_the_same_and_the_old_master_key_opens_none(vault_backend, master, both):
    owners = [UserKey("office", f"user:{number}") for number in range(600)]
    changing, new = both
    with vault_backend.open(master) as vault:
        keys = vault.current(owners)
        (gone,) = vault.current([ADA])
        vault.destroy(ADA)
    with vault_backend.open(changing) as vault:
        assert vault.current(owners) == keys
        (late,) = vault.current([BOB])
        assert sum(anew for _, anew in vault.rewrap()) == 600
        assert sum(anew for _, anew in vault.rewrap()) == 0
    with vault_backend.open(new) as vault:
        assert vault.current([*owners, BOB]) == [*keys, late]
        assert vault.find(ADA, gone.name) is None
    with pytest.raises(ConfigInvalid, match="another master key"), vault_backend.open(master) as vault:
        vault.current(owners[:1])


def test_a_rotation_that_is_killed_half_way_goes_on_where_it_was(vault_backend, master, both):
    owners = [UserKey("office", f"user{number}") for number in range(600)]
    changing, new = both
    with vault_backend.open(master) as vault:
        keys = vault.current(owners)
    with vault_backend.open(changing) as vault:
        _, first = next(vault.rewrap())
    assert 0 < first < 600
    with vault_backend.open(changing) as vault:
        assert vault.current(owners) == keys
        assert first + sum(anew for _, anew in vault.rewrap()) == 600
    with vault_backend.open(new) as vault:
        assert vault.current(owners) == keys


def test_a_key_destroyed_while_it_is_wrapped_anew_stays_destroyed(vault_backend, master, both):
    changing, new = both
    with vault_backend.open(master) as vault:
        (key,) = vault.current([ADA])
        wrap = changing.wrap

        def wrap_late(plain):
            vault.destroy(ADA)
            return wrap(plain)

        with vault_backend.open(replace(changing, wrap=wrap_late)) as other:
            list(other.rewrap())
    with vault_backend.open(new) as vault:
        assert vault.find(ADA, key.name) is None


def test_a_key_that_neither_master_key_has_wrapped_ends_a_rotation(vault_backend, master, both, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", base64.b64encode(bytes(32)).decode())
    other = open_master_key(SealingConfig(master_key_variable="OTHER_KEY"))
    changing, new = both
    with vault_backend.open(other) as vault:
        vault.current([ADA])
    with pytest.raises(ConfigInvalid, match="neither"), vault_backend.open(changing) as vault:
        list(vault.rewrap())
    with pytest.raises(ConfigInvalid, match="another master key"), vault_backend.open(new) as vault:
        list(vault.rewrap())


def test_what_was_sealed_is_opened_by_its_owner_in_its_context_only(vault):
    sealer = AesGcmSealer(vault)
    sealer.prepare([ADA, BOB])
    sealed = sealer.seal(ADA, "journal i1", b"My dog is called Pickle.")
    assert b"Pickle" not in sealed
    assert sealed != sealer.seal(ADA, "journal i1", b"My dog is called Pickle.")
    assert sealer.open("it", ADA, "journal i1", sealed) == b"My dog is called Pickle."
    assert AesGcmSealer(vault).open("it", ADA, "journal i1", sealed) == b"My dog is called Pickle."
    for owner, context in [(BOB, "journal i1"), (ADA, "journal i2")]:
        with pytest.raises(Corrupt):
            sealer.open("it", owner, context, sealed)
    assert sealer.open("it", ADA, "", sealer.seal(ADA, "", b"")) == b""


def test_what_a_forgotten_user_had_sealed_is_gone_and_a_new_start_is_not(vault):
    sealer = AesGcmSealer(vault)
    sealed, others = sealer.seal(ADA, "a", b"words"), sealer.seal(BOB, "a", b"words")
    assert sealer.forget(ADA) == sealer.name_of_key(sealed)
    assert sealer.forget(ADA) == ""
    again = sealer.seal(ADA, "a", b"new words")
    for one in (sealer, AesGcmSealer(vault)):
        assert one.open("it", ADA, "a", sealed) is None
        assert one.open("it", BOB, "a", others) == b"words"
        assert one.open("it", ADA, "a", again) == b"new words"


def test_a_key_destroyed_elsewhere_is_used_no_longer_than_it_is_kept(vault):
    now = [0.0]
    sealer, other = AesGcmSealer(vault, SealingConfig(cached_for_s=5.0), lambda: now[0]), AesGcmSealer(vault)
    sealed = sealer.seal(ADA, "a", b"words")
    other.forget(ADA)
    now[0] = 4.9
    late = sealer.seal(ADA, "a", b"late words")
    assert sealer.name_of_key(late) == sealer.name_of_key(sealed)
    now[0] = 5.1
    assert sealer.open("it", ADA, "a", sealed) is None
    assert sealer.open("it", ADA, "a", late) is None
    assert sealer.name_of_key(sealer.seal(ADA, "a", b"words")) != sealer.name_of_key(sealed)


def test_every_flipped_bit_of_sealed_bytes_is_found(vault):
    sealer = AesGcmSealer(vault)
    sealed = sealer.seal(ADA, "a", b"words")
    for index in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[index // 8] ^= 1 << index % 8
        with pytest.raises(Exception, match=r"damaged|newer code"):
            sealer.open("it", ADA, "a", bytes(damaged))
    for end in (0, 10, len(sealed) - 1):
        with pytest.raises(Corrupt):
            sealer.open("it", ADA, "a", sealed[:end])


def test_no_more_keys_are_kept_than_are_allowed(vault):
    sealer = AesGcmSealer(vault, SealingConfig(max_cached_keys=2))
    owners = [UserKey("office", f"user{number}") for number in range(5)]
    sealed = [sealer.seal(owner, "a", str(owner).encode()) for owner in owners]
    assert [sealer.open("it", *pair) for pair in zip(owners, ["a"] * 5, sealed, strict=True)] == [
        str(owner).encode() for owner in owners
    ]
    assert len(sealer._current) == len(sealer._found) == 2
