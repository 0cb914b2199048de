"""The demonstration's acts that were asked for first: what is checked of them, and that it would notice."""

from __future__ import annotations

import copy

import pytest

from agentd.cli.demo_governed import asked_lines, judge

ASKED = [
    {"act": "publish", "platform": "decide.fyi", "verdict": "allow", "id": "1", "platform_id": "dec_1", "waited_s": 0.1, "done": True},
    {"act": "mail", "platform": "ASCEND", "verdict": "deny", "id": "2", "platform_id": "act_1", "waited_s": 0.1, "done": False},
    {"act": "order", "platform": "AegisOS", "verdict": "allow", "id": "3", "platform_id": "int_1", "waited_s": 2.5, "done": True},
]  # fmt: skip
HELD = {
    "dos_1": {"id": "dos_1", "face": "decisionos", "sent": {"chosenOptionKey": "q"}, "events": [{"decisionId": "dos_1"}]},
    "dec_1": {"id": "dec_1", "face": "decidefyi", "events": [{}, {}]},
    "act_1": {"id": "act_1", "face": "ascend", "completions": 0, "reason": "personal data must stay inside"},
    "int_1": {"id": "int_1", "face": "aegis", "events": [{"status": "pending", "by": "agent"}, {"status": "approved", "by": "person"}]},
}  # fmt: skip


class FakeSandbox:
    """Holds what platforms would."""

    def __init__(self, held):
        self.held = held

    def runs(self):
        return [{"id": key, "face": one["face"]} for key, one in self.held.items()]

    def run(self, key):
        return self.held[key]


@pytest.fixture
def account():
    return {"chosen": "q", "asked": copy.deepcopy(ASKED)}, copy.deepcopy(HELD)


def broken(account):
    governed, held = account
    return [check.what for check in judge(governed, FakeSandbox(held)) if not check.ok]


def test_when_the_platforms_agree(account):
    """Decision, allowed act, denied act and approved spend are all found as they were told."""
    assert broken(account) == []


@pytest.mark.parametrize(
    ("change", "notices"),
    [
        (lambda _, held: held.pop("dos_1"), "ledger once (0)"),
        (lambda _, held: held["dos_1"]["events"].clear(), "snapshot (0)"),
        (lambda _, held: held["dos_1"]["events"][0].update(decisionId="local"), "snapshot (0)"),
        (lambda _, held: held["dec_1"]["events"].pop(), "1 receipts"),
        (lambda told, _: told["asked"][0].update(verdict="review"), "decide.fyi allowed"),
        (lambda told, _: told["asked"][1].update(done=True), "ASCEND denied"),
        (lambda told, _: told["asked"][1].update(verdict="allow"), "ASCEND denied"),
        (lambda _, held: held["act_1"].update(completions=1), "ASCEND denied"),
        (lambda _, held: held["int_1"]["events"][1].update(by="policy"), "left to a person"),
        (lambda told, _: told["asked"][2].update(verdict="pending", done=False), "left to a person"),
        (lambda _, held: held.pop("int_1"), "left to a person"),
    ],
)
def test_whatever_is_wrong_is_noticed(account, change, notices):
    """Each of the four fails its own check when it is broken."""
    change(*account)
    assert [notices in what for what in broken(account)] == [True]


def test_what_was_asked_is_shown():
    """A line for each act: of whom, what was said, after how long."""
    lines = asked_lines(ASKED)
    assert lines[1].split() == ["asked", "before", "acting", "of", "verdict", "after"]
    assert [line.split()[-2:] for line in lines[2:]] == [["allow", "0.1s"], ["deny", "0.1s"], ["allow", "2.5s"]]
    assert asked_lines([]) == []
