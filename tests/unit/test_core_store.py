"""What the store of cores promises: nothing half-written is seen, nothing damaged is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters import core_store
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore, tensor_shapes
from siltstone.adapters.tokenizer import plain_chat
from siltstone.adapters.tokenizer_json import byte_level_bpe
from siltstone.errors import Corrupt, InvalidInput, NotFound, Unavailable
from siltstone.model.config import CoreConfig

TOKENS = [*sorted(ByteLevel.alphabet()), "<|end|>"]
CONFIG = CoreConfig(
    vocab_size=len(TOKENS),
    d_model=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_mlp=12,
    rope_base=10000.0,
    norm_eps=1e-5,
    max_context=32,
    tied_head=True,
)
NUM_FLIPS = 300


def make_core(seed: int = 0, extras: dict[str, bytes] | None = None) -> ImportedCore:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in tensor_shapes(CONFIG).items()}
    tokenizer_json = byte_level_bpe(TOKENS, [], [len(TOKENS) - 1], [], "gpt-2")
    return ImportedCore("test", CONFIG, tensors, tokenizer_json, plain_chat("", ("<|end|>",)), extras or {})


@pytest.fixture
def store(tmp_path: Path) -> CoreStore:
    return CoreStore(tmp_path)


def folder_of(home: Path, digest: str) -> Path:
    return home / "cores" / digest


def reseal(home: Path, digest: str, change: Callable[[dict[str, object]], None]) -> str:
    """Rewrites a stored core's manifest, and moves the core to the digest the new manifest has."""
    folder = folder_of(home, digest)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    raw = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_bytes(raw)
    moved = hashlib.sha256(raw).hexdigest()
    folder.rename(folder.parent / moved)
    return moved


def test_a_loaded_core_is_the_one_that_was_added(store: CoreStore) -> None:
    core = make_core(extras={"basis.safetensors": b"\x00\x01", "anchors.json": b"[]"})

    digest = store.add(core, "tiny")
    loaded = store.load("tiny")

    assert (loaded.digest, loaded.name, loaded.config, loaded.chat) == (digest, "tiny", core.config, core.chat)
    assert loaded.extras == core.extras
    assert loaded.tensors.keys() == core.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in core.tensors.items())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Grüße, 12")) == "Grüße, 12"


def test_the_digest_is_that_of_the_manifest_and_the_manifest_is_canonical(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(), "tiny")

    raw = (folder_of(tmp_path, digest) / "manifest.json").read_bytes()

    assert hashlib.sha256(raw).hexdigest() == digest
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()


def test_the_same_core_twice_is_stored_once(store: CoreStore, tmp_path: Path) -> None:
    first = store.add(make_core(), "tiny")
    written = {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, first).iterdir()}

    second = store.add(make_core(), "tiny")

    assert first == second
    assert {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, first).iterdir()} == written
    assert len(store.list()) == 1


def test_what_a_store_makes_is_for_this_user_only(tmp_path: Path) -> None:
    CoreStore(tmp_path / "home").add(make_core(), "mine")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "home", tmp_path / "home" / "cores")] == [0o700] * 2


def test_other_weights_are_another_core_and_the_name_moves(store: CoreStore) -> None:
    old = store.add(make_core(seed=1), "tiny")
    new = store.add(make_core(seed=2), "tiny")

    assert old != new
    assert store.resolve("tiny") == new
    assert store.load(old).digest == old


def test_the_first_core_is_the_default_until_another_is_chosen(store: CoreStore) -> None:
    assert store.default() is None
    first = store.add(make_core(seed=1), "one")
    second = store.add(make_core(seed=2), "two")

    assert store.resolve("default") == first
    store.set_default("two")
    assert store.resolve("default") == second
    assert [(c.names, c.is_default) for c in store.list()] == [(("one",), False), (("two",), True)]


