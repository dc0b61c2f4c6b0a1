"""What `ports.Journal` promises, for every backend."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.journal.admit import decode
from siltstone.values import UserKey


def everything(journal):
    return {p: journal.read(p, 0, 1_000_000) for p in journal.end_positions()}


def test_what_is_appended_is_read_in_order_with_its_receipt(journal, document, partition):
    interactions = [document(f"i{n}", text=f"Line {n}.") for n in range(7)]
    receipts = journal.append(interactions)
    home = partition(interactions[0].owner)
    assert [(r.partition, r.position, r.duplicate) for r in receipts] == [(home, n, False) for n in range(7)]
    records = journal.read(home, 0, 100)
    assert [decode(record.payload) for record in records] == interactions
    assert [record.position for record in records] == list(range(7))
    assert {record.owner for record in records} == {interactions[0].owner}


def test_positions_of_each_partition_start_at_zero_and_rise_by_one(journal, document, partition):
    for number in range(5):
        journal.append([document(f"i{number}-{user}", user=f"user{user}") for user in range(12)])
    ends = journal.end_positions()
    assert sum(ends.values()) == 60
    for home, records in everything(journal).items():
        assert [record.position for record in records] == list(range(ends[home]))
        assert all(partition(record.owner) == home for record in records)


def test_an_empty_append_writes_nothing(journal):
    assert journal.append([]) == []
    assert set(journal.end_positions().values()) == {0}


def test_a_read_starts_and_ends_where_it_is_told(journal, document, partition):
    journal.append([document(f"i{n}") for n in range(10)])
    home = partition(document("x").owner)
    assert [r.position for r in journal.read(home, 4, 3)] == [4, 5, 6]
    assert [r.position for r in journal.read(home, 8, 30)] == [8, 9]
    assert journal.read(home, 10, 5) == []
    assert journal.read(home, 0, 0) == []


def test_a_repeated_id_gets_the_first_position_and_writes_nothing(journal, document):
    (first,) = journal.append([document("same", text="first")])
    (again,) = journal.append([document("same", text="second")])
    assert again == replace(first, duplicate=True)
    assert [decode(r.payload).messages[0].text for r in journal.read(first.partition, 0, 10)] == ["first"]


def test_a_repeat_within_one_call_gets_the_first_position(journal, document):
    first, other, again = journal.append([document("same"), document("other"), document("same")])
    assert (first.duplicate, other.duplicate, again.duplicate) == (False, False, True)
    assert again.position == first.position
    assert journal.end_positions()[first.partition] == 2


def test_the_same_id_of_another_user_or_tenant_is_not_a_repeat(journal, document):
    elsewhere = replace(document("same"), owner=UserKey("factory", "ada"))
    receipts = journal.append([document("same", user="ada"), document("same", user="bob"), elsewhere])
    assert not any(receipt.duplicate for receipt in receipts)


def test_a_repeat_after_a_restart_is_still_a_repeat(journal_backend, document):
    with journal_backend.open() as journal:
        (first,) = journal.append([document("same")])
    with journal_backend.open() as journal:
        (again,) = journal.append([document("same")])
        assert again == replace(first, duplicate=True)
        assert journal.end_positions()[first.partition] == 1


def test_an_append_that_cannot_be_encoded_writes_none_of_its_interactions(journal, document):
    with pytest.raises(InvalidInput):
        journal.append([document("good"), document("bad", text="\ud800")])
    assert set(journal.end_positions().values()) == {0}
    assert not journal.append([document("good")])[0].duplicate


def test_an_unknown_partition_is_refused(journal):
    with pytest.raises(InvalidInput):
        journal.read(4_000, 0, 1)


def test_an_erased_user_keeps_positions_and_ids_but_no_payload(journal, document, owners):
    ada, bob = owners[0].user, owners[1].user
    journal.append([document(f"i{n}", user=(ada, bob)[n % 2]) for n in range(6)])
    before = journal.read(0, 0, 10)
    assert journal.erase(owners[0]) == 3
    after = journal.read(0, 0, 10)
    assert after == [replace(r, payload=b"") if r.owner == owners[0] else r for r in before]
    assert journal.erase(owners[0]) == 0
    assert journal.append([document("i0", user=ada)])[0].duplicate
    assert journal.read(0, 0, 10) == after


def test_erasing_an_unknown_user_erases_nothing(journal, document):
    journal.append([document("i0")])
    before = everything(journal)
    assert journal.erase(UserKey("office", "nobody")) == 0
    assert everything(journal) == before


def test_appends_of_many_threads_neither_lose_nor_repeat(journal, document):
    errors, receipts = [], []

    def client(number):
        try:
            for n in range(10):
                receipts.extend(journal.append([document(f"i{number}-{n}", user=f"user{number}"), document("shared")]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    new = [receipt for receipt in receipts if not receipt.duplicate]
    assert len(new) == 61
    assert len({(receipt.partition, receipt.position) for receipt in new}) == 61
    for number in range(6):
        mine = [r for records in everything(journal).values() for r in records if r.owner.user == f"user{number}"]
        assert [record.interaction_id for record in mine] == [f"i{number}-{n}" for n in range(10)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=5), max_size=6))
def test_any_calls_leave_each_owners_first_copy_of_every_id_in_order(journal, document, calls):
    known = {(r.owner.user, r.interaction_id) for records in everything(journal).values() for r in records}
    ends = journal.end_positions()
    for call in calls:
        pairs = [(f"user{user}", f"i{number}") for user, number in call]
        receipts = journal.append([document(name, user=user) for user, name in pairs])
        for pair, receipt in zip(pairs, receipts, strict=True):
            assert receipt.duplicate == (pair in known)
            if not receipt.duplicate:
                assert receipt.position == ends[receipt.partition]
                ends[receipt.partition] += 1
            known.add(pair)
    assert journal.end_positions() == ends
