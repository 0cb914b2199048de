"""The demonstration's judgement and its screens: what it checks, and that it would notice."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from agentd.cli import demo_screen, main
from agentd.cli.demo_report import Outage, conclude, document, emitted, ended, final_screen
from agentd.cli.demo_screen import Lines, LiveScreen, Scene, screen
from agentd.cli.status import read_status

IDS = [f"0190000{n}-0000-7000-8000-000000000000" for n in range(10)]


class FakeSandbox:
    """Holds runs as the sandbox would show them."""

    def __init__(self, runs):
        self.runs_held = runs
        self.duplicates = 0
        self.keys = {"keys": 9, "repeated": 0, "conflicting": 0}
        self.counted = {"duplicate_tasks": 0, "second_terminals": 0}

    def run(self, run_id):
        return self.runs_held[run_id]

    def state(self):
        faces = {"agentos": {"details": self.counted}}
        return type("State", (), {"duplicates": self.duplicates, "keys": self.keys, "faces": faces})


def _report(run_id, error=None):
    return {
        "run_id": run_id,
        "question": f"What about {run_id}?",
        "answer": None if error else "This much.",
        "error": error,
        "events": ["llm.request", "llm.response", "step"],
        "tasks": 1,
    }


def _held(report, first):
    return {
        "run_id": report["run_id"],
        "status": "failed" if report["error"] else "completed",
        "error_message": f"DeadEnd: {report['error']}",
        "terminals": ["fail" if report["error"] else "complete"],
        "tasks": [{}],
        "tokens": {"input_tokens": 5, "output_tokens": 2},
        "events": [{"type": name, "payload": {"agentd_id": IDS[first + n]}} for n, name in enumerate(report["events"])],
    }


class Account:
    """The three accounts of two runs, which agree until a test changes one."""

    def __init__(self):
        self.reports = [_report("a"), _report("b", error="no way")]
        self.sandbox = FakeSandbox({"a": _held(self.reports[0], 0), "b": _held(self.reports[1], 3)})
        self.there = {"platform": "agentos", "state": "ok", "admitted": 14, "delivered": 14}
        self.intake = {"accepted": 14, "refused": {}}
        self.outage = Outage(1.0, 5, 6)
        self.lost = 0

    def judge(self):
        status = {
            "agentd": "0",
            "pid": 1,
            "state": "running",
            "intake": self.intake,
            "destinations": {"agentos": self.there},
        }
        return conclude({"runs": self.reports, "lost": self.lost}, read_status(status), self.sandbox, self.outage)

    def broken(self):
        """The first word of each check that failed, by which it is recognised."""
        return [check.what for check in self.judge().checks if not check.ok]


@pytest.fixture
def account():
    return Account()


def test_when_all_accounts_agree(account):
    """Every promise is kept, and the document says so."""
    assert account.broken() == []
    assert document(account.judge(), 12.34)["ok"]
    assert [emitted(report) for report in account.reports] == [7, 7]


@pytest.mark.parametrize(
    ("change", "notices"),
    [
        (lambda a: a.intake.update(accepted=13), "every record was accepted: 13 of 14"),
        (lambda a: a.intake.update(refused={"invalid": 1}), "1 refused"),
        (lambda a: setattr(a, "lost", 2), "2 lost"),
        (lambda a: a.there.update(delivered=13, queued=1), "every accepted record was delivered: 13 of 14"),
        (lambda a: a.there.update(delivered=13, dead=1), "1 dead"),
        (lambda a: a.there.update(balanced=False), "the books balance"),
        (lambda a: a.there.update(shed=1), "the books balance"),
        (
            lambda a: a.sandbox.runs_held["a"]["events"].pop(),
            "the platform holds every run as its agent told it: 1 of 2",
        ),
        (lambda a: a.sandbox.runs_held["a"]["tasks"].pop(), "; not a"),
        (lambda a: a.sandbox.runs_held["a"]["events"].reverse(), "order was kept within each run; not in a"),
        (
            lambda a: a.sandbox.runs_held["b"]["events"][1]["payload"].clear(),
            "order was kept within each run; not in b",
        ),
        (lambda a: setattr(a.sandbox, "duplicates", 3), "3 came again"),
        (lambda a: a.sandbox.keys.update(conflicting=1, repeated=1), "came again"),
        (lambda a: setattr(a, "outage", Outage(1.0, 0, 6)), "0 more records were accepted"),
        (lambda a: a.sandbox.runs_held["b"].update(status="completed"), "each run ended as its agent did"),
        (lambda a: a.sandbox.runs_held["a"].update(terminals=["complete"] * 2), "each run ended as its agent did"),
        (lambda a: a.sandbox.runs_held["b"].update(error_message="?"), "each run ended as its agent did"),
        (lambda a: a.sandbox.runs_held.pop("b"), "; not b"),
    ],
)
def test_whatever_is_wrong_is_noticed(account, change, notices):
    """Each promise fails its own check when it is broken: none of them can only say OK."""
    change(account)
    assert any(notices in what for what in account.broken())
    assert not document(account.judge(), 1.0)["ok"]


def test_a_repeat_after_a_lost_answer_is_no_fault_if_it_is_recognisable(account):
    """Promise 4: the same bytes under the same key may come twice; what counts is that they can be told apart."""
    account.sandbox.duplicates = 3
    account.sandbox.keys = {"keys": 9, "repeated": 1, "conflicting": 0}
    assert account.broken() == []


def test_the_daemons_end_is_judged():
    """Anything but exit code 0 after SIGTERM is a broken promise."""
    assert ended(0).ok
    assert not ended(-9).ok


@pytest.mark.parametrize("count", [2, 8, 9, 64])
def test_the_last_screen_fits(account, count):
    """However many runs and however long their answers: at most 40 lines of at most 100 columns."""
    report = document(account.judge(), 12.3)
    row = report["runs"][0] | {"question": "Which modules of the standard library?", "answer": "long " * 100}
    asked = [{"act": "order a printed copy for 42 EUR", "platform": "AegisOS", "verdict": "allow", "waited_s": 2.5}] * 3
    checks = report["checks"] + [{"ok": True, "what": "of what was asked first"}] * 5  # and the daemon's end
    lines = final_screen(report | {"runs": [row] * count, "asked": asked, "checks": checks})
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_the_last_screen_says_what_failed(account):
    """A broken promise stands there as FAILED, a kept one as OK."""
    account.there.update(delivered=13, dead=1)
    lines = final_screen(document(account.judge(), 1.0))
    assert any(line.startswith("FAILED  every accepted record") for line in lines)
    assert any(line.startswith("OK      every record was accepted") for line in lines)
    assert "    no way" in lines


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def scene():
    scene = Scene(Clock())
    scene.platform = "up"
    scene.note("it begins")
    scene.count(10, 4, 6, 0)
    scene.count(12, 2, 10, 0)
    scene.runs = [{"id": "1", "status": "running", "events": 3, "tasks": 1}]
    scene.questions = {"1": "Where is deque used?"}
    return scene


def test_lines_come_once_a_second(scene, capsys):
    """Without a terminal: each note once, the figures once a second, nothing redrawn."""
    lines = Lines(to_stderr=False)
    lines.draw(scene)
    lines.draw(scene)
    scene._clock.now += 1.2
    lines.draw(scene)
    lines.draw(scene)
    lines.close()
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (
        ["  0.0s  it begins", "  1.2s  accepted   12   queued    2   delivered   10   dead 0   platform up"],
        "",
    )
    assert scene.most_queued == 4


def test_with_json_progress_goes_to_standard_error(scene, capsys):
    """Standard output is for the one document."""
    screen(to_stderr=True).draw(scene)
    assert capsys.readouterr() == ("", "  0.0s  it begins\n")


def test_the_live_screen_shows_figures_runs_and_notes(scene, monkeypatch):
    """On a terminal: one screen of at most 100 columns and 40 lines, with everything on it."""
    from rich.console import Console

    for n in range(30):
        scene.note(f"note {n} " + "x" * 200)
    scene.runs *= 30
    console = Console(file=io.StringIO(), width=100, height=40)
    console.print(demo_screen._drawn(scene))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert any("accepted" in line and "12" in line for line in lines)
    assert any("Where is deque used?" in line and "running" in line for line in lines)
    assert any("note 29" in line for line in lines)


def test_the_live_screen_is_gone_when_it_is_closed(scene, monkeypatch):
    """Opened, drawn and closed without a trace in what is printed afterwards."""
    monkeypatch.setenv("TERM", "dumb")
    live = LiveScreen()
    live.draw(scene)
    live.close()


@pytest.mark.parametrize("words", [["--runs", "0"], ["--runs", "65"], ["--outage", "soon"], ["--outage", "0s"]])
def test_options_out_of_range_are_usage_errors(words):
    """Nothing is started for a command line that can't be meant."""
    assert CliRunner().invoke(main, ["demo", *words]).exit_code == 2