def test_a_core_is_found_by_name_digest_and_start_of_digest(store: CoreStore) -> None:
    digest = store.add(make_core(), "tiny")

    assert {store.resolve(key) for key in ("tiny", digest, digest[:8], "default")} == {digest}
    for unknown in ("other", digest[:7], "0" * 64, "", "../" + digest, "names.json"):
        with pytest.raises(NotFound):
            store.resolve(unknown)


def test_a_removed_core_is_gone_with_its_names(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(seed=1), "one")
    kept = store.add(make_core(seed=2), "two")

    store.remove("one")

    assert [listing.digest for listing in store.list()] == [kept]
    assert store.default() is None
    assert not folder_of(tmp_path, digest).exists()
    with pytest.raises(NotFound):
        store.load("one")


def test_a_flipped_bit_in_any_file_is_found(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(extras={"anchors.json": b"[1,2,3]"}), "tiny")
    files = [*sorted(folder_of(tmp_path, digest).iterdir()), tmp_path / "cores" / "names.json"]
    chooser = random.Random(7)
    for i in range(NUM_FLIPS):
        path = files[i % len(files)]
        intact = path.read_bytes()
        damaged = bytearray(intact)
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(Corrupt):
            store.load("tiny")
        path.write_bytes(intact)
    store.load("tiny")


def test_without_digests_most_flipped_bits_in_the_weights_would_pass(store: CoreStore, tmp_path: Path) -> None:
    path = folder_of(tmp_path, store.add(make_core(), "tiny")) / "core.safetensors"
    chooser, intact, unnoticed = random.Random(7), path.read_bytes(), 0
    for _ in range(NUM_FLIPS):
        damaged = bytearray(intact)
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        try:
            core_store.load_file(path)
            unnoticed += 1
        except core_store.SafetensorError:
            pass
    assert unnoticed > NUM_FLIPS // 2


@pytest.mark.parametrize("name", ["manifest.json", "core.safetensors", "tokenizer.json", "anchors.json"])
@pytest.mark.parametrize("how", ["truncated", "lengthened", "empty", "missing", "link", "folder"])
def test_a_file_that_is_not_what_was_written_is_found(store: CoreStore, tmp_path: Path, name: str, how: str) -> None:
    digest = store.add(make_core(extras={"anchors.json": b"[]"}), "tiny")
    path = folder_of(tmp_path, digest) / name
    content = path.read_bytes()
    path.unlink()
    match how:
        case "truncated":
            path.write_bytes(content[:-1])
        case "lengthened":
            path.write_bytes(content + b"\0")
        case "empty":
            path.write_bytes(b"")
        case "link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
        case "folder":
            path.mkdir()

    with pytest.raises(Corrupt) as error:
        store.load("tiny")
    assert error.value.expected != error.value.found
    with pytest.raises(Corrupt):
        store.verify("tiny")


def test_an_extra_file_is_found(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(), "tiny")
    (folder_of(tmp_path, digest) / "pytorch_model.bin").write_bytes(b"code")

    with pytest.raises(Corrupt, match="pytorch_model"):
        store.load("tiny")


def test_a_damaged_core_is_listed_with_its_damage_and_hides_no_other(store: CoreStore, tmp_path: Path) -> None:
    damaged, intact = store.add(make_core(seed=1), "one"), store.add(make_core(seed=2), "two")
    (folder_of(tmp_path, damaged) / "manifest.json").write_bytes(b"{}")

    listings = {listing.digest: listing for listing in store.list()}

    assert "sha256" in listings[damaged].damage
    assert listings[intact].damage == ""
    assert listings[intact].num_parameters == sum(tensor.numel() for tensor in make_core().tensors.values())


def test_adding_a_core_again_repairs_a_damaged_one(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(), "tiny")
    (folder_of(tmp_path, digest) / "core.safetensors").write_bytes(b"")

    assert store.add(make_core(), "tiny") == digest
    store.load("tiny")


