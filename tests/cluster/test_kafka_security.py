"""Who is let in to the journal's brokers: names and passwords (SASL), and encrypted connections (TLS).

The broker behind is Tansu, which asks nobody here: `kafka_door` asks in its place, and a proxy encrypts.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import servers
from certificates import Authority
from kafka_door import MECHANISMS, door_to
from proxy import proxy_to
from test_kafka_journal import HOME, config_of, eventually, said, within_a_minute

from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.errors import ConfigInvalid, Unavailable

NAME = "silt=stone,1"
"""With the two letters that SCRAM gives a meaning."""
PASSWORD, WRONG = "open-sesame, 7=7", "hush-and-wrong"
SASL = {"security": "SASL_PLAINTEXT", "username": NAME, "password_variable": "JOURNAL_PASSWORD"}


def patient(address, **changes):
    """For what works, or is told at once: on a busy machine a greeting takes its time. What must run out is brief."""
    return config_of(address, **({"append_timeout_s": 30.0, "answer_timeout_s": 30.0} | changes))


@contextmanager
def asked_at(folder, **kind):
    """A broker with a door before it: its clients are told of the door only. The address, and the door."""
    outside = servers.free_port()
    with (
        servers.tansu(folder / "tansu", outside) as server,
        door_to(server.port, {NAME: PASSWORD}, listen_at=outside, **kind) as door,
    ):
        yield f"127.0.0.1:{outside}", door


@contextmanager
def encrypted_at(folder, context, target=None):
    """A broker with a proxy before it that encrypts; `target` says what is between them."""
    outside = servers.free_port()
    with ExitStack() as stack:
        server = stack.enter_context(servers.tansu(folder / "tansu", outside))
        port = server.port if target is None else stack.enter_context(target(server.port)).port
        stack.enter_context(proxy_to(port, context, outside))
        yield f"127.0.0.1:{outside}"


@pytest.fixture
def right(monkeypatch):
    monkeypatch.setenv("JOURNAL_PASSWORD", PASSWORD)


def works(config, sealer):
    with KafkaJournal(config, sealer) as journal:
        journal.append([said("i1")])
        return [record.interaction_id for record in journal.read(HOME, 0, 10)] == ["i1"]


def words_of(error):
    """Everything that an error and what it came of say."""
    told = ""
    while error is not None:
        told, error = f"{told} {error!r} {error}", error.__cause__ or error.__context__
    return told


# A name and a password.


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_right_password_lets_write_and_read(tmp_path, sealer, right, mechanism):
    with asked_at(tmp_path) as (address, door):
        assert works(patient(address, mechanism=mechanism, **SASL), sealer)
        assert (door.num_refused, door.num_strangers) == (0, 0)
        assert door.num_let_in >= 3


def test_the_password_comes_from_a_file_too(tmp_path, sealer):
    (tmp_path / "password").write_text(PASSWORD + "\n")
    from_file = {**SASL, "password_file": str(tmp_path / "password"), "password_variable": ""}
    with asked_at(tmp_path) as (address, _):
        assert works(patient(address, **from_file), sealer)


@pytest.mark.usefixtures("leaky_client")
@pytest.mark.parametrize("name", [NAME, "somebody"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_or_name_is_told_as_such_after_one_try_and_never_shown(
    tmp_path, sealer, monkeypatch, caplog, mechanism, name
):
    monkeypatch.setenv("JOURNAL_PASSWORD", WRONG)
    caplog.set_level(logging.DEBUG)
    # As in every process of ours (services/logs.py): the library writes its options into its own log at this level.
    caplog.set_level(logging.ERROR, "kafka")
    with asked_at(tmp_path) as (address, door):
        config = patient(address, **{**SASL, "mechanism": mechanism, "username": name})
        with pytest.raises(ConfigInvalid, match="refuse our name or password") as caught:
            KafkaJournal(config, sealer)
        assert (door.num_let_in, door.num_refused) == (0, 1)
    assert caplog.text
    for told in (words_of(caught.value), caplog.text, repr(config)):
        assert WRONG not in told
        assert "hush" not in told


@pytest.mark.usefixtures("leaky_client")
def test_who_gives_no_name_where_one_is_asked_for_is_told_so(tmp_path, sealer):
    with asked_at(tmp_path) as (address, door):
        with pytest.raises(Unavailable, match="may want a name and a password"):
            KafkaJournal(config_of(address), sealer)
        assert door.num_strangers > 0


@pytest.mark.usefixtures("leaky_client")
def test_a_way_of_showing_a_password_that_the_brokers_do_not_know_is_told_as_such(tmp_path, sealer, right):
    refused = pytest.raises(ConfigInvalid, match="UnsupportedSaslMechanism")
    with asked_at(tmp_path, mechanisms=["PLAIN"]) as (address, _), refused:
        KafkaJournal(patient(address, **SASL), sealer)


@pytest.mark.usefixtures("leaky_client")
def test_a_false_broker_that_does_not_know_the_password_is_told_as_such(tmp_path, sealer, right):
    with asked_at(tmp_path, knows_passwords=False) as (address, door):
        with pytest.raises(ConfigInvalid, match="cannot show that they know it"):
            KafkaJournal(patient(address, **SASL), sealer)
        assert door.num_let_in == 1


def test_who_is_asked_again_while_connected_answers_again(tmp_path, sealer, right):
    """Brokers do so before a session of theirs ends (KIP-368)."""
    with ExitStack() as stack:
        address, door = stack.enter_context(asked_at(tmp_path, lifetime_ms=1_000))
        journal = stack.enter_context(KafkaJournal(patient(address, **SASL), sealer))
        journal.append([said("i0")])
        first, names = door.num_let_in, ["i0"]

        def append_until_asked_again():
            while door.num_let_in < first + 4:
                names.append(f"i{len(names)}")
                journal.append([said(names[-1])])
            return names

        within_a_minute(append_until_asked_again)
        assert (door.num_refused, door.num_strangers) == (0, 0)
        assert [record.interaction_id for record in journal.read(HOME, 0, len(names) + 1)] == names


@pytest.mark.usefixtures("leaky_client")
def test_a_password_that_is_changed_stops_who_has_the_old_one_until_it_is_mended(tmp_path, sealer, right):
    with asked_at(tmp_path) as (address, door), KafkaJournal(config_of(address, **SASL), sealer) as journal:
        journal.append([said("i0")])
        assert len(journal.read(HOME, 0, 10)) == 1
        door.passwords[NAME] = "another"
        door.cut()
        for _ in range(2):
            with pytest.raises((ConfigInvalid, Unavailable)):
                journal.append([said("i1")])
        with pytest.raises((ConfigInvalid, Unavailable)):
            journal.end_positions()
        assert door.num_refused > 0
        door.passwords[NAME] = PASSWORD
        (receipt,) = eventually(lambda: journal.append([said("i1")]))
        assert (receipt.position, receipt.duplicate) == (1, False)
        assert eventually(journal.end_positions)[HOME] == 2
        assert [record.position for record in eventually(lambda: journal.read(HOME, 0, 10))] == [0, 1]


@pytest.mark.usefixtures("leaky_client")
def test_a_broker_that_asks_by_itself_refuses_a_stranger_and_an_unknown_name(tmp_path, sealer, right):
    """Tansu in memory keeps no passwords, so it can let nobody in: what it refuses is a real broker's refusal."""
    with servers.tansu(tmp_path / "tansu", 0, "--authentication") as server:
        config = patient(f"127.0.0.1:{server.port}")
        with pytest.raises(Unavailable, match="may want a name and a password"):
            KafkaJournal(replace(config, answer_timeout_s=2.0), sealer)
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            with pytest.raises(ConfigInvalid, match="refuse our name or password"):
                KafkaJournal(replace(config, mechanism=mechanism, **SASL), sealer)


