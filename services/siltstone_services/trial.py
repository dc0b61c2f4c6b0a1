"""A core on trial in a process of its own: does it load, does it answer, how fast. Prints one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_PROMPT: Final = "The quick brown fox jumps over the lazy dog."
_NUM_TOKENS: Final = 24
_LIMIT_S: Final = 600.0


def try_core(home: Path, digest: str) -> float | None:
    """Loads a core in a clean process and lets it answer; returns tokens per second, None when it could not."""
    command = [sys.executable, "-m", "siltstone_services.trial", str(home), digest]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_s"])
    except (subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError):
        return None


def main(home: str, digest: str) -> None:
    """Runs the trial. Raises what makes the core unfit."""
    import torch

    from siltstone.adapters.core_store import CoreStore
    from siltstone.model.core import Core, forward_keeping

    torch.set_num_threads(1)
    loaded = CoreStore(Path(home)).load(digest)
    core = Core(loaded.config, loaded.tensors)
    ids = loaded.tokenizer.encode(_PROMPT)[: core.config.max_context - _NUM_TOKENS - 1]
    with torch.no_grad():
        x, past = forward_keeping(core, torch.tensor([ids]))
        started_s = time.perf_counter()
        for _ in range(_NUM_TOKENS):
            logits = core.logits(x[:, -1])
            if not bool(torch.isfinite(logits).all()):
                raise ValueError("logits that are not finite")
            x, past = forward_keeping(core, logits.argmax(dim=-1, keepdim=True), past)
    print(json.dumps({"tokens_per_s": _NUM_TOKENS / (time.perf_counter() - started_s)}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
