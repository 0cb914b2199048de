"""`agentd demo`: the first thing that people see, and it says itself whether the promises were kept."""

import json
from pathlib import Path

import pytest


@pytest.mark.timeout(90)
def test_the_demo_keeps_its_promises(world):
    """Section 6: `agentd demo` needs no configuration, survives its outage, finds every check in order and leaves nothing behind."""
    before = set(Path("/tmp").glob("agentd-demo-*"))
    done = world.cli("demo", "--json", "--outage", "1s", within_s=80)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert len(report["checks"]) >= 5
    assert all(check["ok"] for check in report["checks"]), report["checks"]
    assert (report["dead"], report["queued"]) == (0, 0)
    assert report["delivered"] == report["accepted"] > 100
    assert report["outage"]["accepted"] > 0
    assert len(report["runs"]) == 8
    assert set(Path("/tmp").glob("agentd-demo-*")) == before
