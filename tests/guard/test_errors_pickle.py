"""Every error survives pickling, with its data."""

from __future__ import annotations

import inspect
import pickle
import typing

import pytest

from siltstone import errors

SAMPLES: dict[object, object] = {str: "text", int: 7, float: 0.5}
ALL_ERRORS = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.SiltstoneError)
]


def sample(error: type[Exception]) -> Exception:
    """Builds an error with one distinct argument for every parameter of its constructor."""
    hints = typing.get_type_hints(error.__init__)
    parameters = [] if error.__init__ is Exception.__init__ else list(inspect.signature(error).parameters.values())
    arguments = []
    for index, parameter in enumerate(parameters):
        value = SAMPLES[hints[parameter.name]]
        arguments.append(f"{value} {index}" if isinstance(value, str) else value)
    return error(*arguments)


def survives(original: Exception) -> bool:
    """Says whether an error is the same after pickling."""
    try:
        copy = pickle.loads(pickle.dumps(original))
    except TypeError:
        return False
    same = (type(copy), copy.args, vars(copy), str(copy))
    return same == (type(original), original.args, vars(original), str(original))


def test_there_are_errors_to_check() -> None:
    assert len(ALL_ERRORS) > 5


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: error.__name__)
def test_an_error_survives_pickling(error: type[Exception]) -> None:
    assert survives(sample(error))


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: error.__name__)
def test_an_error_tells_all_of_its_data(error: type[Exception]) -> None:
    original = sample(error)
    assert all(str(argument) in str(original) for argument in original.args)


class ForgetsItsData(Exception):
    """What a careless constructor looks like: it hands a ready sentence on in place of its arguments."""

    def __init__(self, partition: int, epoch: int) -> None:
        super().__init__(f"partition {partition}, epoch {epoch}")


def test_an_error_that_forgets_its_data_is_found() -> None:
    assert not survives(sample(ForgetsItsData))
