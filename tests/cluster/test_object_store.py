"""What the adapter of object stores promises, on files, on a server that speaks S3, and on another of fsspec's."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import proxy
import pytest
import servers
from certificates import Authority

from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.object_store import ObjectStore, open_objects
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.errors import ConfigInvalid, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Snapshot, UserKey

QUICK = {"retry_budget_s": 0.3, "connect_timeout_s": 1.0, "answer_timeout_s": 1.0, "put_within_s": 5.0}
OWNER = next(one for one in (UserKey("office", f"user{n}") for n in range(100)) if not partition_of(one, 2))


@pytest.fixture
def bucket(tmp_path):
    with servers.localbucket(tmp_path / "s3", "memories") as server:
        yield server


@pytest.fixture
def s3(bucket, monkeypatch):
    """The configuration of the bucket, with credentials."""
    monkeypatch.setenv("OBJECT_SECRET", "secret-word")
    return {
        "url": "s3://memories/some/folder",
        "endpoint": f"http://127.0.0.1:{bucket.port}",
        "region": "us-east-1",
        "access_key": "siltstone",
        "secret_key_variable": "OBJECT_SECRET",
        **QUICK,
    }


@pytest.fixture(params=["file", "s3", "memory"])
def objects(request, tmp_path):
    match request.param:
        case "file":
            config = ObjectConfig(f"file://{tmp_path}/a%20folder", **QUICK)
        case "s3":
            config = ObjectConfig(**request.getfixturevalue("s3"))
        case _:
            config = ObjectConfig(f"memory://{tmp_path.name}", **QUICK)
    with closing(ObjectStore(config)) as objects:
        yield objects


def test_what_is_put_is_got_listed_and_deleted(objects):
    assert objects.get("a/b/none") is None
    assert objects.names_in("a") == []
    contents = {"a/b/one": b"1", "a/b/two": bytes(range(256)) * 50_000, "a/c/three": b""}
    for name, content in contents.items():
        objects.put(name, content)
        objects.put(name, content)
    assert {name: objects.get(name) for name in contents} == contents
    assert objects.names_in("a") == ["b", "c"]
    assert objects.names_in("a/b") == ["one", "two"]
    objects.put("a/b/later", b"x")
    assert objects.names_in("a/b") == ["later", "one", "two"]
    objects.delete(["a/b/one", "a/b/two", "a/b/later", "a/b/none", "d/none"])
    objects.remove_folder("a/b")
    assert objects.names_in("a") == ["c"]
    assert (objects.get("a/b/one"), objects.get("a/c/three")) == (None, b"")
    objects.remove_folder("a/c")
    objects.remove_folder("a/none")
    assert objects.get("a/c/three") == b""


def test_some_things_are_done_at_once_and_never_more_than_allowed(tmp_path):
    with closing(ObjectStore(ObjectConfig(f"file://{tmp_path}", max_at_once=3))) as objects:
        together, lock, running, most = threading.Barrier(3), threading.Lock(), set(), []

        def one(number):
            with lock:
                running.add(number)
                most.append(len(running))
            together.wait(timeout=20)
            with lock:
                running.discard(number)
            return number

        taken = []
        assert objects.each(one, (taken.append(number) or number for number in range(9))) == list(range(9))
        assert max(most) == 3
        assert objects.each(one, []) == []


def test_after_the_first_error_no_more_is_begun_and_those_under_way_end(tmp_path):
    with closing(ObjectStore(ObjectConfig(f"file://{tmp_path}", max_at_once=2))) as objects:
        begun = []

        def one(number):
            begun.append(number)
            if number == 3:
                raise Unavailable("the object store", "three")
            return number

        with pytest.raises(Unavailable, match="three"):
            objects.each(one, range(1_000))
        assert len(begun) < 10

        def items():
            yield 1
            raise Unavailable("the keys", "away")

        with pytest.raises(Unavailable, match="the keys"):
            objects.each(one, items())


def test_a_store_commits_loads_sweeps_and_erases_on_s3(s3, tmp_path):
    blob = bytes(range(256)) * 30_000
    with servers.valkey(tmp_path / "valkey") as server:
        config = RedisConfig(f"redis://127.0.0.1:{server.port}", num_partitions=2)
        data = tmp_path / "s3" / "data" / "memories"
        with RedisSnapshotStore(config, None, ObjectStore(ObjectConfig(**s3, min_bytes=1, keep_replaced_s=0))) as store:
            lease = store.acquire(0, "shard")
            for sequence in (1, 2):
                written = Snapshot.seal(OWNER, "core-1", sequence, blob + b"%d" % sequence)
                store.commit(Commit(lease, sequence - 1, sequence, (written,)))
                assert store.load(OWNER) == written
            store.drop_replaced()
        with RedisSnapshotStore(config, None, ObjectStore(ObjectConfig(**s3, min_bytes=1))) as store:
            (path,) = [path for path in data.rglob("*") if path.is_file() and path.name != "store"]
            path.with_name("1-1-orphan-abc").write_bytes(b"orphan")
            sweep = store.sweep()
            assert ([*sweep.look()], [*sweep.remove()]) == ([0, 1], [0])
            assert (sweep.num_objects, sweep.num_removed) == (2, 1)
            assert store.load(OWNER) == written
            assert store.erase(OWNER, lease)
            assert store.load(OWNER) is None
        assert [path.name for path in data.rglob("*") if path.is_file()] == ["store"]


def test_an_s3_server_that_is_away_or_stands_still_is_unavailable_and_found_again(s3, bucket):
    with closing(ObjectStore(ObjectConfig(**s3))) as objects:
        objects.put("a", b"1")
        bucket.freeze()
        try:
            for call in (lambda: objects.get("a"), lambda: objects.put("b", b"2"), lambda: objects.names_in("")):
                with pytest.raises(Unavailable, match="the object store"):
                    call()
        finally:
            bucket.thaw()
        assert objects.get("a") == b"1"
        bucket.kill()
        with pytest.raises(Unavailable, match="the object store"):
            objects.delete(["a"])
        bucket.start()
        assert objects.get("a") == b"1"


def test_a_bucket_that_is_not_there_is_told_as_such(s3):
    config = ObjectConfig(**(s3 | {"url": "s3://nobodys/folder"}))
    with closing(ObjectStore(config)) as objects, pytest.raises(ConfigInvalid, match="no such place"):
        objects.put("a", b"1")


def test_an_encrypted_connection_is_made_and_an_unknown_authority_is_not_believed(s3, bucket, tmp_path):
    authority = Authority(tmp_path)
    with proxy.proxy_to(bucket.port, authority.server("127.0.0.1")) as outside:
        over_tls = s3 | {"endpoint": f"https://127.0.0.1:{outside.port}", "ca_file": str(authority.file)}
        with closing(ObjectStore(ObjectConfig(**over_tls))) as objects:
            objects.put("a", b"1")
            assert objects.get("a") == b"1"
        unknown = ObjectConfig(**(over_tls | {"ca_file": ""}))
        with closing(ObjectStore(unknown)) as objects, pytest.raises(Unavailable):
            objects.get("a")


class _Refuses(BaseHTTPRequestHandler):
    """Says no to everybody, as S3 does."""

    def do_GET(self):
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        return


def test_a_server_that_refuses_us_is_told_as_such_and_the_secret_is_never_shown(s3):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as refuses:
        thread = threading.Thread(target=refuses.serve_forever)
        thread.start()
        try:
            config = ObjectConfig(**(s3 | {"endpoint": f"http://127.0.0.1:{refuses.server_port}"}))
            with closing(ObjectStore(config)) as objects:
                for call in (lambda: objects.get("a"), lambda: objects.put("a", b"1")):
                    with pytest.raises(ConfigInvalid, match="refuses us") as caught:
                        call()
                    assert "secret-word" not in str(caught.value)
            assert "secret-word" not in repr(config)
        finally:
            refuses.shutdown()
            thread.join()


def test_what_is_missing_is_told_by_name(s3, monkeypatch, tmp_path):
    assert open_objects(ObjectConfig()) is None
    monkeypatch.delenv("OBJECT_SECRET")
    with pytest.raises(ConfigInvalid, match="OBJECT_SECRET"):
        ObjectStore(ObjectConfig(**s3))
    monkeypatch.setenv("OBJECT_SECRET", "secret-word")
    (tmp_path / "empty.pem").write_text("no certificate")
    for name in ("none.pem", "empty.pem"):
        with pytest.raises(ConfigInvalid, match="ca_file"):
            ObjectStore(ObjectConfig(**s3, ca_file=str(tmp_path / name)))
    with pytest.raises(ConfigInvalid, match="what fsspec needs for nothing"):
        ObjectStore(ObjectConfig("nothing://folder"))
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(ConfigInvalid, match=r"siltstone\[objects\]"):
        ObjectStore(ObjectConfig(**s3))
