"""Prometheus' own checker, where it is there (Debian's package `prometheus`)."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

REQUIRED = "AGENTD_TEST_PROMTOOL"  # "required": a test that can't run fails


def promtool(*arguments, stdin="", cwd=None):
    """Run it; its output, and a failure where it finds a fault. Skips where it is not installed."""
    tool = shutil.which("promtool")
    if tool is None:
        reason = "promtool is not here (Debian: apt-get install prometheus)"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(
        [tool, *arguments], input=stdin, capture_output=True, text=True, cwd=cwd, check=False, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
