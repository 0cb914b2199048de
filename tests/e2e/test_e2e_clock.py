"""The real daemon under a wall clock that jumps, by libfaketime; time itself goes on as ever. See tests/contract/test_wall_clock.py."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from harness import AGENT, Frames, http_call, wait_for

FACES = ("agentos", "aegis")
SPEND = {"amount": 5, "currency": "USD", "reason": "office supplies"}
AHEAD, BACK, TO_1971, TO_2098 = "+366d", "-366d", "-20000d", "+26200d"
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not here (Debian: apt-get install faketime)")


class Wrong:
    """A daemon and its wall clock, which is off by what a file says."""

    def __init__(self, world):
        self.world = world
        self.file = world.folder / "clock"
        url = world.platform.url
        aegis = {"platform": "aegis", "base_url": f"{url}/aegis", "agent_id": AGENT, "api_key": {"env": "KEY"}}
        sections = {"destinations.aegis": aegis, "batch": {"max_interval": "300ms"}}
        self.daemon = world.daemon(start=False, intake={"reference_wait": "1s"}, **sections)
        self.set("+0d")

    def set(self, offset):
        """What the daemon's next look at its clock shows."""
        new = self.file.with_suffix(".new")
        new.write_text(offset)
        new.replace(self.file)

    def start(self):
        with preloaded(self.file):
            self.daemon.start()

    def tell(self, *records):
        with Frames(self.daemon) as client:
            assert client.deliver(self.world.ledger, list(records)) == {}

    def ask(self, key):
        question = {"gate": "intent", "request": SPEND, "key": key, "deadline": 10.0 if key == "final" else 1.5}
        status, said = http_call(self.daemon.socket, "POST", "/v1/gate", json.dumps(question).encode())
        assert status == 200, said
        return said

    def years(self):
        """Those that its log is of: what it took the time to be."""
        return {line["time"][:4] for line in self.daemon.entries()}


@contextlib.contextmanager
def preloaded(file):
    """For a process that is started meanwhile."""
    added = {
        "LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def test_a_wall_clock_that_jumps_breaks_nothing(world):
    """Records queued, gathering, in backoff, waiting for their run, gates pending and remembered: all as if nothing had been."""
    wrong, ledger = Wrong(world), world.ledger
    daemon = wrong.daemon
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.decision_delay=0s"))
    wrong.start()
    wrong.tell(ledger.start("r"), *ledger.events_of("r", 5))
    assert wrong.ask("final")["verdict"] == "allow"
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.decision_delay=1h"))
    pending = wrong.ask("pending")
    for offset in (AHEAD, TO_1971, TO_2098):
        world.platform.down()
        wrong.tell(*ledger.events_of("r", 5))
        wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
        wrong.set(offset)
        wrong.tell(*ledger.events_of("r", 5), ledger.event(offset))
        assert 0 <= daemon.books()["oldest_age_s"] < 60
        wrong.tell(ledger.start(offset))  # within reference_wait
        world.platform.up()
        assert daemon.drained(10)["dead"] == 0
        assert wrong.ask("final")["repeated"]
        assert http_call(daemon.socket, "GET", f"/v1/gates/{pending['gate_id']}")[1]["verdict"] == "pending"
    said = world.platform.ask(lambda: world.platform.sandbox._emulation.act("aegis", pending["platform_id"], "approve"))
    assert said.status == 200
    assert http_call(daemon.socket, "GET", f"/v1/gates/{pending['gate_id']}?wait=20")[1]["verdict"] == "allow"
    assert len(wrong.years()) >= 3, "the clock was never set"
    assert daemon.balanced()["queued"] == 0


def test_over_a_restart_all_that_waits_goes_out(world):
    """However long it was down by what the clock says: what is queued is delivered at once, to the run that it is of."""
    wrong, ledger = Wrong(world), world.ledger
    daemon = wrong.daemon
    daemon.configure(shutdown={"drain_timeout": "100ms"})
    wrong.start()
    wrong.tell(ledger.start("r"), *ledger.events_of("r", 5))
    daemon.drained()
    for offset, end in ((AHEAD, daemon.stop), (BACK, daemon.kill)):
        world.platform.down()
        wrong.tell(*ledger.events_of("r", 5), *ledger.whole_run(offset, 3))
        end()
        wrong.set(offset)
        wrong.start()
        assert daemon.books()["oldest_age_s"] >= 0
        world.platform.up()
        assert daemon.drained(10)["dead"] == 0
    assert daemon.balanced()["delivered"] == 6 + 2 * 10
