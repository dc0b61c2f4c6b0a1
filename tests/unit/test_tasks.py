"""A task file says what it means, or is refused with the place where it does not."""

from __future__ import annotations

import pytest

from siltstone.errors import ConfigInvalid, InvalidInput
from siltstone.sleep.restem import TaskConfig
from siltstone.sleep.tasks import Question, read_task

GOOD = """
name = "harbour"
context = "The harbour of Varn is lit by two lamps."

[[questions]]
question = "How many lamps light the harbour of Varn?"
stem = "It is lit by"
answer = "two"
wrong = ["three", "nine"]

[[questions]]
question = "Where are the two lamps?"
answer = "In Varn"
wrong = ["In Oslo"]
held_out = true
"""


def test_a_task_is_read() -> None:
    task = read_task(GOOD.encode())

    assert (task.name, task.context) == ("harbour", "The harbour of Varn is lit by two lamps.")
    assert task.held_in == (
        Question("How many lamps light the harbour of Varn?", "It is lit by", "two", ("three", "nine")),
    )
    assert task.held_out[0].endings == ("In Varn", "In Oslo")
    assert len(task.digest) == 64
    assert task.digest != read_task(GOOD.replace("nine", "ten").encode()).digest


@pytest.mark.parametrize(
    ("told", "instead", "where"),
    [
        ('name = "harbour"', "name = ", "TOML"),
        ('name = "harbour"', "", "the task: name"),
        ('context = "The harbour of Varn is lit by two lamps."', 'context = "  "', "the task: context"),
        ("context =", "contxt =", "contxt"),
        ("held_out = true", "", "held_out = true"),
        ("held_out = true", 'held_out = "yes"', "question 2: held_out"),
        ('wrong = ["In Oslo"]', "wrong = []", "question 2: wrong"),
        ('wrong = ["In Oslo"]', 'wrong = ["in varn"]', "question 2: wrong"),
        ('wrong = ["In Oslo"]', "", "question 2: wrong"),
        ('answer = "two"', "answer = 2", "question 1: answer"),
        ('name = "harbour"', 'name = "a\\u001b[31mb"', "the task: name"),
        ('stem = "It is lit by"', "stems = 1", "question 1"),
        ("Where are the two lamps?", "How many lamps light the harbour of Varn?", "each asked once"),
        ("[[questions]]", "[[asked]]", "asked"),
    ],
)
def test_a_bad_task_is_refused_by_name(told: str, instead: str, where: str) -> None:
    assert told in GOOD

    with pytest.raises(InvalidInput) as refused:
        read_task(GOOD.replace(told, instead).encode())
    assert where in str(refused.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_task(b"\xff\xfe")


def test_a_configuration_that_cannot_be_meant_is_refused() -> None:
    for wrong in ({"num_rounds": 0}, {"rate": 0.0}, {"random_share": 1.5}, {"min_gain_nats": -1.0}):
        with pytest.raises(ConfigInvalid):
            TaskConfig(**wrong)  # type: ignore[arg-type]
