"""What the emulated AgentOS holds of runs, with their tasks and events. Used by the face in `agentos` and its parts alone."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct

from agentd.sandbox._agentos_bodies import TaskStatus, plain
from agentd.units import rfc3339

ENDS = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value is not UNSET}


class Batch(Struct, gc=False):
    """A batch as it came: 50 events in one bytes object, taken apart only when somebody looks."""

    first: int  # sequence number of its first event
    count: int
    received_at: float
    body: bytes


class Task(Struct):
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
        return fields | given(input=plain(self.input), output=output, error_message=message)


class Run(Struct):
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
    batches: list[Batch] = []
    tasks: list[Task] = []
    by_id: dict[str, Task] = {}  # the first task under each id
    terminals: list[str] = []
    end: dict[str, Any] = {}
    tokens: dict[str, int] = {}
    session_id: str | None = None
    hosted: dict[str, Any] | None = None  # what its invoke asked for; None: the run of somebody's own agent

    def finish(self, how: str, now: float, tokens: dict[str, int] | None = None, **end: Any) -> None:
        """The first end, which stands: `how` is complete, fail or cancel."""
        self.status, self.end, self.tokens = ENDS[how], end, tokens or {}
        self.last_at = now
        self.terminals.append(how)

    def duration_ms(self) -> int:
        """From its start to the last that was heard of it."""
        return round((self.last_at - self.first_at) * 1000)

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

    def detail(self) -> dict[str, Any]:
        """Everything but its tasks and events."""
        fields = {"run_id": self.run_id, "trigger_type": self.trigger_type, "parent_run_id": self.parent_run_id}
        hosted = {} if self.hosted is None else {"session_id": self.session_id, "hosted": self.hosted}
        return self.row() | fields | {"input": self.input} | hosted | self.end

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
