"""How far two stored cores are from each other."""

from __future__ import annotations

import math
import os
from pathlib import Path

from siltstone.adapters.core_store import CoreStore
from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.evaluation.office_material import load_office
from siltstone.gate.anchors import Passage, measure_anchors
from siltstone.model.core import Core


def mean_divergence(home: Path, digest: str, other: str) -> float:
    """Returns the mean over the anchors' tokens of KL(one || other), in nats.

    Raises: NotFound for a core that is not there any more; Corrupt; InvalidInput when their vocabularies differ.
    """
    loaded = [CoreStore(home).load(one) for one in (digest, other)]
    sizes = [one.config.vocab_size for one in loaded]
    if len(set(sizes)) != 1:
        raise InvalidInput("versions", "cores of one vocabulary", f"vocabularies of {sizes[0]} and {sizes[1]} tokens")
    one, two = (Core(core.config, core.tensors) for core in loaded)
    passages = [Passage(f"held-out-{number}", text.text) for number, text in enumerate(load_office().held_out)]
    found = measure_anchors(two, one, one, loaded[0].tokenizer, passages, Crew(os.cpu_count() or 1))
    (divergences,) = (measured.candidate for measured in found if measured.name == "kl_champion")
    return math.fsum(divergences) / len(divergences)