# An encrypted connection.


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.mark.usefixtures("leaky_client")
def test_an_encrypted_connection_is_made_and_an_unknown_authority_is_not_believed(tmp_path, sealer, authority):
    with encrypted_at(tmp_path, authority.server()) as address:
        config = patient(address, security="SSL", ca_file=str(authority.file))
        assert works(config, sealer)
        for other in ("", str(Authority(tmp_path, "other").file)):
            with pytest.raises(Unavailable, match="certificate verify failed"):
                KafkaJournal(replace(config, ca_file=other), sealer)


@pytest.mark.usefixtures("leaky_client")
def test_a_certificate_of_another_host_is_not_believed(tmp_path, sealer, authority):
    elsewhere = authority.server("kafka.example", "10.0.0.1")
    refused = pytest.raises(Unavailable, match=r"certificate verify failed.*mismatch")
    with encrypted_at(tmp_path, elsewhere) as address, refused:
        KafkaJournal(patient(address, security="SSL", ca_file=str(authority.file)), sealer)


@pytest.mark.usefixtures("leaky_client")
def test_who_encrypts_where_nobody_does_and_who_does_not_where_all_do_is_not_let_in(tmp_path, sealer, authority):
    with encrypted_at(tmp_path, authority.server()) as address, pytest.raises(Unavailable):
        KafkaJournal(config_of(address), sealer)
    with servers.tansu(tmp_path / "plain") as server:
        config = patient(f"127.0.0.1:{server.port}")
        assert works(config, sealer)
        with pytest.raises(Unavailable):
            KafkaJournal(replace(config, security="SSL", ca_file=str(authority.file), answer_timeout_s=2.0), sealer)


@pytest.mark.usefixtures("leaky_client")
def test_a_broker_that_asks_for_a_certificate_gets_ours_and_refuses_none_and_a_strangers(tmp_path, sealer, authority):
    ours = str(authority.sign("siltstone"))
    stranger = str(Authority(tmp_path, "stranger-authority").sign("stranger"))
    with encrypted_at(tmp_path, authority.server(asks=authority)) as address:
        config = patient(address, security="SSL", ca_file=str(authority.file), cert_file=ours, key_file=ours)
        assert works(config, sealer)
        for other in ("", stranger):
            with pytest.raises(Unavailable):
                KafkaJournal(replace(config, cert_file=other, key_file=other, answer_timeout_s=2.0), sealer)


@pytest.mark.usefixtures("leaky_client")
def test_a_certificate_and_a_password_together_are_asked_for_and_given(tmp_path, sealer, authority, monkeypatch):
    monkeypatch.setenv("JOURNAL_PASSWORD", PASSWORD)
    ours = str(authority.sign("siltstone"))
    files = {"ca_file": str(authority.file), "cert_file": ours, "key_file": ours}
    context = authority.server(asks=authority)
    with encrypted_at(tmp_path, context, lambda port: door_to(port, {NAME: PASSWORD})) as address:
        config = patient(address, **{**SASL, **files, "security": "SASL_SSL"})
        assert works(config, sealer)
        monkeypatch.setenv("JOURNAL_PASSWORD", WRONG)
        with pytest.raises(ConfigInvalid, match="refuse our name or password"):
            KafkaJournal(config, sealer)
