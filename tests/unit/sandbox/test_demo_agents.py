"""The demonstration's agents: tools that really work, a planner that follows its rules, and an account of all that was told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentd import Client
from agentd.sandbox import demo
from agentd.sandbox.demo import QUESTIONS, Agent, Call, DeadEnd, Library, ToolFailed, brief, plan_for

MODULES = {
    "alpha.py": "import os\nimport json.decoder\n\n\nclass A:\n    def method(self):\n        pass\n\n\nclass B(A):\n    pass\n",
    "beta.py": "from os import path\nfrom . import alpha\n\n# TODO: count more\nvalue = make(1)\n\n\ndef make(x):\n    return x\n",
    "gamma.py": "import os, beta\n\nresult = make(2) + make(3)\n\n\ndef _hidden():\n    pass\n",
    "broken.txt": "not a module",
    "test/test_alpha.py": "import alpha\n",
}


@pytest.fixture
def library(tmp_path):
    """Three modules, small enough to be counted by hand."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Library(tmp_path)


def _run(library, question):
    return Agent(Client(disabled=True), library, question, lambda: None).work()


# -- tools


def test_list_files(library):
    """Modules by pattern, without tests and without what is no module."""
    assert library.call("list_files", {"pattern": "*.py"}) == ["alpha.py", "beta.py", "gamma.py"]
    assert library.call("list_files", {"pattern": "a*"}) == ["alpha.py"]
    assert library.call("list_files", {"pattern": "**/*.py"}) == ["alpha.py", "beta.py", "gamma.py"]


def test_links_that_lead_outside_are_no_modules(library, tmp_path_factory):
    """Debian links a module of its library to /etc: such a link is left out, one within the library stays."""
    outside = tmp_path_factory.mktemp("etc") / "sitecustomize.py"
    outside.write_text("import os\n")
    (library.root / "sitecustomize.py").symlink_to(outside)
    (library.root / "dangling.py").symlink_to(library.root / "nowhere.py")
    (library.root / "also_alpha.py").symlink_to(library.root / "alpha.py")
    names = library.call("list_files", {"pattern": "*.py"})
    assert names == ["alpha.py", "also_alpha.py", "beta.py", "gamma.py"]
    assert library.call("count", {"what": "lines", "files": names})["alpha.py"] == 12


def test_read_file(library):
    """Length, beginning and public names of a module."""
    seen = library.call("read_file", {"name": "gamma.py", "lines": 1})
    assert seen == {"lines": 8, "head": ["import os, beta"], "defines": []}
    assert library.call("read_file", {"name": "alpha.py"})["defines"] == ["A", "B"]


def test_search(library):
    """Lines by expression, counted by file, the first few with their place."""
    found = library.call("search", {"pattern": r"\bmake\(", "files": ["alpha.py", "beta.py", "gamma.py"]})
    assert found["matches"] == 3
    assert found["files"] == {"beta.py": 2, "gamma.py": 1}
    assert found["first"][0] == {"file": "beta.py", "line": 5, "text": "value = make(1)"}


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        ("classes", {"alpha.py": 2, "beta.py": 0}),
        ("functions", {"alpha.py": 1, "beta.py": 1}),
        ("lines", {"alpha.py": 12, "beta.py": 10}),
        ("imports", {"json": 1, "os": 2}),
    ],
)
def test_count(library, what, counts):
    """Counted from the syntax tree; relative imports are no modules of the library."""
    assert library.call("count", {"what": what, "files": ["alpha.py", "beta.py"]}) == counts


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("read_file", {"name": "missing.py"}, "FileNotFoundError"),
        ("read_file", {"name": "../../etc/passwd"}, "PermissionError: .* outside the library"),
        ("read_file", {}, "TypeError"),
        ("count", {"what": "commas", "files": []}, "can't count commas"),
        ("count", {"what": "lines", "files": ["broken.txt"]}, "SyntaxError"),
        ("delete", {}, "no tool delete"),
    ],
)
def test_a_tool_that_can_not(library, tool, arguments, message):
    """Whatever goes wrong in a tool is one error with the reason, for the planner to make something of."""
    with pytest.raises(ToolFailed, match=message):
        library.call(tool, arguments)


def test_the_tools_work_on_the_real_library():
    """On this machine there is a standard library, and the tools see it as it is."""
    library = Library()
    assert {"heapq.py", "json/decoder.py"} <= {*library.list_files("*.py"), *library.list_files("json/*.py")}
    assert "heappush" in library.read_file("heapq.py")["defines"]
    assert library.count("classes", ["argparse.py"])["argparse.py"] > 10
    assert library.search(r"class JSONDecoder\b", ["json/decoder.py"])["matches"] == 1


# -- the planner


def test_each_question_has_a_rule():
    """No question of the demonstration is beyond the planner."""
    assert [next(plan_for(question)).tool for question in QUESTIONS] == [
        "read_file" if "What does" in question else "list_files" for question in QUESTIONS
    ]


def test_a_question_that_no_rule_understands():
    """The planner says so, and makes nothing up."""
    with pytest.raises(DeadEnd, match="no rule understands"):
        plan_for("What is the meaning of life?")


