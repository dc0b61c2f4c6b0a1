from __future__ import annotations

import os
import signal
import subprocess
import sys

from siltstone.faults import FAULT_VARIABLE, fault_point

SCRIPT = """
from siltstone.faults import fault_point
for number in range(5):
    print(number, flush=True)
    fault_point("one")
    fault_point("two")
"""


def run(setting):
    environment = {**os.environ, FAULT_VARIABLE: setting}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_an_armed_point_kills_when_it_is_reached_for_the_named_time():
    result = run("two:3")
    assert result.returncode == -signal.SIGKILL
    assert result.stdout.split() == ["0", "1", "2"]


def test_another_point_or_too_few_times_or_none_kills_nothing():
    for setting in ("three:1", "two:6", ""):
        assert run(setting).returncode == 0


def test_an_unarmed_point_does_nothing():
    fault_point("one")
