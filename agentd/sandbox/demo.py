"""Agents for the demonstration: they answer questions about Python's own standard library, as it lies on this machine.

Nothing is made up. The tools list, read, search and count real files; a planner with rules stands in the model's place and
calls itself that; its prompts and answers are the texts that were exchanged, and its tokens are their words. One question leads
to a file that does not exist, and that run fails.

    AGENTD_SOCKET=… python -m agentd.sandbox.demo     prints one JSON document: what each run told agentd

The agents know agentd as any agent does, by `from agentd import Client`.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import random
import re
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentd import Client
from agentd.sandbox.demo_governed import Publisher

if TYPE_CHECKING:
    from agentd.client.runs import Run

AGENT = "librarian"
MODEL = "rule-based-planner"
_HEAD_LINES = 12  # of a file that is read: enough for its first paragraph
_SHOWN = 5  # matches and names that go into an event; the rest is counted
_NAMED = 3  # modules in an answer, so that it fits on a line
_STORED_WITHIN_S = 30.0
_ROUNDS = 10  # into so many calls a survey of all files is cut, as a model with a small window would

# -- tools -------------------------------------------------------------------------------------------------------------------


class Library:
    """The tools: read-only, and only below `root`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or Path(sysconfig.get_paths()["stdlib"])).resolve()
        self._summaries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()  # parsing is the costly part: each file once, whichever run comes first

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Run a tool by its name. Raises ToolFailed with the reason."""
        tools: dict[str, Callable[..., Any]] = {
            "list_files": self.list_files,
            "read_file": self.read_file,
            "search": self.search,
            "count": self.count,
        }
        if tool not in tools:
            raise ToolFailed(f"no tool {tool}; there are {', '.join(tools)}")
        try:
            return tools[tool](**arguments)
        except (OSError, TypeError, ValueError, SyntaxError) as error:
            raise ToolFailed(f"{type(error).__name__}: {error}") from error

    def list_files(self, pattern: str = "*.py") -> list[str]:
        """The names of the modules that match, sorted."""
        found = (
            path.relative_to(self.root)
            for path in self.root.glob(pattern)
            if path.suffix == ".py" and self._is_own(path)
        )
        return sorted(str(name) for name in found if not {"test", "tests", "site-packages"} & set(name.parts))

    def _is_own(self, path: Path) -> bool:
        """A file of the library itself: Debian links its `sitecustomize.py` to /etc."""
        return path.is_file() and path.resolve().is_relative_to(self.root)

    def read_file(self, name: str, lines: int = _HEAD_LINES) -> dict[str, Any]:
        """How long a file is, how it begins, and what it defines."""
        text = self._text(name)
        summary = self._summary(name)
        return {"lines": summary["lines"], "head": text.splitlines()[:lines], "defines": summary["names"]}

    def search(self, pattern: str, files: Sequence[str]) -> dict[str, Any]:
        """The lines that a regular expression matches: how many in which file, and the first few."""
        expression = re.compile(pattern)
        hits: list[dict[str, Any]] = []
        for name in files:
            for number, line in enumerate(self._text(name).splitlines(), 1):
                if expression.search(line):
                    hits.append({"file": name, "line": number, "text": line.strip()[:120]})
        return {"matches": len(hits), "files": dict(Counter(hit["file"] for hit in hits)), "first": hits[:_SHOWN]}

    def count(self, what: str, files: Sequence[str]) -> dict[str, int]:
        """`classes`, `functions` and `lines` by file, or how many files import what (`imports`)."""
        if what == "imports":
            return dict(Counter(module for name in files for module in self._summary(name)["imports"]))
        if what not in {"classes", "functions", "lines"}:
            raise ValueError(f"can't count {what}")
        return {name: self._summary(name)[what] for name in files}

    def _text(self, name: str) -> str:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise PermissionError(f"{name} lies outside the library")
        return path.read_text(encoding="utf-8", errors="replace")

    def _summary(self, name: str) -> dict[str, Any]:
        with self._lock:
            if name not in self._summaries:
                self._summaries[name] = _summarise(self._text(name))
            return self._summaries[name]


def _summarise(text: str) -> dict[str, Any]:
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {
        "lines": text.count("\n") + 1,
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        "imports": sorted({module for node in nodes for module in _imported(node)}),
        "names": [name for name in defined if not name.startswith("_")],
    }


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []


class ToolFailed(Exception):  # noqa: N818 - what happened, in the words of its reader
    """A tool could not do what it was asked."""


class DeadEnd(Exception):  # noqa: N818 - as above
    """No rule of the planner leads any further."""


# -- the planner ---------------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A tool that the planner wants to be called."""

    tool: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """As the planner says it: long lists by their length."""
        shown = {name: f"{len(v)} files" if isinstance(v, list) else v for name, v in self.arguments.items()}
        return f"call {self.tool}({', '.join(f'{name}={value}' for name, value in shown.items())})"


Plan = Generator[Call, Any, str]


