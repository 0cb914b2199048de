"""Hosted agents of the emulated AgentOS: `invoke` runs one, which finishes, fails, or pauses for a person, as a switch says.

Sources: PyPI `pyagentos-sdk` 0.4.0 (client.py: fields, the result and its 202, the stream's events and its errors after 200),
https://agentos-ai.dev/docs/memory and /docs/approvals. Nothing dedupes an invoke: a second one is a second run. Whether a session
has to exist, and what a rejection does to its run, is told in two ways: switches. Chosen here: the status of a run that fails (502),
the text of everything a hosted agent says, and that an id which is no UUID is no agent's (404). Used by the face in `agentos` alone.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET

from agentd.sandbox._agentos_bodies import UUID, AgentosSwitches, InvokeBody, Refused
from agentd.sandbox._agentos_people import People, Waiting
from agentd.sandbox._agentos_store import Run, given
from agentd.sandbox._agentos_wire import said, stream
from agentd.sandbox.faces import Answer

_CONVERSATIONS = ("session_id", "start_session", "history")
_UUID = re.compile(UUID)
_TOOL = "send_email"
_SUMMARY = ("The sandbox ran ", "no model.")
_FAILURE = "The provider gave up."


class Hosted:
    """Runs of hosted agents, kept among the others. Invariant: a paused run has exactly one thing for which it has paused."""

    def __init__(self, runs: dict[str, Run], people: People) -> None:
        self._runs = runs
        self._people = people
        self._sessions: set[str] = set()

    def invoke(self, agent_id: str, body: InvokeBody, switches: AgentosSwitches, now: float) -> Answer:
        """Run an agent. Raises Refused."""
        if _UUID.match(agent_id) is None:
            raise Refused(404, f"no agent {agent_id}")
        run = Run(
            run_id=str(uuid.uuid4()),
            external_run_id=None,
            agent_id=agent_id,
            trigger_type="sdk",
            parent_run_id=None if body.parent_run_id is UNSET else body.parent_run_id,
            input={} if body.input is UNSET else body.input,
            first_at=now,
            last_at=now,
            session_id=self._session(body, switches),
            hosted=_options(body),
        )
        self._runs[run.run_id] = run
        self._work(run, switches, now)
        if body.stream is True:
            return stream(self._events(run), bare_end=switches.stream_end == "bare")
        return self.result(run)

    def _session(self, body: InvokeBody, switches: AgentosSwitches) -> str | None:
        chosen = [name for name in _CONVERSATIONS if getattr(body, name) not in (UNSET, False)]
        if len(chosen) > 1:
            raise Refused(400, f"Expected at most one of {', '.join(_CONVERSATIONS)} - at `$.{chosen[1]}`")
        if body.session_id is not UNSET:
            if body.session_id not in self._sessions and switches.unknown_session == "404":
                raise Refused(404, f"no session {body.session_id}")
            return body.session_id
        if body.start_session is not True:
            return None
        session_id = str(uuid.uuid4())
        self._sessions.add(session_id)
        return session_id

    def _work(self, run: Run, switches: AgentosSwitches, now: float) -> None:
        if switches.invoke == "fail":
            run.finish("fail", now, error_message=_FAILURE)
        elif switches.invoke == "awaiting_approval":
            self._people.approval(run.run_id, _TOOL, now, agent_id=run.agent_id, tool_input={"to": "a@example.org"})
        elif switches.invoke == "awaiting_input":
            self._people.hosted_question(run.run_id, "Go on?", now, options=["yes", "no"], context={"tool": _TOOL})
        else:
            run.finish("complete", now, output=_output(run))

    def go_on(self, waiting: Waiting, switches: AgentosSwitches, now: float) -> None:
        """A person has spoken, or nobody has in time: the run that waited for it comes to its end."""
        run = self._runs.get(waiting.run_id)
        if run is None or not waiting.pauses or run.terminals:
            return
        if waiting.state == "cancelled":
            run.finish("cancel", now, reason="its question was cancelled")
        elif waiting.state == "rejected" and switches.rejected == "fail":
            run.finish("fail", now, error_message=f"{_TOOL} was rejected: {waiting.text}".rstrip(": "))
        elif waiting.state == "answered":
            run.finish("complete", now, output=_output(run, reply=waiting.text))
        else:
            run.finish("complete", now, output=_output(run, **{_TOOL: waiting.state}))

    # -- what is told of a run --------------------------------------------------------------------------------------------------

    def result(self, run: Run) -> Answer:
        """How a run stands: 200 when it is complete, 202 while it waits. Raises Refused for one that failed or was cancelled."""
        data = {"run_id": run.run_id, "duration_ms": run.duration_ms(), "session_id": run.session_id}
        pause = self._people.pause(run.run_id)
        if pause is not None:
            return said(202, data | {f"awaiting_{_AWAITED[pause.kind]}": _awaited(pause)})
        if run.status == "completed":
            return said(200, data | {"output": run.end.get("output")})
        raise Refused(
            502 if run.status == "failed" else 409, str(run.end.get("error_message", f"the run is {run.status}"))
        )

    def _events(self, run: Run) -> Iterator[dict[str, Any]]:
        yield {"type": "start", "run_id": run.run_id}
        yield {"type": "chunk", "text": _SUMMARY[0]}
        pause = self._people.pause(run.run_id)
        if pause is None or pause.kind == "approval":
            yield {"type": "tool", "status": "calling", "name": _TOOL}
        more = {"run_id": run.run_id, "duration_ms": run.duration_ms(), **given(session_id=run.session_id)}
        if run.status == "failed":
            yield {"type": "tool", "status": "failed", "name": _TOOL}
            yield {"type": "error", "code": "PROVIDER_ERROR", "message": _FAILURE}
        elif pause is not None:
            yield {"type": f"awaiting_{_AWAITED[pause.kind]}", **more, **_awaited(pause)}
        else:
            yield {"type": "tool", "status": "returned", "name": _TOOL}
            yield {"type": "chunk", "text": _SUMMARY[1]}
            yield {"type": "done", **more}


_AWAITED = {"question": "input", "approval": "approval"}


def _awaited(waiting: Waiting) -> dict[str, Any]:
    if waiting.kind == "approval":
        return {"approval_id": waiting.id}
    return {"request_id": waiting.id, "question": waiting.what, **waiting.more}


def _options(body: InvokeBody) -> dict[str, Any]:
    """What an invoke asked for, as inspection shows it."""
    names = ("prompt_variables", "start_session", "external_user_id", "test", "stream")
    history = {} if body.history is UNSET else {"history": len(body.history)}
    return given(**{name: getattr(body, name) for name in names}) | history


def _output(run: Run, **more: Any) -> dict[str, Any]:
    return {"summary": "".join(_SUMMARY), "input": run.input, **more}