def test_a_newer_schema_is_refused_by_name(store: CoreStore, tmp_path: Path) -> None:
    digest = reseal(tmp_path, store.add(make_core(), "tiny"), lambda manifest: manifest.update(schema=2))

    with pytest.raises(InvalidInput, match=r"schema of core \w+: expected 1, found 2"):
        store.load(digest)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("a path out of the folder", lambda m: m["files"].update({"../evil.json": {"sha256": "0" * 64, "size": 1}})),
        ("an absolute path", lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "size": 1}})),
        ("the manifest itself", lambda m: m["files"].update({"manifest.json": {"sha256": "0" * 64, "size": 1}})),
        ("no weights", lambda m: m["files"].pop("core.safetensors")),
        ("a wrong size", lambda m: m["files"]["core.safetensors"].update(size=3)),
        ("a wrong digest", lambda m: m["files"]["core.safetensors"].update(sha256="0" * 64)),
        ("a shape its config does not give", lambda m: m["tensors"]["norm.weight"].update(shape=[9])),
        ("an unknown tensor", lambda m: m["tensors"].update(other={"shape": [1], "dtype": "float32"})),
        ("an unknown config field", lambda m: m["config"].update(sliding_window=1)),
        ("a missing config field", lambda m: m["config"].pop("d_model")),
        ("another config", lambda m: m["config"].update(num_layers=1)),
        ("a config of impossible size", lambda m: m["config"].update(num_layers=10**12)),
        ("no schema", lambda m: m.pop("schema")),
        ("a chat format of another form", lambda m: m["chat"].update(turns={"user": ["", ""]})),
        ("a stop that is no token", lambda m: m["chat"].update(stop=["never seen"])),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    store: CoreStore, tmp_path: Path, part: str, change: Callable[[dict[str, object]], None]
) -> None:
    digest = reseal(tmp_path, store.add(make_core(), "tiny"), change)

    with pytest.raises((Corrupt, InvalidInput)):
        store.load(digest)


def test_a_stored_nan_is_refused_even_under_a_fitting_digest(store: CoreStore, tmp_path: Path) -> None:
    digest = store.add(make_core(), "tiny")
    path = folder_of(tmp_path, digest) / "core.safetensors"
    tensors = make_core().tensors
    tensors["layers.1.mlp.up.weight"][0, 0] = float("nan")
    core_store.save_file(tensors, path)
    raw = path.read_bytes()
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    digest = reseal(tmp_path, digest, lambda m: m["files"].update({"core.safetensors": entry}))  # type: ignore[attr-defined]

    with pytest.raises(Corrupt, match=r"layers\.1\.mlp\.up.*NaN"):
        store.load(digest)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"norm.weight": torch.full((8,), float("inf"))}),
        lambda t: t.update({"norm.weight": torch.ones(9)}),
        lambda t: t.update({"norm.weight": torch.ones(8, dtype=torch.float64)}),
        lambda t: t.pop("norm.weight"),
        lambda t: t.update({"head.weight": torch.ones(CONFIG.vocab_size, 8)}),
    ],
)
def test_wrong_tensors_are_refused_and_nothing_is_stored(
    store: CoreStore, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    core = make_core()
    change(core.tensors)

    with pytest.raises(InvalidInput):
        store.add(core, "tiny")
    assert store.list() == []


def test_a_large_but_finite_tensor_is_no_nan(store: CoreStore) -> None:
    core = make_core()
    core.tensors["norm.weight"].fill_(3e38)

    store.add(core, "tiny")


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "a/b", "a\\b", ".hidden", "a" * 65, "default", "deadbeef", "a\n", "a\0"]
)
def test_a_name_that_plays_tricks_is_refused(store: CoreStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="core name"):
        store.add(make_core(), name)


@pytest.mark.parametrize(
    "name", ["../up.json", "a/b.json", "manifest.json", "core.safetensors", "tokenizer.json", ".x.json", "", "noending"]
)
def test_an_extra_file_whose_name_plays_tricks_is_refused(store: CoreStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="extra file"):
        store.add(make_core(extras={name: b"x"}), "tiny")
    assert store.list() == []


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(store: CoreStore) -> None:
    tokens = [*TOKENS, "<|more|>"]
    core = replace(make_core(), tokenizer_json=byte_level_bpe(tokens, [], [len(tokens) - 1], [], "gpt-2"))
    core = replace(core, chat=plain_chat("", ("<|more|>",)))

    with pytest.raises(InvalidInput, match=f"at most {len(TOKENS)} tokens"):
        store.add(core, "tiny")


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "cores").write_text("a file where the folder should be")

    with pytest.raises(Unavailable):
        CoreStore(tmp_path).add(make_core(), "tiny")


