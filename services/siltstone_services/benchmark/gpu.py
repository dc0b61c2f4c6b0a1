"""Large shapes on a GPU: decoding against the bytes it must read, learning against its matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from siltstone_services.benchmark.decode import run_decode
from siltstone_services.benchmark.readings import Outcome, Reading, Say
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.update import run_update
from siltstone_services.benchmark.world import Shape, World

_COPY_NUMBERS = 1 << 28
_TOLERANCE = 2e-2
"""What bfloat16 leaves of equality, relative to the largest logit; of the update, after orthogonalised steps, more."""


def copy_rate(device: str, num_numbers: int = _COPY_NUMBERS, rounds: int = 10) -> Reading:
    """Measures how fast a device copies memory: bytes read and written."""
    source = torch.zeros(num_numbers, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = take_turns({"copy": Turn(lambda: target.copy_(source))}, rounds, device)["copy"]
    return Reading("memory copied", tuple(4 * num_numbers / one / 1e9 for one in seconds), "GB/s")


def run_large(
    shape: Shape,
    users: Sequence[int],
    device: str,
    dtype: torch.dtype,
    copied: Reading,
    say: Say,
    *,
    rounds: int = 7,
    steps: int = 8,
    tolerance: float = _TOLERANCE,
) -> list[Outcome]:
    """Measures one shape: decoding for each number of users, and one update for as many as fit."""
    say(f"{shape.name}: drawing weights")
    world = World(shape, device, dtype)
    decoded = run_decode(world, users, rounds, steps, say, tolerance=tolerance)
    outcomes = [_against_copy(world, users, decoded, copied)]
    for num_users in users:
        if not _fits(world, num_users):
            outcomes.append(Outcome(f"update, {shape.name}, {num_users} users", absence="does not fit the memory"))
            continue
        outcomes.append(run_update(world, num_users, max(2, rounds // 2), say, tolerance=10 * tolerance))
    return outcomes


def _against_copy(world: World, users: Sequence[int], decoded: Outcome, copied: Reading) -> Outcome:
    """Adds how much of the copy rate each batch reaches: weights and deltas are read once a step."""
    size = torch.finfo(world.dtype).bits // 8
    readings = list(decoded.readings)
    for num_users in users:
        num_bytes = size * (world.core.num_parameters + num_users * world.deltas.num_coefficients)
        for reading in decoded.readings:
            if reading.name == f"{decoded.case}, {num_users} users":
                reached = tuple(num_bytes * one / num_users / 1e9 / copied.value for one in reading.values)
                readings.append(Reading(f"{reading.name}, of the copy rate", reached, "x"))
    return Outcome(decoded.case, tuple(readings), decoded.refusal)


def _fits(world: World, num_users: int) -> bool:
    if world.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(world.device)
    # Levels twice while a step gathers and scatters them, gradients and steps: nine numbers a coefficient and level.
    return num_users * world.deltas.num_coefficients * 2 * 9 * 4 < 0.8 * free
