"""How an expert is trained: by what, on how many workers, and how often the work done is made safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from siltstone.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How an expert is trained. What is learned is the same, but for rounding, whatever is set here."""

    trainer: Literal["plain", "deepspeed", "ray"] = "plain"
    """PyTorch in this process; DeepSpeed in this process; DeepSpeed on Ray Train workers. The last two need
    siltstone[train]."""
    num_bundles: int = 2
    """Parts of a step that the plain trainer computes side by side, a processor core each. The result depends on it in
    its last digits, so it is set and not found out; more than there are cores costs little."""
    num_workers: int = 1
    """Ray workers, each of which reads a part of every step. Each holds the whole core."""
    uses_gpu: bool = False
    """Whether a Ray worker gets a GPU of its own; the workers talk by NCCL then, and by gloo otherwise."""
    ray_address: str = "local"
    """Address of the Ray cluster; "local" starts one on this machine for the time of a job. The home folder must be on
    a disk that all workers see."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed divides among workers: 1 the optimiser's state, 2 gradients too, 3 the expert too; 0 nothing."""
    bf16: bool = False
    """Whether DeepSpeed multiplies with an expert in bfloat16; the expert that is stepped stays in float32."""
    gradient_accumulation: int = 1
    """Parts a worker reads one after another before DeepSpeed steps: less memory, more time."""
    activation_checkpointing: bool = False
    """Whether inner values of layers are computed again in the backward pass: a third less speed, less memory."""
    offload: bool = False
    """Whether DeepSpeed keeps the optimiser's state in the processor's memory and not the GPU's."""
    checkpoint_every_steps: int = 20
    """Steps that a crash may cost, at most. One checkpoint is three times the expert, and is flushed to disk."""
    kept_checkpoints: int = 2
    """Whole checkpoints kept while a job runs: the newest may turn out to be damaged."""
    max_restarts: int = 2
    """Times Ray may start the workers anew within one job, from the newest whole checkpoint, after one has died."""

    def __post_init__(self) -> None:
        for name in ("num_bundles", "num_workers", "gradient_accumulation", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigInvalid("sleep.train", f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.kept_checkpoints < 1 or self.max_restarts < 0:
            raise ConfigInvalid("sleep.train", "expected kept_checkpoints of at least 1 and max_restarts of at least 0")
        if self.num_workers > 1 and self.trainer != "ray":
            raise ConfigInvalid("sleep.train", f'num_workers: {self.trainer} has one, more need trainer = "ray"')
        if self.zero_stage == 0 and (self.bf16 or self.offload):
            raise ConfigInvalid("sleep.train", "zero_stage: bf16 and offload need at least 1")
