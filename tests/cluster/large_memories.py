"""Users with large memories, an object store that can be watched, and what is asked of a store with objects."""

from __future__ import annotations

from contextlib import contextmanager

from siltstone.adapters.object_store import ObjectStore
from siltstone.journal.partition import partition_of
from siltstone.values import Snapshot, UserKey

OWNERS = [
    owner for owner in (UserKey("office", f"user{number}") for number in range(100)) if not partition_of(owner, 2)
][:4]
QUICK = {"num_partitions": 2, "retry_budget_s": 0.3, "connect_timeout_s": 1.0, "answer_timeout_s": 2.0}
LARGE = b"a memory of more than a hundred bytes, " * 10


class Watched(ObjectStore):
    """An object store that lets a test do something just before the next get, or just after the next put."""

    before_get = None
    after_put = None

    def get(self, name):
        act, self.before_get = self.before_get, None
        if act is not None:
            act()
        return super().get(name)

    def put(self, name, content):
        super().put(name, content)
        act, self.after_put = self.after_put, None
        if act is not None:
            act()


def snapshot(number=0, sequence=1, blob=LARGE):
    return Snapshot.seal(OWNERS[number], "core-1", sequence, blob)


def later(number=0, sequence=1):
    return snapshot(number, sequence, LARGE + b"%d" % sequence)


def objects_in(folder):
    """The objects of a folder, but for the marks of stores."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "store")


def key_of(number=0):
    return f"{{siltstone:0}}:snap:{OWNERS[number]}"


def swept(store):
    """A whole sweep of which nothing is on its way: there is nothing to wait for."""
    sweep = store.sweep()
    assert [*sweep.look()] == [0, 1]
    assert {*sweep.remove()} <= {0, 1}
    return sweep.num_objects, sweep.num_removed, sweep.num_unsure


@contextmanager
def away(folder):
    """The object store cannot be reached meanwhile: a file is where its folder was."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    yield
    folder.unlink()
    aside.rename(folder)
