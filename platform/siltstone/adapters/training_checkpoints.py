"""Checkpoints of a training job: whole or not there, whatever is killed, and of no library's making.

    <job>/checkpoints/step-00000040/shard-0-of-2.safetensors  a rank's share of every tensor, in float32
    <job>/checkpoints/step-00000040/shard-0-of-2.json         its sha256 and size, told by that rank
    <job>/checkpoints/step-00000040/manifest.json             step, job, shapes, files and digests, the losses so far
    <job>/checkpoints/step-00000040/complete                  the sha256 of the manifest, written last

Tensors are kept whole but for being cut into equal shares, so that any number of workers, and any trainer, goes on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from siltstone.adapters.whole_file import flush, sha256_of, write_whole
from siltstone.errors import Corrupt
from siltstone.faults import fault_point
from siltstone.sleep_values import StepDone

_log = logging.getLogger(__name__)

_SCHEMA: Final = 1
_NAME: Final = re.compile(r"step-(\d{8})")
_MANIFEST: Final = "manifest.json"
_MARKER: Final = "complete"


class Seat(Protocol):
    """A process's place among those that train together."""

    rank: int
    world: int

    def wait(self) -> None:
        """Returns when all have come here."""
        ...

    def told_by_first(self, number: int) -> int:
        """Returns the number that rank 0 brought."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of training before a step: tensors by name, and what the steps before gave."""

    step: int
    tensors: Mapping[str, Tensor]
    trace: tuple[StepDone, ...]


class Checkpoints:
    """The checkpoints of one job. Every rank calls the same methods at the same time."""

    def __init__(self, job: Path, digest: str, seat: Seat, num_kept: int) -> None:
        self._folder, self._digest, self._seat, self._num_kept = job / "checkpoints", digest, seat, num_kept

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, all or nothing.

        1. Rank 0 makes a folder that no reader takes for a checkpoint. All wait.
        2. Every rank writes its shard and flushes it. All wait.
        3. Every rank reads its shard back and tells its digest. All wait.
        4. Rank 0 writes the manifest.
        5. Rank 0 writes the completion marker, and flushes the folder.
        6. Rank 0 gives the folder its name in one rename, and flushes the folder above.
        7. Rank 0 removes what is older than need be. All wait.

        Each step may be the last one before a crash; the tests make it so.
        """
        seat = self._seat
        final = self._folder / f"step-{checkpoint.step:08d}"
        incoming = self._folder / f".incoming-{final.name}"
        # 1.
        if seat.rank == 0:
            self._sweep()
            incoming.mkdir(parents=True)
        seat.wait()
        # 2.
        shard = incoming / f"shard-{seat.rank}-of-{seat.world}.safetensors"
        _write_shard(shard, save(_share(checkpoint.tensors, seat)))
        fault_point("train-shard-written")
        seat.wait()
        # 3.
        told = {"sha256": sha256_of(shard), "size": shard.stat().st_size}
        write_whole(shard.with_suffix(".json"), json.dumps(told).encode())
        fault_point("train-shard-hashed")
        seat.wait()
        if seat.rank == 0:
            # 4.
            manifest = self._manifest(checkpoint, incoming)
            write_whole(incoming / _MANIFEST, manifest)
            fault_point("train-manifest-written")
            # 5.
            write_whole(incoming / _MARKER, sha256(manifest).hexdigest().encode())
            fault_point("train-marker-written")
            # 6.
            self._take_away(final)
            incoming.rename(final)
            flush(self._folder)
            fault_point("train-checkpoint-named")
            # 7.
            self._sweep()
            fault_point("train-checkpoints-pruned")
        seat.wait()

    def newest(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint; one that is not what was written is passed over, and that is logged."""
        step = 0
        if self._seat.rank == 0:
            step = next((step for step, path in self._by_age() if self._is_whole(path)), 0)
        step = self._seat.told_by_first(step)
        return self._read(self._path_of(step)) if step else None

    def _by_age(self) -> Iterator[tuple[int, Path]]:
        """Yields what may be a checkpoint, the newest first."""
        if self._folder.is_dir():
            for path in sorted(self._folder.iterdir(), reverse=True):
                if found := _NAME.fullmatch(path.name):
                    yield int(found[1]), path

    def _path_of(self, step: int) -> Path:
        return next(path for at, path in self._by_age() if at == step)

    def _is_whole(self, path: Path) -> bool:
        try:
            raw = (path / _MANIFEST).read_bytes()
            _expect(path, sha256(raw).hexdigest(), (path / _MARKER).read_text(encoding="ascii", errors="replace"))
            manifest: Any = json.loads(raw)
            _expect(path, f"{_SCHEMA}, {self._digest}", f"{manifest['schema']}, {manifest['job']}")
            for name, told in manifest["files"].items():
                _expect(path, told["sha256"], sha256_of(path / name))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, Corrupt) as error:
            _log.warning("a checkpoint is not whole", extra={"checkpoint": path.name, "reason": str(error)})
            return False
        return True

    def _read(self, path: Path) -> Checkpoint:
        try:
            manifest: Any = json.loads((path / _MANIFEST).read_bytes())
            shards = [load_file(path / name) for name in manifest["files"]]
            tensors = {
                name: torch.cat([shard[name] for shard in shards]).view(shape)
                for name, shape in manifest["shapes"].items()
            }
            return Checkpoint(manifest["step"], tensors, tuple(StepDone(**done) for done in manifest["trace"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise Corrupt(f"checkpoint {path.name}", "what was written", str(error)) from error

    def _manifest(self, checkpoint: Checkpoint, incoming: Path) -> bytes:
        names = [f"shard-{rank}-of-{self._seat.world}" for rank in range(self._seat.world)]
        manifest = {
            "schema": _SCHEMA,
            "job": self._digest,
            "step": checkpoint.step,
            "shapes": {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()},
            "files": {f"{name}.safetensors": json.loads((incoming / f"{name}.json").read_bytes()) for name in names},
            "trace": [asdict(done) for done in checkpoint.trace],
        }
        return json.dumps(manifest).encode()

    def _sweep(self) -> None:
        """Removes what a killed writer left, and the checkpoints that are older than need be."""
        if not self._folder.is_dir():
            return
        for left in (*self._folder.glob(".incoming-*"), *self._folder.glob(".leaving-*")):
            shutil.rmtree(left)
        for _, old in list(self._by_age())[self._num_kept :]:
            self._take_away(old)

    def _take_away(self, path: Path) -> None:
        """Removes a checkpoint; killed in between, it no longer looks like one."""
        if path.exists():
            leaving = path.with_name(f".leaving-{path.name}")
            path.rename(leaving)
            fault_point("train-checkpoint-leaving")
            shutil.rmtree(leaving)


def _share(tensors: Mapping[str, Tensor], seat: Seat) -> dict[str, Tensor]:
    """Returns a rank's share of every tensor, flat."""
    return {
        name: tensor.detach().cpu().float().flatten().tensor_split(seat.world)[seat.rank].clone()
        for name, tensor in tensors.items()
    }


def _write_shard(path: Path, content: bytes) -> None:
    middle = len(content) // 2
    with path.open("wb") as file:
        file.write(content[:middle])
        file.flush()
        fault_point("train-shard-begun")
        file.write(content[middle:])
        file.flush()
        os.fsync(file.fileno())


def _expect(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise Corrupt(f"checkpoint {path.name}", expected, found)
