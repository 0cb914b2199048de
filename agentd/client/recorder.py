"""The pytest plugin: in a test session no client speaks to a daemon, and `agentd_recorder` hands a test what its code emitted.

    def test_refund(agentd_recorder):
        refund("INV-001")
        assert agentd_recorder.events("refund.sent")[0]["payload"]["amount"] == 42

`--agentd-live` or the ini key `agentd_live = true` leaves clients as they are; the fixture `agentd_live` does it for one
test. Clients in child processes are not reached: give those `AGENTD_DISABLED=1`. Loading this module loads no client.

A gate answers what the test says, and `unavailable` where it says nothing:

    def test_a_refund_that_is_denied(agentd_recorder):
        agentd_recorder.answer("action", "deny", reason="over the limit")
        with pytest.raises(GateDenied):
            refund("INV-001")
        assert agentd_recorder.gates[0].request["resource"] == "stripe"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from agentd.client import mode

if TYPE_CHECKING:
    from typing import Unpack

    from agentd.client.fields import AnswerFields
    from agentd.client.script import Answers, AskedGate

_STATUS = {"run.complete": "completed", "run.fail": "failed", "run.cancel": "cancelled"}
_PARTS = {"event": "events", "task": "tasks", "span": "spans", "decision": "decisions"}


class Recorder:
    """What every client of this process has emitted since the test began, as the daemon would have decoded it."""

    def __init__(self) -> None:
        from agentd.client.script import Script

        self.records: list[dict[str, Any]] = []
        self.script = Script()

    def take(self, data: bytes) -> None:
        """Hear one record."""
        import msgspec

        self.records.append(msgspec.json.decode(data))

    def clear(self) -> None:
        """Forget what was emitted and asked so far. Answers stay."""
        self.records.clear()
        self.script.gates.clear()

    def answer(self, gate: str, verdict: Answers, *, times: int | None = None, **fields: Unpack[AnswerFields]) -> None:
        """Have a gate (`*`: every gate) answer `allow`, `deny`, `review`, `pending` or `unavailable`.

        With `times` that often, before any answer without; one without replaces the one before. A function of the request
        gives the word, or a dict with it and other fields, or None for "ask the next". Clients that are live ask the daemon.
        """
        self.script.answer(gate, verdict, times, **fields)

    @property
    def gates(self) -> list[AskedGate]:
        """What was asked: name, request, key, run_id, verdict, agent_id, to, deadline."""
        return self.script.gates

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """All records of one kind, such as `snapshot`."""
        return [record for record in self.records if record["kind"] == kind]

    def events(self, type: str | None = None) -> list[dict[str, Any]]:  # noqa: A002 - the field's name
        """All events, or those of one type."""
        return [event for event in self.of_kind("event") if type is None or event["type"] == type]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """All decisions."""
        return self.of_kind("decision")

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Each run: its start's fields, those of its end, `status`, and its events, tasks, spans and decisions."""
        runs: dict[str, dict[str, Any]] = {}
        for record in self.records:
            run_id = record.get("run_id")
            if run_id is None:
                continue
            run = runs.setdefault(
                run_id, {"run_id": run_id, "status": "running", **{part: [] for part in _PARTS.values()}}
            )
            kind = record["kind"]
            if kind in _PARTS:
                run[_PARTS[kind]].append(record)
            elif kind == "run.start" or kind in _STATUS:
                run.update({name: value for name, value in record.items() if name != "kind"})
                run["status"] = _STATUS.get(kind, run["status"])
        return list(runs.values())


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--agentd-live` and the ini key of the same meaning."""
    group = parser.getgroup("agentd")
    group.addoption(
        "--agentd-live", action="store_true", default=False, help="let agentd clients speak to a real daemon"
    )
    parser.addini("agentd_live", "let agentd clients speak to a real daemon", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """From here on clients do nothing, those made while tests are collected included."""
    config.stash[_BEFORE] = mode.inert
    mode.inert = not (config.getoption("--agentd-live") or config.getini("agentd_live"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the process as it was found: a session may run inside another."""
    mode.inert = config.stash.get(_BEFORE, False)


@pytest.fixture
def agentd_recorder() -> Iterator[Recorder]:
    """What the code under test emits, through whichever client and whenever that was made."""
    recorder = Recorder()
    before = mode.tap, mode.script
    mode.tap, mode.script = recorder.take, recorder.script
    yield recorder
    mode.tap, mode.script = before


@pytest.fixture
def agentd_live() -> Iterator[None]:
    """Clients made in this test are real."""
    before, mode.inert = mode.inert, False
    yield
    mode.inert = before


_BEFORE = pytest.StashKey[bool]()