def test_a_call_in_words():
    """Long lists are named by their length: that is the text whose words are counted as tokens."""
    assert str(Call("count", {"what": "classes", "files": ["a", "b"]})) == "call count(what=classes, files=2 files)"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (
            "Which modules define the most classes?",
            "Most classes: alpha.py (2), beta.py (0), gamma.py (0); alpha.py: 12 lines.",
        ),
        ("Which module is imported most?", "Imported by most modules: os (3), json (1), beta (1)."),
        ("Where is make used?", "make is used 3 times in 2 modules: beta.py (2), gamma.py (1)."),
        ("Which TODO comments are left?", "1 such comments in 1 modules, most in beta.py (1)."),
        ("What does beta.py do?", "beta.py: 10 lines, defines make; 1 modules use it."),
    ],
)
def test_answers_follow_from_the_files(library, question, answer):
    """Each rule leads to the answer that a reader of these three files would give."""
    report = _run(library, question)
    assert (report.answer, report.error) == (answer, None)


def test_a_module_that_is_not_there_is_looked_for_before_giving_up(library):
    """A missing file leads to a search; where that finds something, the run goes on with it."""
    report = _run(library, "What does value.py do?")
    assert report.answer == "value.py: 10 lines, defines make; 0 modules use it."
    assert "tool.failed" in report.events


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("What does quantum.py do?", "there is no quantum.py, and nothing here speaks of quantum"),
        ("Where is nothing_at_all used?", "nothing here uses nothing_at_all"),
        ("Who are you?", "no rule understands 'Who are you?'"),
    ],
)
def test_a_run_that_comes_to_a_dead_end(library, question, error):
    """Where no rule leads further the run fails, with the planner's reason."""
    report = _run(library, question)
    assert (report.answer, report.error) == (None, error)


def test_an_empty_library_is_a_dead_end(tmp_path):
    """A Python without sources gives no invented answer."""
    assert _run(Library(tmp_path), QUESTIONS[0]).error == "there are no modules here to count"


# -- what agentd is told


def test_the_report_is_what_was_emitted(library, agentd_recorder):
    """The account that is compared with the platform's names every event in its order, and counts tasks and tokens truly."""
    report = _run(library, "Where is make used?")
    kinds = {"event": lambda record: record["type"], "span": lambda record: record["name"]}
    told = [kinds[record["kind"]](record) for record in agentd_recorder.records if record["kind"] in kinds]
    assert told == report.events
    (run,) = agentd_recorder.runs
    assert (run["run_id"], run["status"], run["input"]) == (
        report.run_id,
        "completed",
        {"question": "Where is make used?"},
    )
    assert run["output"] == {"answer": report.answer}
    assert run["usage"] == {"input_tokens": report.input_tokens, "output_tokens": report.output_tokens}
    assert [task["status"] for task in run["tasks"]] == ["running", "completed"] * report.tasks


def test_tokens_are_words(library, agentd_recorder):
    """What is called tokens are the words of the very texts that the events carry."""
    report = _run(library, "Where is make used?")
    prompts = [event["payload"]["prompt"] for event in agentd_recorder.events("llm.request")]
    replies = [event["payload"]["response"] for event in agentd_recorder.events("llm.response")]
    assert sum(len(prompt.split()) for prompt in prompts) == report.input_tokens
    assert sum(len(reply.split()) for reply in replies) == report.output_tokens
    assert {event["payload"]["model"] for event in agentd_recorder.events("llm.request")} == {"rule-based-planner"}
    assert replies[-1] == f"answer: {report.answer}"


def test_a_failing_run_tells_how_it_failed(library, agentd_recorder):
    """The tool's failure, the planner's surrender, the task and the run: all are on record."""
    report = _run(library, "What does quantum.py do?")
    (failed,) = agentd_recorder.events("tool.failed")
    assert failed["level"] == "error"
    assert "FileNotFoundError" in failed["payload"]["error"]
    assert agentd_recorder.events("llm.response")[-1]["payload"]["response"] == f"give up: {report.error}"
    (run,) = agentd_recorder.runs
    assert run["status"] == "failed"
    assert report.error in run["error_message"]
    assert [task["status"] for task in run["tasks"]] == ["running", "failed"]


def test_several_runs_at_once_keep_apart(library, agentd_recorder):
    """Each run's events are its own, though all share one client."""
    reports = demo.work(Client(disabled=True), library, runs=10, pace_s=0.0)
    assert [report.question for report in reports] == [*QUESTIONS, *QUESTIONS[:2]]
    assert len({report.run_id for report in reports}) == 10
    by_run = {run["run_id"]: run for run in agentd_recorder.runs}
    for report in reports:
        told = by_run[report.run_id]
        assert len(told["events"]) + len(told["spans"]) == len(report.events)
        assert told["status"] == ("failed" if report.error else "completed")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (list(range(9)), {"entries": 9, "first": [0, 1, 2, 3, 4]}),
        ({str(n): n for n in range(9)}, {"entries": 9, "first": {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}}),
        ({"files": list("abcdefg")}, {"files": {"entries": 7, "first": list("abcde")}}),
        (ToolFailed("no"), "no"),
        ("text", "text"),
    ],
)
def test_events_carry_the_first_few(value, shown):
    """A list of two hundred names is told by its length and its beginning."""
    assert brief(value) == shown


def test_the_child_without_a_daemon_says_so(tmp_path):
    """Started by hand without a daemon, the agents end with a reason instead of working for nobody."""
    env = {"AGENTD_REQUIRED": "1", "AGENTD_SOCKET": str(tmp_path / "none.sock")}
    done = subprocess.run(
        [sys.executable, "-m", "agentd.sandbox.demo"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "none.sock" in done.stderr
