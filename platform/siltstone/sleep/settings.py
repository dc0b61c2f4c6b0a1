"""How sleep is done: every user's own, and the shared one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from siltstone.errors import ConfigInvalid
from siltstone.sleep.consensus import ConsensusConfig
from siltstone.sleep.distil import DistilConfig
from siltstone.sleep.filter import FilterConfig
from siltstone.sleep.private import PrivateSleepConfig
from siltstone.sleep.rebase import RebaseConfig
from siltstone.sleep.restem import TaskConfig
from siltstone.sleep.sampled import SamplingConfig
from siltstone.sleep.train_config import TrainConfig


@dataclass(frozen=True, slots=True)
class SleepConfig:
    """How sleep is done: every user's own first, then the shared one."""

    private: PrivateSleepConfig = field(default_factory=PrivateSleepConfig)
    """How each user's own levels are consolidated."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """What one person may bring."""
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)
    """How many people, and how sure of it, it takes to teach the core something."""
    distil: DistilConfig = field(default_factory=DistilConfig)
    """What the student is trained on, and how far."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """What the users' memories dream of themselves."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """How the core improves itself on a task."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """What trains it."""
    rebase: RebaseConfig = field(default_factory=RebaseConfig)
    """How a user's levels are carried from one core to another."""
    held_out_share: float = 0.15
    """Share of the people who take no part, so that the gate can ask what the night gives to others."""
    min_held_out: int = 3
    """People who take no part at least, of three times as many: of one or two nobody can tell how users differ."""
    num_foreign_cues: int = 1
    """Times a statement is also dreamt as the answer to a cue of what another person said of the same thing."""
    max_dreams: int = 240
    """Dreams that are trained on: those that would teach the core most, and some at random."""
    random_share: float = 0.1
    """Share of the dreams that is taken at random from those left."""
    selection: Literal["gain", "gradient"] = "gain"
    """What a dream is chosen by: what its targets gain over the core, or the gradient it gives a new expert."""
    most_drift_nats: float = 7e-4
    """How far text may move that nothing was trained on, KL a token on average: an expert is made smaller until that
    holds. So little leaves the likeliest next token of prose as it was in 99 of 100. 0 leaves it as it is."""
    read_batch: int = 16
    """Dreams read at once."""
    look_every_s: float = 2.0
    """Seconds after which a server looks again whether another version is to serve."""
    identities: str = ""
    """File that says which accounts are one person's, from the home folder; without one every account is a person."""
    keep_versions: int = 8
    """Refused and retired versions whose cores are kept, the newest; what is told of the others stays. A person looks
    at a refusal within days, and a roll back has its own version kept beside these."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise ConfigInvalid("sleep", f"held_out_share: expected 0 to below 1, found {self.held_out_share}")
        if not 0 <= self.most_drift_nats < math.inf:
            raise ConfigInvalid("sleep", f"most_drift_nats: expected 0 or more, found {self.most_drift_nats}")
        if not self.look_every_s > 0:
            raise ConfigInvalid("sleep", f"look_every_s: expected more than 0, found {self.look_every_s}")
        if self.min_held_out < 0:
            raise ConfigInvalid("sleep", f"min_held_out: expected 0 or more, found {self.min_held_out}")
        if min(self.max_dreams, self.read_batch) < 1 or self.num_foreign_cues < 0 or not 0 <= self.random_share <= 1:
            raise ConfigInvalid("sleep", "expected max_dreams and read_batch of at least 1, random_share of 0 to 1")
        if self.selection not in ("gain", "gradient"):
            raise ConfigInvalid("sleep", f"selection: expected gain or gradient, found {self.selection}")
        if self.keep_versions < 0:
            raise ConfigInvalid("sleep", f"keep_versions: expected 0 or more, found {self.keep_versions}")
