"""A core on trial in a clean process: does it load, does it answer, how fast beside another. Prints a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from siltstone.inference.engine import Precision
    from siltstone.model.core import Core

_PROMPT: Final = "The quick brown fox jumps over the lazy dog."
_NUM_TOKENS: Final = 8
_NUM_PAIRS: Final = 4
_LIMIT_S: Final = 600.0


def try_core(home: Path, digest: str, other: str, precision: Precision) -> list[tuple[float, float]] | None:
    """Loads a core in a clean process and lets it answer, taking turns with another that is known to load.

    They compute as they do when they serve.

    Returns the tokens per second of the two, per turn; None when it could not.
    """
    command = [sys.executable, "-m", "siltstone_services.trial", str(home), digest, other, precision]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=True)
        return [(float(own), float(others)) for own, others in json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]]
    except (subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError):
        return None


def main(home: str, digest: str, other: str, precision: Precision) -> None:
    """Runs the trial. Raises what makes the core unfit."""
    import torch

    from siltstone.adapters.core_store import CoreStore
    from siltstone.model.core import Core
    from siltstone_services.precision import dtype_for

    torch.set_num_threads(1)
    loaded = [CoreStore(Path(home)).load(one) for one in (digest, other)]
    cores = [Core(one.config, one.tensors, "cpu", dtype_for(precision, "cpu")) for one in loaded]
    ids = loaded[0].tokenizer.encode(_PROMPT)[: cores[0].config.max_context - _NUM_TOKENS - 1]
    for core in cores:
        # Who runs for the first time waits for memory that nobody has touched yet.
        _tokens_per_s(core, ids)
    print(json.dumps({"tokens_per_s": [_pair(cores, ids, number % 2 == 1) for number in range(_NUM_PAIRS)]}))


def _pair(cores: list[Core], ids: list[int], is_turned_round: bool) -> list[float]:
    """Returns the pace of each core. They take turns in one process, so that whatever the machine does slows both."""
    order = reversed(range(len(cores))) if is_turned_round else range(len(cores))
    paces = {at: _tokens_per_s(cores[at], ids) for at in order}
    return [paces[at] for at in range(len(cores))]


def _tokens_per_s(core: Core, ids: list[int]) -> float:
    import torch

    from siltstone.model.core import forward_keeping

    with torch.no_grad():
        x, past = forward_keeping(core, torch.tensor([ids]))
        # The thread's own time: what else the machine does meanwhile is not the core's.
        started_s = time.thread_time()
        for _ in range(_NUM_TOKENS):
            logits = core.logits(x[:, -1])
            if not bool(torch.isfinite(logits).all()):
                raise ValueError("logits that are not finite")
            x, past = forward_keeping(core, logits.argmax(dim=-1, keepdim=True), past)
        return _NUM_TOKENS / (time.thread_time() - started_s)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], cast("Precision", sys.argv[4]))