def _rounds(names: list[str]) -> list[list[str]]:
    """The names in at most `_ROUNDS` parts."""
    size = max(1, -(-len(names) // _ROUNDS))
    return [names[start : start + size] for start in range(0, len(names), size)]


def _top(totals: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in totals.most_common(_NAMED))


def _most(what: str) -> Plan:
    """Survey all modules, then look into the winner."""
    names = yield Call("list_files", {"pattern": "*.py"})
    totals: Counter[str] = Counter()
    for part in _rounds(names):
        totals.update((yield Call("count", {"what": what, "files": part})))
    if not totals:
        raise DeadEnd("there are no modules here to count")
    winner = totals.most_common(1)[0][0]
    if what != "imports":
        seen = yield Call("read_file", {"name": winner})
        return f"Most {what}: {_top(totals)}; {winner}: {seen['lines']} lines."
    return f"Imported by most modules: {_top(totals)}."


def _where(word: str) -> Plan:
    """Search everywhere, then read where it occurs most."""
    names = yield Call("list_files", {"pattern": "*.py"})
    packages = yield Call("list_files", {"pattern": "asyncio/*.py"})
    totals: Counter[str] = Counter()
    for part in _rounds([*names, *packages]):
        totals.update((yield Call("search", {"pattern": rf"\b{re.escape(word)}\(", "files": part}))["files"])
    if not totals:
        raise DeadEnd(f"nothing here uses {word}")
    yield Call("read_file", {"name": totals.most_common(1)[0][0]})
    return f"{word} is used {totals.total()} times in {len(totals)} modules: {_top(totals)}."


def _comments(words: str) -> Plan:
    names = yield Call("list_files", {"pattern": "*.py"})
    totals: Counter[str] = Counter()
    for part in _rounds(names):
        totals.update((yield Call("search", {"pattern": rf"#.*\b({words})\b", "files": part}))["files"])
    return f"{totals.total()} such comments in {len(totals)} modules, most in {_top(totals)}."


def _describe(name: str) -> Plan:
    """Read the module; if there is none of that name, look for anything like it before giving up."""
    try:
        seen = yield Call("read_file", {"name": name})
    except ToolFailed:
        stem = name.removesuffix(".py")
        found = yield Call("list_files", {"pattern": f"{stem[:5]}*.py"})
        names = yield Call("list_files", {"pattern": "*.py"})
        for part in _rounds(names):
            found += (yield Call("search", {"pattern": rf"\b{re.escape(stem)}\b", "files": part}))["files"]
        if not found:
            raise DeadEnd(f"there is no {name}, and nothing here speaks of {stem}") from None
        seen = yield Call("read_file", {"name": found[0]})
    users: Counter[str] = Counter()
    names = yield Call("list_files", {"pattern": "*.py"})
    for part in _rounds(names):
        users.update(
            (yield Call("search", {"pattern": rf"^\s*(import|from)\b.*\b{re.escape(name[:-3])}\b", "files": part}))[
                "files"
            ]
        )
    return f"{name}: {seen['lines']} lines, defines {', '.join(seen['defines'][:_NAMED])}; {len(users)} modules use it."


# What the planner understands. The first rule whose expression matches makes the plan.
RULES: tuple[tuple[str, Callable[[str], Plan]], ...] = (
    (r"most (classes|functions|lines)", _most),
    (r"(imports?|imported) most", lambda _: _most("imports")),
    (r"where is (\w+) used", _where),
    (r"(TODO|FIXME|XXX)", lambda _: _comments("TODO|FIXME|XXX")),
    (r"what does (\w+\.py) do", _describe),
)

# The second one fails: there is no such module.
QUESTIONS = (
    "Which modules define the most classes?",
    "What does quantum_teleport.py do?",
    "Where is deque used?",
    "Which TODO, FIXME and XXX comments are left?",
    "Which module is imported most?",
    "What does heapq.py do?",
    "Which modules define the most functions?",
    "Where is namedtuple used?",
)


def plan_for(question: str) -> Plan:
    """The plan of the first rule that understands the question. Raises DeadEnd."""
    for expression, make in RULES:
        match = re.search(expression, question, re.IGNORECASE)
        if match:
            return make(match[1])
    raise DeadEnd(f"no rule understands {question!r}")


# -- the agent -----------------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """What a run told agentd, for comparison with what the platform holds."""

    run_id: str
    question: str
    answer: str | None
    error: str | None
    events: list[str]  # types in the order in which they were emitted; a span counts when it ends
    tasks: int
    input_tokens: int
    output_tokens: int


class Agent:
    """One run: it asks the planner, calls the tools, and tells agentd everything. `pause` is the time that a model would take."""

    def __init__(self, client: Client, library: Library, question: str, pause: Callable[[], object]) -> None:
        self._client = client
        self._library = library
        self._question = question
        self._pause = pause
        self._events: list[str] = []
        self._tasks = 0
        self._tokens: Counter[str] = Counter()

    def work(self) -> Report:
        """Answer the question, or fail the run. Never raises what the run has died of: that is in the report."""
        answer = error = None
        run = self._client.start_run(input={"question": self._question}, trigger_type="manual")
        try:
            with run:
                answer = self._answer(run)
                run.complete({"answer": answer}, usage=self._tokens)
        except DeadEnd as reason:
            error = str(reason)
        used = self._tokens
        return Report(
            run.run_id,
            self._question,
            answer,
            error,
            self._events,
            self._tasks,
            used["input_tokens"],
            used["output_tokens"],
        )

    def _answer(self, run: Run) -> str:
        self._tasks += 1
        with run.start_task("investigate", {"question": self._question}):
            answer = self._follow(run, plan_for(self._question))
        self._tasks += 1
        with run.start_task("report"):
            self._events.append("report.written")
            run.emit("report.written", {"answer": answer, "words": len(answer.split())})
        return answer

    def _follow(self, run: Run, plan: Plan) -> str:
        """Step by step until the planner has an answer. Raises DeadEnd when it has none."""
        outcome: Any = None
        for number in itertools.count(1):
            try:
                with run.start_span("step", kind="step", payload={"number": number}):
                    thought = self._think(run, plan, outcome)
                    if isinstance(thought, str):
                        return thought
                    outcome = self._use(run, thought)
            finally:
                self._events.append("step")
        raise AssertionError("count() has no end")

    def _think(self, run: Run, plan: Plan, outcome: Any) -> Call | str:
        """One exchange with the planner: the next call, or the answer."""
        prompt = f"Question: {self._question}\nLast result: {brief(outcome)}\nWhich tool next, or what is the answer?"
        self._events.append("llm.request")
        run.emit_llm_request(MODEL, prompt)
        self._pause()
        reply: Call | str | DeadEnd
        try:
            reply = plan.throw(outcome) if isinstance(outcome, Exception) else plan.send(outcome)
        except StopIteration as end:
            reply = str(end.value)
        except DeadEnd as reason:
            reply = reason
        text = (
            str(reply)
            if isinstance(reply, Call)
            else f"give up: {reply}"
            if isinstance(reply, DeadEnd)
            else f"answer: {reply}"
        )
        usage = {"input_tokens": len(prompt.split()), "output_tokens": len(text.split())}
        self._tokens.update(usage)
        self._events.append("llm.response")
        run.emit_llm_response(MODEL, text, usage=usage)
        if isinstance(reply, DeadEnd):
            raise reply
        return reply

    def _use(self, run: Run, call: Call) -> Any:
        """Call the tool; a failure is a result like any other, for the planner to make something of."""
        self._events.append("tool.called")
        run.emit_tool_called(call.tool, brief(call.arguments))
        try:
            result = self._library.call(call.tool, call.arguments)
        except ToolFailed as error:
            self._events.append("tool.failed")
            run.emit_tool_failed(call.tool, str(error))
            return error
        self._events.append("tool.returned")
        run.emit_tool_returned(call.tool, brief(result))
        return result


def brief(value: Any) -> Any:
    """The value with long lists and tables cut to the first few entries and their number."""
    if isinstance(value, dict):
        if len(value) > _SHOWN + 1:
            return {"entries": len(value), "first": dict(itertools.islice(value.items(), _SHOWN))}
        return {name: brief(part) for name, part in value.items()}
    if isinstance(value, list) and len(value) > _SHOWN:
        return {"entries": len(value), "first": value[:_SHOWN]}
    return str(value) if isinstance(value, Exception) else value


def work(client: Client, library: Library, runs: int, pace_s: float) -> list[Report]:
    """As many runs at once, each with the next question; `pace_s` is what a model would need for a step, more or less."""

    def one(index: int) -> Report:
        die = random.Random(index)  # noqa: S311 - so that the runs don't march in step

        def pause() -> None:
            time.sleep(pace_s * die.uniform(0.5, 1.5))

        return Agent(client, library, QUESTIONS[index % len(QUESTIONS)], pause).work()

    with ThreadPoolExecutor(max_workers=runs) as pool:
        return list(pool.map(one, range(runs)))


def main() -> None:
    """Run the agents against the daemon at AGENTD_SOCKET and print what they did."""
    parser = argparse.ArgumentParser(prog="python -m agentd.sandbox.demo", description=main.__doc__)
    parser.add_argument("--runs", type=int, default=len(QUESTIONS))
    parser.add_argument("--pace", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--board", type=Path, metavar="FILE", help="where the last run may publish an answer")
    options = parser.parse_args()
    with Client(agent_id=AGENT) as client:
        reports = work(client, Library(), options.runs, options.pace)
        document: dict[str, Any] = {"runs": [report._asdict() for report in reports], "governed": None}
        if options.board is not None:
            account = Publisher(client, options.board).work(reports)
            document["governed"] = account._asdict() | {"asked": [asked._asdict() for asked in account.asked]}
        client.flush(timeout=_STORED_WITHIN_S, until="stored")
        document["lost"] = int(client.dropped)
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
