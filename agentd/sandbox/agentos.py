"""AgentOS as it can be known from outside: ingest of runs, events and tasks. Strict where a source speaks, a switch where none does.

Sources: PyPI `pyagentos-sdk` 0.4.0 (endpoints, fields, which calls it repeats, "one null refuses the whole batch"),
https://agentos-ai.dev/docs/ api, authentication, ingest, events and tracing (envelope, error codes, levels, statuses).
Known from there: `external_run_id` dedupes a start; events carry no id, so that a repeated batch is stored again, and get their
`sequence_number` per run by arrival; any bad event refuses its whole batch; a task's id is made by the client.
Known from nowhere: size and batch limits, events after a run's end, a second end, a second creation of a task, an update of a task
never created: these are `AgentosSwitches`. Human input, invoke, approvals and the control plane are not emulated: 404.
"""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from agentd.sandbox._agentos_bodies import (
    TOKENS,
    CancelBody,
    CompleteBody,
    FailBody,
    Limit,
    Refused,
    StartBody,
    TaskBody,
    TaskStatus,
    free_json,
    plain,
    read_body,
    read_events,
)
from agentd.sandbox.faces import Answer, Call, Totals
from agentd.units import rfc3339

_BASE = "/api/ingest/v1"
_CODES = {
    400: "VALIDATION_ERROR",
    401: "UNAUTHENTICATED",
    402: "PAYMENT_REQUIRED",
    403: "FORBIDDEN",  # the word is a guess: no source names the code of a 403, 405 or 413
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "TIMEOUT",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    429: "RATE_LIMITED",
    502: "BAD_GATEWAY",
}
_SERVER_ERROR = 500
_SHOWN_DUPLICATES = 100


class AgentosSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """What no source settles. The defaults are the readings that pyagentos-sdk 0.4.0 was built for."""

    late_events: Literal["accept", "409"] = "accept"  # events and tasks of a run that has ended
    second_terminal: Literal["same", "409"] = "same"  # same: the first end stands and is answered again
    duplicate_task: Literal["same", "409", "duplicate"] = "same"  # a second creation under one task id
    missing_task: Literal["create", "404"] = "create"  # an update of a task that was never created
    max_events: Limit | None = None  # events in one batch; above: 400
    max_body_bytes: Limit = 4 * 1024 * 1024  # above: 413


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value is not UNSET}


# -- what is stored ----------------------------------------------------------------------------------------------------------


class _Batch(Struct, gc=False):
    """A batch as it came: 50 events in one bytes object, taken apart only when somebody looks."""

    first: int  # sequence number of its first event
    count: int
    received_at: float
    body: bytes


class _Task(Struct):
    id: str
    name: str
    status: TaskStatus
    input: bytes | None
    output: bytes | None
    error_message: str | None
    posts: int = 1

    def shown(self) -> dict[str, Any]:
        fields = {"id": self.id, "name": self.name, "status": self.status, "posts": self.posts}
        output, message = plain(self.output), self.error_message
        return fields | _given(input=plain(self.input), output=output, error_message=message)


class _Run(Struct):
    run_id: str
    external_run_id: str | None
    agent_id: str
    trigger_type: str
    parent_run_id: str | None
    input: dict[str, Any]
    first_at: float
    last_at: float
    status: str = "running"
    starts: int = 1
    events: int = 0
    batches: list[_Batch] = []
    tasks: list[_Task] = []
    by_id: dict[str, _Task] = {}  # the first task under each id
    terminals: list[str] = []
    end: dict[str, Any] = {}
    tokens: dict[str, int] = {}

    def row(self) -> dict[str, Any]:
        return {
            "id": self.run_id,
            "external_run_id": self.external_run_id,
            "agent_id": self.agent_id,
            "status": self.status,
            "events": self.events,
            "tasks": len(self.tasks),
            "tokens": self.tokens,
            "first_at": rfc3339(self.first_at),
            "last_at": rfc3339(self.last_at),
        }

    def shown_events(self, limit: int | None, offset: int) -> list[dict[str, Any]]:
        """The events from `offset` on, by sequence number; batches before it are not decoded."""
        chosen: list[dict[str, Any]] = []
        until = self.events if limit is None else min(self.events, offset + limit)
        for batch in self.batches:
            begin = batch.first - 1
            if begin + batch.count <= offset or begin >= until:
                continue
            fields = {"received_at": rfc3339(batch.received_at), "level": "info", "payload": {}}
            sent = plain(batch.body)["events"]
            chosen += [
                {"sequence_number": number, **fields, **event}
                for number, event in enumerate(sent, batch.first)
                if offset < number <= until
            ]
        return chosen


_ENDS = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}
_COUNTED = ("late_events", "duplicate_tasks", "second_terminals", "start_conflicts")
_FINAL_TASK = frozenset({"completed", "failed", "skipped"})


