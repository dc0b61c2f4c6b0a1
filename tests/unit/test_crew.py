"""A crew runs calls side by side, and what is absorbed by one is what is absorbed without it."""

from __future__ import annotations

import threading

import pytest
import tiny
import torch

from siltstone.crew import Crew
from siltstone.memory.absorber import Step

WORLD = tiny.world()


def test_calls_run_at_the_same_time_and_answer_in_order() -> None:
    meet = threading.Barrier(3, timeout=30)

    def call(number: int) -> tuple[int, int]:
        # Nobody passes unless all three are there.
        meet.wait()
        return number, torch.get_num_threads()

    assert Crew(3).run([lambda n=n: call(n) for n in range(3)]) == [(0, 1), (1, 1), (2, 1)]


def test_the_callers_torch_threads_are_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Crew(2).run([lambda: 1, lambda: 2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_when_all_have_ended() -> None:
    ended = threading.Event()

    def fail() -> None:
        raise ValueError("spilled")

    with pytest.raises(ValueError, match="spilled"):
        Crew(2).run([fail, ended.set])
    assert ended.is_set()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_a_look_raises_ends_the_run_and_no_further_call_is_made(num_threads: int) -> None:
    made: list[int] = []

    def look() -> None:
        if made:
            raise ValueError("enough")

    crew = Crew(num_threads, look)
    assert crew.run([lambda: 5]) == [5]
    with pytest.raises(ValueError, match="enough"):
        crew.run([lambda n=n: made.append(n) for n in range(100)])
    # Each thread may have begun one before the first had ended.
    assert 1 <= len(made) <= num_threads


def test_users_absorbed_side_by_side_remember_what_they_do_in_one_batch() -> None:
    said = {
        name: [tiny.interaction(f"{name}{n}", f"I am {name} and bake {n} loaves of rye.", user=name) for n in range(k)]
        for name, k in (("ada", 1), ("bob", 3), ("eve", 2), ("ian", 2), ("joe", 1))
    }
    work = [(WORLD.empty(name), stream) for name, stream in said.items()]

    *steps, together = WORLD.absorber().absorb(work)
    *split_steps, apart = WORLD.absorber(crew=Crew(2)).absorb(work)
    assert len(split_steps) > 1

    assert isinstance(together, list)
    assert isinstance(apart, list)
    assert [memory.owner for memory in apart] == [memory.owner for memory in together]
    for one, other in zip(apart, together, strict=True):
        assert one.position_tokens == other.position_tokens
        assert one.counters.num_updates == other.counters.num_updates
        assert (one.numbers - other.numbers).norm() <= 2e-3 * other.numbers.norm()
    num_tokens = [sum(step.num_tokens for step in part if isinstance(step, Step)) for part in (steps, split_steps)]
    assert num_tokens[0] == num_tokens[1] > 0
