"""AgentOS as it can be known from outside, runs, people and hosted agents. Strict where a source speaks, a switch where none does.

Sources: PyPI `pyagentos-sdk` 0.4.0 (endpoints, fields, which calls it repeats, "one null refuses the whole batch"),
https://agentos-ai.dev/docs/ api, authentication, ingest, events and tracing (envelope, error codes, levels, statuses).
Known from there: `external_run_id` dedupes a start; events carry no id, so that a repeated batch is stored again, and get their
`sequence_number` per run by arrival; any bad event refuses its whole batch; a task's id is made by the client.
Known from nowhere: size and batch limits, events after a run's end, a second end, a second creation of a task, an update of a task
never created: these are `AgentosSwitches`. What people and hosted agents do is in `_agentos_people` and `_agentos_hosted`, and stands
at switches too; a person answers, approves and cancels on the inspection page. Of the control plane only a few methods are
emulated (`_agentos_control`): the rest is 404.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from msgspec import UNSET, Struct

from agentd.sandbox._agentos_bodies import (
    TOKENS,
    AgentosSwitches,
    CancelBody,
    CompleteBody,
    DecideBody,
    FailBody,
    InvokeBody,
    QuestionBody,
    Refused,
    ReplyBody,
    RpcDecideBody,
    StartBody,
    TaskBody,
    free_json,
    plain,
    read_body,
    read_events,
)
from agentd.sandbox._agentos_control import METHODS, Control, approval, need_workspace
from agentd.sandbox._agentos_hosted import Hosted
from agentd.sandbox._agentos_people import VERBS, People, State, Waiting
from agentd.sandbox._agentos_store import Batch, Run, Task, given
from agentd.sandbox._agentos_wire import refusal, said
from agentd.sandbox.faces import Answer, Call, Totals

_BASE = "/api/ingest/v1"
_SHOWN_DUPLICATES = 100
_APPROVALS = "/api/v1/approvals"
_COUNTED = ("late_events", "duplicate_tasks", "second_terminals", "start_conflicts")
_FINAL_TASK = frozenset({"completed", "failed", "skipped"})


class AgentOS:
    """The face. Invariant: a request that is refused has changed nothing."""

    name = "agentos"
    prefixes = ("/api/ingest/", "/api/v1/agents/", "/api/v1/runs/", _APPROVALS, "/api/v1/rpc/")

    def __init__(self) -> None:
        self.switches: Struct = AgentosSwitches()
        self.reset()
        self._calls: dict[str, Callable[[Call], Any]] = {
            f"{_BASE}/events": self._take_events,
            f"{_BASE}/run/start": self._start,
            f"{_BASE}/tasks": self._task,
            f"{_BASE}/run/complete": self._complete,
            f"{_BASE}/run/fail": self._fail,
            f"{_BASE}/run/cancel": self._cancel,
            f"{_BASE}/human-input/request": self._human_input,
            _APPROVALS: self._approvals,
        }
        self._places: list[tuple[re.Pattern[str], Callable[[str, Call], Any]]] = [
            (re.compile(r"/api/v1/agents/([^/]+)/invoke"), self._invoke),
            (re.compile(r"/api/v1/runs/([^/]+)/(?:reply|human-input)"), self._reply),
            (re.compile(rf"{_APPROVALS}/([^/]+)/decide"), self._decide),
            (re.compile(rf"/api/v1/rpc/({'|'.join(METHODS)})"), self._rpc),
        ]

    def reset(self) -> None:
        """Forget all runs, and what waits in them."""
        self._runs: dict[str, Run] = {}
        self._people = People()
        self._hosted = Hosted(self._runs, self._people)
        self._control = Control(self._runs, self._people)
        self._now = 0.0  # of the latest request: a face has no clock of its own
        self._external: dict[str, Run] = {}
        self._seen: set[bytes] = set()
        self._again: Counter[bytes] = Counter()
        self._counts: Counter[str] = Counter()

    # -- the wire -----------------------------------------------------------------------------------------------------------

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """The token of `Authorization: Bearer …`."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def idempotency_key(self, call: Call) -> str:
        """AgentOS knows no such header; agentd sends it all the same, and the books want to see it."""
        return call.headers.get("Idempotency-Key", "")

    def answer(self, call: Call) -> Answer:
        """Route, validate, commit; every answer in the platform's envelope."""
        self._now = max(self._now, call.now)
        for waiting in self._people.expire(call.now):
            self._hosted.go_on(waiting, self._switches, call.now)
        try:
            data = self._handler(call)(call)
        except Refused as error:
            return self.refuse(error.status, error.message)
        return data if isinstance(data, Answer) else said(200, data)

    def _handler(self, call: Call) -> Callable[[Call], Any]:
        handler = self._calls.get(call.path) or self._placed(call.path)
        if handler is None:
            raise Refused(404, f"no such endpoint: {call.path}")
        if call.method != ("GET" if call.path == _APPROVALS else "POST"):
            raise Refused(405, f"every call is a POST, {_APPROVALS} a GET")
        if len(call.body) > self._switches.max_body_bytes:
            raise Refused(413, f"the body exceeds {self._switches.max_body_bytes} bytes")
        return handler

    def _placed(self, path: str) -> Callable[[Call], Any] | None:
        """The handler of a path that names something."""
        for pattern, handler in self._places:
            if found := pattern.fullmatch(path):
                return partial(handler, unquote(found[1]))
        return None

    def refuse(self, status: int, message: str) -> Answer:
        """`{data:null, error:{code,message}}` with the code that belongs to the status."""
        return refusal(status, message)

    @property
    def _switches(self) -> AgentosSwitches:
        assert isinstance(self.switches, AgentosSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    # -- ingest: validate wholly, then change ---------------------------------------------------------------------------------

    def _open_run(self, run_id: str) -> Run:
        run = self._runs.get(run_id)
        if run is None:
            raise Refused(404, f"no run {run_id}")
        return run

    def _run_for_telemetry(self, run_id: str) -> Run:
        run = self._open_run(run_id)
        if run.terminals and self._switches.late_events == "409":
            raise Refused(409, f"run {run_id} has ended: {run.status}")
        return run

    def _start(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, StartBody)
        external = None if body.external_run_id is UNSET else body.external_run_id
        known = self._external.get(external) if external is not None else None
        if known is not None:
            known.starts += 1
            self._counts["start_conflicts"] += known.agent_id != body.agent_id
            return {"run_id": known.run_id}
        run = Run(
            run_id=str(uuid.uuid4()),
            external_run_id=external,
            agent_id=body.agent_id,
            trigger_type=body.trigger_type,
            parent_run_id=None if body.parent_run_id is UNSET else body.parent_run_id,
            input={} if body.input is UNSET else body.input,
            first_at=call.now,
            last_at=call.now,
        )
        self._runs[run.run_id] = run
        if external is not None:
            self._external[external] = run
        return {"run_id": run.run_id}

    def _take_events(self, call: Call) -> dict[str, Any]:
        run_id, count, ids = read_events(call.body)
        most = self._switches.max_events
        if most is not None and count > most:
            raise Refused(400, f"Expected `array` of length <= {most} - at `$.events`")
        run = self._run_for_telemetry(run_id)
        run.batches.append(Batch(run.events + 1, count, call.now, call.body))
        run.events += count
        run.last_at = call.now
        self._counts["events"] += count
        if run.terminals:
            self._counts["late_events"] += count
        self._note_ids(ids)
        return {"accepted": count}

    def _note_ids(self, ids: list[bytes]) -> None:
        for record_id in ids:
            if record_id in self._seen:
                self._again[record_id] += 1
            else:
                self._seen.add(record_id)

    def _task(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, TaskBody)
        sent = body.task
        message = None if sent.error_message is UNSET else sent.error_message
        given, output = free_json(sent.input, "task.input"), free_json(sent.output, "task.output")
        new = Task(sent.id, sent.name, sent.status, given, output, message)
        run = self._run_for_telemetry(body.run_id)
        known = run.by_id.get(sent.id)
        if known is None:
            if sent.status in _FINAL_TASK and self._switches.missing_task == "404":
                raise Refused(404, f"no task {sent.id}")
            run.by_id[sent.id] = new
            run.tasks.append(new)
        elif _is_update(known, new):
            known.name, known.status, known.posts = new.name, new.status, known.posts + 1
            known.output, known.error_message = new.output or known.output, new.error_message or known.error_message
        else:
            self._create_again(run, known, new)
        run.last_at = call.now
        return {"task_id": sent.id}

    def _create_again(self, run: Run, known: Task, new: Task) -> None:
        if self._switches.duplicate_task == "409":
            raise Refused(409, f"task {new.id} exists")
        self._counts["duplicate_tasks"] += 1
        known.posts += 1
        if self._switches.duplicate_task == "duplicate":
            run.tasks.append(new)

    def _complete(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, CompleteBody)
        end = given(output=plain(free_json(body.output, "output")))
        tokens = {name: getattr(body, name) for name in TOKENS if getattr(body, name) is not UNSET}
        return self._end(call, body.run_id, "complete", end, tokens)

    def _fail(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, FailBody)
        end = given(error_message=body.error_message, error_detail=body.error_detail)
        return self._end(call, body.run_id, "fail", end, {})

    def _cancel(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, CancelBody)
        return self._end(call, body.run_id, "cancel", given(reason=body.reason), {})

    def _end(self, call: Call, run_id: str, how: str, end: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
        run = self._open_run(run_id)
        if run.terminals and self._switches.second_terminal == "409":
            raise Refused(409, f"run {run_id} has ended: {run.status}")
        if run.terminals:
            self._counts["second_terminals"] += 1
            run.terminals.append(how)
        else:
            if how == "cancel":
                self._people.end(run_id)
            run.finish(how, call.now, tokens, **end)
        return {"run_id": run_id, "status": run.status}

    # -- people and hosted agents -----------------------------------------------------------------------------------------------

    def _human_input(self, call: Call) -> Answer:
        body = read_body(call.body, QuestionBody)
        return self._people.ask(self._open_run(body.run_id), body, self._switches, call.now)

    def _invoke(self, agent_id: str, call: Call) -> Answer:
        return self._hosted.invoke(agent_id, read_body(call.body, InvokeBody), self._switches, call.now)

    def _reply(self, run_id: str, call: Call) -> Answer:
        """The reply to what a hosted run asks; `/reply` names the question, so that it can't answer a newer one."""
        need_workspace(self.presented_key(call.headers))
        body = read_body(call.body, ReplyBody)
        if call.path.endswith("/reply") and body.request_id is UNSET:
            raise Refused(400, "Object missing required field `request_id`")
        run = self._open_run(run_id)
        asked = self._people.pause(run_id)
        if asked is None or asked.kind != "question" or (call.path.endswith("/reply") and body.request_id != asked.id):
            raise Refused(409, f"run {run_id} waits for no such reply")
        self._settle(asked, "answered", body.response, call.now)
        return self._hosted.result(run)

    def _approvals(self, call: Call) -> Any:
        need_workspace(self.presented_key(call.headers))
        return self._control.approvals()

    def _decide(self, approval_id: str, call: Call) -> dict[str, Any]:
        need_workspace(self.presented_key(call.headers))
        states: dict[str, State] = {"approve": "approved", "reject": "rejected"}
        return self._decided(approval_id, states[read_body(call.body, DecideBody).decision], "", call.now)

    def _rpc(self, method: str, call: Call) -> Any:
        need_workspace(self.presented_key(call.headers), call.body)
        if method != "approvals_decide":
            return self._control.read(method, call.body)
        body = read_body(call.body, RpcDecideBody)
        note = "" if body.decision_note is UNSET else body.decision_note
        return self._decided(body.approval_id, body.decision, note, call.now)

    def _decided(self, approval_id: str, state: State, note: str, now: float) -> dict[str, Any]:
        waiting = self._people.known.get(approval_id)
        if waiting is None or waiting.kind != "approval":
            raise Refused(404, f"no approval {approval_id}")
        self._settle(waiting, state, note, now)
        return approval(waiting)

    def _settle(self, waiting: Waiting, state: State, text: str, now: float) -> None:
        self._people.settle(waiting, state, text)
        self._hosted.go_on(waiting, self._switches, now)

    # -- inspection -----------------------------------------------------------------------------------------------------------

    def act(self, item_id: str, verb: str) -> Answer:
        """What a person does to a question or an approval, or to the oldest that waits in a run: an answer is the switch's."""
        return self.hear(item_id, verb, "")

    def hear(self, item_id: str, verb: str, text: str) -> Answer:
        """`act` with the text of an answer, a decision's note or a cancellation's reason."""
        waiting = self._people.find(item_id)
        state = VERBS[waiting.kind].get(verb) if waiting is not None else None
        if waiting is None or state is None:
            return self.refuse(404, f"nothing to {verb} at {item_id}")
        if state == "answered":
            text = text or self._switches.human_input_answer
        try:
            self._settle(waiting, state, text, self._now)
        except Refused as error:
            return self.refuse(error.status, error.message)
        return said(200, waiting.shown())

    def totals(self) -> Totals:
        """Counters; `duplicates` are events stored again under an `agentd_id` seen before."""
        by_status = Counter(run.status for run in self._runs.values())
        repeated = itertools.islice(self._again, _SHOWN_DUPLICATES)
        details = {
            "runs_by_status": dict(by_status),
            "tasks": sum(len(run.tasks) for run in self._runs.values()),
            "distinct_ids": len(self._seen),
            "duplicate_ids": [record_id.decode() for record_id in repeated],
            **{name: self._counts[name] for name in _COUNTED},
            **self._people.counts(),
            "hosted_runs": sum(run.hosted is not None for run in self._runs.values()),
        }
        return Totals(len(self._runs), self._counts["events"], self._again.total(), details)

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a run, newest first; what it waits for, and what a person may do about that."""
        until = None if limit is None else offset + limit
        chosen = itertools.islice(reversed(self._runs.values()), offset, until)
        return [run.row() | self._people.offered(run.run_id) for run in chosen]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """A run, also by what waits in it, with tasks, end and events in sequence; `starts` and `terminals` tell what was sent."""
        waiting = self._people.known.get(key)
        run = self._runs.get(waiting.run_id if waiting is not None else key) or self._external.get(key)
        if run is None:
            return None
        return {
            **run.detail(),
            **self._people.offered(run.run_id),
            "waited_for": [each.shown() for each in self._people.of_run(run.run_id)],
            "starts": run.starts,
            "terminals": run.terminals,
            "event_count": run.events,
            "tasks": [task.shown() for task in run.tasks],
            "events": run.shown_events(limit, offset),
        }


def _is_update(known: Task, new: Task) -> bool:
    """Is this an update, not a second creation? A creation says pending or running; going from one to the other is no creation."""
    moved_on = known.status == "pending" and new.status == "running" and new.input is None
    return new.status in _FINAL_TASK or moved_on


FACE = AgentOS