class AgentOS:
    """The face. Invariant: a request that is refused has changed nothing."""

    name = "agentos"
    prefixes = ("/api/ingest/",)

    def __init__(self) -> None:
        self.switches: Struct = AgentosSwitches()
        self.reset()
        self._calls: dict[str, Callable[[Call], dict[str, Any]]] = {
            f"{_BASE}/events": self._take_events,
            f"{_BASE}/run/start": self._start,
            f"{_BASE}/tasks": self._task,
            f"{_BASE}/run/complete": self._complete,
            f"{_BASE}/run/fail": self._fail,
            f"{_BASE}/run/cancel": self._cancel,
        }

    def reset(self) -> None:
        """Forget all runs."""
        self._runs: dict[str, _Run] = {}
        self._external: dict[str, _Run] = {}
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
        try:
            data = self._handler(call)(call)
        except Refused as refusal:
            return self.refuse(refusal.status, refusal.message)
        return Answer(200, msgspec.json.encode({"data": data, "error": None}))

    def _handler(self, call: Call) -> Callable[[Call], dict[str, Any]]:
        handler = self._calls.get(call.path)
        if handler is None:
            raise Refused(404, f"no such endpoint: {call.path}")
        if call.method != "POST":
            raise Refused(405, "every call is a POST")
        if len(call.body) > self._switches.max_body_bytes:
            raise Refused(413, f"the body exceeds {self._switches.max_body_bytes} bytes")
        return handler

    def refuse(self, status: int, message: str) -> Answer:
        """`{data:null, error:{code,message}}` with the code that belongs to the status."""
        code = _CODES.get(status, "INTERNAL_ERROR" if status >= _SERVER_ERROR else "VALIDATION_ERROR")
        return Answer(status, msgspec.json.encode({"data": None, "error": {"code": code, "message": message}}))

    @property
    def _switches(self) -> AgentosSwitches:
        assert isinstance(self.switches, AgentosSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    # -- ingest: validate wholly, then change ---------------------------------------------------------------------------------

    def _open_run(self, run_id: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            raise Refused(404, f"no run {run_id}")
        return run

    def _run_for_telemetry(self, run_id: str) -> _Run:
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
        run = _Run(
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
        run.batches.append(_Batch(run.events + 1, count, call.now, call.body))
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
        new = _Task(sent.id, sent.name, sent.status, given, output, message)
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

    def _create_again(self, run: _Run, known: _Task, new: _Task) -> None:
        if self._switches.duplicate_task == "409":
            raise Refused(409, f"task {new.id} exists")
        self._counts["duplicate_tasks"] += 1
        known.posts += 1
        if self._switches.duplicate_task == "duplicate":
            run.tasks.append(new)

    def _complete(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, CompleteBody)
        end = _given(output=plain(free_json(body.output, "output")))
        tokens = {name: getattr(body, name) for name in TOKENS if getattr(body, name) is not UNSET}
        return self._end(call, body.run_id, "complete", end, tokens)

    def _fail(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, FailBody)
        end = _given(error_message=body.error_message, error_detail=body.error_detail)
        return self._end(call, body.run_id, "fail", end, {})

    def _cancel(self, call: Call) -> dict[str, Any]:
        body = read_body(call.body, CancelBody)
        return self._end(call, body.run_id, "cancel", _given(reason=body.reason), {})

    def _end(self, call: Call, run_id: str, how: str, end: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
        run = self._open_run(run_id)
        if run.terminals and self._switches.second_terminal == "409":
            raise Refused(409, f"run {run_id} has ended: {run.status}")
        if run.terminals:
            self._counts["second_terminals"] += 1
        else:
            run.status, run.end, run.tokens = _ENDS[how], end, tokens
            run.last_at = call.now
        run.terminals.append(how)
        return {"run_id": run_id, "status": run.status}

    # -- inspection -----------------------------------------------------------------------------------------------------------

    def act(self, item_id: str, verb: str) -> Answer:
        """Nothing of a run waits for a person."""
        return self.refuse(404, f"nothing to {verb} at {item_id}")

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
        }
        return Totals(len(self._runs), self._counts["events"], self._again.total(), details)

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a run, newest first."""
        until = None if limit is None else offset + limit
        return [run.row() for run in itertools.islice(reversed(self._runs.values()), offset, until)]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """A run with its tasks, its end and its events in sequence; `starts` and `terminals` tell what was sent."""
        run = self._runs.get(key) or self._external.get(key)
        if run is None:
            return None
        return {
            **run.row(),
            "run_id": run.run_id,
            "trigger_type": run.trigger_type,
            "parent_run_id": run.parent_run_id,
            "input": run.input,
            **run.end,
            "starts": run.starts,
            "terminals": run.terminals,
            "event_count": run.events,
            "tasks": [task.shown() for task in run.tasks],
            "events": run.shown_events(limit, offset),
        }


def _is_update(known: _Task, new: _Task) -> bool:
    """Is this an update, not a second creation? A creation says pending or running; going from one to the other is no creation."""
    moved_on = known.status == "pending" and new.status == "running" and new.input is None
    return new.status in _FINAL_TASK or moved_on


FACE = AgentOS
