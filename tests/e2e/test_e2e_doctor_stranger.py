"""Doctor for a user who may not connect: what concerns him, and nothing of what only the daemon's own user can judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import KEY, clean_environment, others_must_read_agentd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
# everything is loaded before: the other user need not be able to read our environment
AS_NOBODY = """
import importlib, os, pkgutil, sys
import agentd, encodings.idna
for module in pkgutil.walk_packages(agentd.__path__, "agentd."):
    if not module.name.endswith(("__main__", "recorder")):
        importlib.import_module(module.name)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from agentd.cli import main
main(sys.argv[1:])
"""


def as_nobody(world, daemon, *more):
    environment = clean_environment(Path("/nonexistent"), AGENTD_SOCKET=daemon.socket)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *more], env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    findings = {}
    for finding in json.loads(done.stdout):
        findings.setdefault(finding["check"], []).append(finding)
    return findings, done.returncode


def test_who_may_not_connect_hears_why(world):
    """The socket fails with its mode and the cure; neither configuration nor state folder of others is held against him."""
    others_must_read_agentd()
    world.folder.chmod(0o755)
    daemon = world.daemon()
    findings, status = as_nobody(
        world, daemon, "--config", str(daemon.config), "doctor", "--json", "--socket", daemon.socket
    )
    assert (status, findings["socket"][0]["level"]) == (1, "fail")
    assert "may not connect" in findings["socket"][0]["what"]
    assert "[listen] group" in findings["socket"][0]["cure"]
    others = {check: [one["level"] for one in found] for check, found in findings.items() if check != "socket"}
    assert all(level == "ok" for levels in others.values() for level in levels), findings
    assert KEY not in json.dumps(findings)
    Path(daemon.socket).chmod(0o666)
    findings, status = as_nobody(
        world, daemon, "--config", str(daemon.config), "doctor", "--json", "--socket", daemon.socket
    )
    assert (status, findings["daemon"][0]["level"]) == (0, "ok"), findings
    assert "closed to this user" in findings["state"][0]["what"]
