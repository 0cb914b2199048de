"""Arming a crash point: by environment alone, and a name that is none is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentd import crashpoints
from agentd.crashpoints import HANG_VARIABLE, VARIABLE, Point
from agentd.errors import ConfigError


@pytest.fixture(autouse=True)
def disarmed(monkeypatch):
    monkeypatch.setattr(crashpoints, "_armed", crashpoints._Armed())


@pytest.mark.parametrize("variable", [VARIABLE, HANG_VARIABLE])
@pytest.mark.parametrize("wanted", ["nowhere", "seal.made:0", "seal.made:x"])
def test_a_point_that_is_none_is_said(variable, wanted):
    """With the variable's name and all points there are."""
    with pytest.raises(ConfigError, match=f"{variable}: '{wanted}': expected a point .intake.admitted"):
        crashpoints.arm({variable: wanted})


def test_without_the_variables_a_point_does_nothing():
    """Points cost a comparison."""
    crashpoints.arm({})
    for point in Point:
        crashpoints.reached(point)


@pytest.mark.parametrize(("variable", "outcome"), [(VARIABLE, -9), (HANG_VARIABLE, None)])
def test_the_second_time_it_dies_or_hangs(variable, outcome):
    """The count is kept; what hangs stays until somebody ends it."""
    code = (
        "from agentd.crashpoints import *\n"
        f"arm({{{variable!r}: 'seal.made:2'}})\n"
        "reached(Point.SEAL_MADE); print('once', flush=True); reached(Point.SEAL_STORED); reached(Point.SEAL_MADE); print('on')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout.readline() == "once\n"
        if outcome is None:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
        else:
            assert process.wait(10) == outcome
    finally:
        process.kill()
        assert process.communicate()[0] == ""