@pytest.mark.parametrize("max_bytes", [1_000, 8_000, 17_000])
def test_a_disk_that_takes_no_more_leaves_the_store_as_it_was(store: CoreStore, tmp_path: Path, max_bytes: int) -> None:
    digest = store.add(make_core(seed=1), "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, limits[1]))
    try:
        with pytest.raises(Unavailable, match="core store"):
            store.add(make_core(seed=2, extras={"large.bin": b"x" * 20_000}), "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert {path.name for path in (tmp_path / "cores").iterdir()} == {digest, "names.json", ".lock"}


KILLED_WRITERS = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_core_store as tests

root = Path(sys.argv[1])
core = tests.make_core(seed=2, extras={"anchors.json": b"[]"})
in_place = Path(sys.argv[3]) if len(sys.argv) > 3 else None
CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod")

def write(home, step, in_place):
    left = step
    def watch(event, arguments):
        # Every change the store makes to a file passes here; die before the chosen one.
        nonlocal left
        if event in CHANGES and str(arguments[0]).startswith(str(home)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
    sys.addaudithook(watch)
    if in_place:
        target = home / "cores" / in_place.name
        target.mkdir()
        for file in sorted(in_place.iterdir()):
            (target / file.name).write_bytes(file.read_bytes())
    else:
        tests.CoreStore(home).add(core, "second")
    os._exit(0)

for step in range(200):
    home = root / f"step{step}"
    shutil.copytree(root / "template", home)
    child = os.fork()
    if child == 0:
        write(home, step, in_place)
    status = os.waitpid(child, 0)[1]
    print(step, os.waitstatus_to_exitcode(status))
    if status == 0:
        break
"""


def kill_writers(home: Path, *in_place: Path) -> int:
    """Kills a writer before each of its steps, each in a copy of `home`/template, and returns how many there were.

    The writer is the store's own, or one that copies the files of the folder `in_place` straight to their place.
    """
    command = [sys.executable, "-c", KILLED_WRITERS, str(home), str(Path(__file__).parent), *map(str, in_place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    return len(codes)


def test_a_writer_killed_before_any_of_its_steps_leaves_all_or_nothing(tmp_path: Path) -> None:
    first = CoreStore(tmp_path / "template").add(make_core(seed=1), "first")
    core = make_core(seed=2, extras={"anchors.json": b"[]"})

    num_steps = kill_writers(tmp_path)

    num_cores = []
    for step in range(num_steps):
        home = tmp_path / f"step{step}"
        store = CoreStore(home)
        for listing in store.list():
            store.load(listing.digest)
        assert store.load("first").digest == first
        num_cores.append(len(store.list()))

        again = store.add(core, "second")
        assert store.load("second").digest == again
        assert {path.name for path in (home / "cores").iterdir()} == {first, again, "names.json", ".lock"}
    assert num_cores == sorted(num_cores)
    assert set(num_cores) == {1, 2}
    assert num_steps > 10


def test_a_writer_that_wrote_in_place_would_leave_a_part_of_a_core(tmp_path: Path) -> None:
    CoreStore(tmp_path / "template").add(make_core(seed=1), "first")
    digest = CoreStore(tmp_path / "source").add(make_core(seed=2, extras={"anchors.json": b"[]"}), "second")

    num_steps = kill_writers(tmp_path, folder_of(tmp_path / "source", digest))

    num_partial = 0
    for step in range(num_steps):
        store = CoreStore(tmp_path / f"step{step}")
        if digest in {listing.digest for listing in store.list()}:
            try:
                store.load(digest)
            except Corrupt:
                num_partial += 1
    assert num_partial >= 3
