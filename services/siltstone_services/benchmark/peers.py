"""The peers, each in a process of its own, asked line by line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from siltstone.errors import Unavailable
from siltstone_services.benchmark.readings import Outcome, Reading, Say, ratio_readings
from siltstone_services.benchmark.world import Shape

LORA_RANK: Final = 8
_FOLDER: Final = Path(__file__).resolve().parents[3] / "benchmarks"
_SCRIPT: Final = _FOLDER / "peer_peft.py"
_REQUIREMENTS: Final = _FOLDER / "peers-requirements.txt"


def peers_python(may_install: bool, say: Say) -> Path:
    """Returns the interpreter of the peers' virtual environment, made when it is not there and may be.

    Raises: Unavailable, with the reason, when there is none.
    """
    if not _SCRIPT.is_file():
        raise Unavailable("the peers", "their script is part of the source tree, not of an installation")
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "siltstone" / f"peers-{wanted}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    if stamp.is_file():
        return python
    if not may_install:
        raise Unavailable("the peers", "their virtual environment is not there; a full run makes it")
    say("peers: making their virtual environment (once)")
    venv.create(folder, clear=True, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-qq", "-r", _REQUIREMENTS], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable("the peers", f"pip could not install them: {done.stderr.strip()[-300:]}")
    stamp.touch()
    return python


class PeftPeer:
    """PEFT with some adapters loaded, over the common shape."""

    def __init__(self, process: subprocess.Popen[str], shape: Shape, adapters: int) -> None:
        self._process = process
        self.adapters = adapters
        self.about = self._ask(do="open", shape=asdict(shape.core), rank=LORA_RANK, adapters=adapters)

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise Unavailable("PEFT", str(error)) from error
        if not line:
            raise Unavailable("PEFT", f"its process ended with {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def check(self) -> str:
        """Says what is wrong with the peer's own results, or nothing."""
        return str(self._ask(do="check")["complaint"])

    def update_s(self, num_tokens: int) -> float:
        """Runs one user's update and returns its seconds."""
        return float(self._ask(do="update", tokens=num_tokens)["seconds"])

    def decode_s(self, num_users: int, num_steps: int) -> tuple[float, float]:
        """Runs a block of decode steps and one of the bare model: seconds a step of each."""
        reply = self._ask(do="decode", users=num_users, steps=num_steps)
        return float(reply["bent_s"]), float(reply["bare_s"])


@contextmanager
def peft_peer(python: Path, shape: Shape, adapters: int) -> Iterator[PeftPeer]:
    """Starts a peer, and ends it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [python, _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=environment
    )
    try:
        yield PeftPeer(process, shape, adapters)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def run_peft_decode(peers: dict[int, PeftPeer], rounds: int, steps: int, say: Say) -> Outcome:
    """Times PEFT's mixed batches over its own bare model; the two take turns inside its process."""
    case = "PEFT decode, common"
    readings: list[Reading] = []
    for num_users, peer in peers.items():
        if complaint := peer.check():
            return Outcome(case, refusal=complaint)
        say(f"{case}: {num_users} users")
        pairs = [peer.decode_s(num_users, steps) for _ in range(rounds)]
        bent, bare = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        name = f"{case}, {num_users} users"
        readings += ratio_readings(f"{name} / its bare model", bent, bare)
        readings.append(Reading(name, tuple(num_users / one for one in bent), "tokens/s"))
    return Outcome(case, tuple(readings))
