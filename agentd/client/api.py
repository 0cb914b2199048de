"""`Client`: what an agent imports. Telemetry calls never block, never raise and never touch the network.

Whether a client does anything is decided once, when it is made: by `disabled=True`, by `AGENTD_DISABLED`, or by the pytest
plugin. A client that does nothing has the same methods and opens no socket, starts no thread and reads no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from msgspec import UNSET, Struct, UnsetType

from agentd.client import mode
from agentd.client.acting import Acting
from agentd.client.asking import Gates, Questions
from agentd.client.buffer import INFO, Dropped, Stats, Ticket
from agentd.client.flush import FlushResult, NotStored, check, delivered, flush_stored
from agentd.client.gates import Steps, play
from agentd.client.runs import Events, Run, current_run, current_span, make_id
from agentd.client.sender import Sender
from agentd.client.verdict import Verdict

if TYPE_CHECKING:
    from typing import Unpack

    from agentd.client.channel import Channel
    from agentd.client.fields import (
        ActionFields,
        ActionRequest,
        Common,
        CrmSyncFields,
        DecisionFields,
        ExecutionFields,
        Moment,
        OutcomeFields,
        SnapshotFields,
    )

REQUIRED_TIMEOUT_S = 2.0
_MIN_RECORD_BYTES = 1024
_OFF = ("", "0", "false", "no", "off")
T = TypeVar("T")


class Decision(Struct, frozen=True):
    """A decision that was logged. Its id is the client's own, so that later records can name it at once."""

    decision_id: str
    run_id: str | None = None
    span_id: str | None = None


def why_disabled(env: Mapping[str, str], *, disabled: bool) -> str:
    """`code`, `environment`, `allow` (AGENTD_DISABLED=allow), `pytest`, or nothing. Gates tell these apart."""
    if disabled:
        return "code"
    if mode.inert:
        return "pytest"
    word = env.get("AGENTD_DISABLED", "").strip().lower()
    return "" if word in _OFF else "allow" if word == "allow" else "environment"


def _is_set(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() not in _OFF


def _about(name: str, subject: str | Decision | Verdict) -> dict[str, Any]:
    """What a later record is about. A verdict also says where its id is known, and whose it is."""
    if isinstance(subject, Verdict):
        place = {"to": subject.destination, "agent_id": subject.agent_id}
        return {name: subject.id, **{key: value for key, value in place.items() if value}}
    return {name: subject.decision_id if isinstance(subject, Decision) else subject}


def _finder(socket: str | None) -> Callable[[], str]:
    """How to find the socket, without a reference to the client: the thread must not keep a forgotten client alive."""

    def find() -> str:
        from agentd.client.find import find_socket

        return find_socket(os.environ, socket)

    return find


class BaseClient(Events, Questions):
    """All that never waits: shared by `Client` and `AsyncClient`."""

    def __init__(
        self,
        agent_id: str | None = None,
        *,
        socket: str | None = None,
        disabled: bool = False,
        max_buffer_records: int = 10_000,
        max_buffer_bytes: int = 16 * 2**20,
        max_record_bytes: int = 2**20,
        on_error: Callable[[str, str], object] | None = None,
        exit_timeout: float = 2.0,
    ) -> None:
        """Connect at the first record, or at once where AGENTD_REQUIRED is set (then NoDaemon may be raised).

        `on_error(cause, example)` is called once per cause, from a thread of the client's own.
        """
        if max_buffer_records < 1 or max_buffer_bytes < 1 or max_record_bytes < _MIN_RECORD_BYTES:
            raise ValueError(f"expected bounds of at least 1, and max_record_bytes of at least {_MIN_RECORD_BYTES}")
        env = os.environ
        self._why_disabled = why_disabled(env, disabled=disabled)
        self._find = _finder(socket)
        self._exit_timeout = exit_timeout
        self._channel: Channel | None = None
        if not self._why_disabled:
            from agentd.client.channel import Channel, Options

            self._channel = Channel(Options(self._find, max_buffer_records, max_buffer_bytes, exit_timeout, on_error))
        self._sender = Sender(self._channel, agent_id, max_record_bytes)
        if self._channel is not None and _is_set(env, "AGENTD_REQUIRED"):
            self._require(self._channel)

    def _require(self, channel: Channel) -> None:
        try:
            channel.require(REQUIRED_TIMEOUT_S)
        except BaseException:
            channel.close(0.0)
            raise

    def __del__(self) -> None:
        """A client that nobody holds any more sends what it has and ends its thread."""
        channel = getattr(self, "_channel", None)
        if channel is not None:
            channel.retire()

    @property
    def agent_id(self) -> str | None:
        """The agent that this client's records name."""
        return self._sender.agent_id

    @property
    def disabled(self) -> bool:
        """Whether this client does nothing."""
        return self._why_disabled != ""

    @property
    def dropped(self) -> Dropped:
        """How many records were lost before the daemon had them: a number, with `by_cause` and `by_kind`."""
        if self._channel is None:
            from collections import Counter

            return Dropped(Counter())
        return self._channel.dropped()

    def stats(self) -> Stats:
        """The books: emitted = accepted + refused + lost + buffered."""
        return Stats(0, 0, 0, 0, 0, 0, 0, {}, {}) if self._channel is None else self._channel.stats()

    def start_run(
        self,
        input: object = None,  # noqa: A002 - the field's name
        *,
        trigger_type: str | None = "sdk",
        external_run_id: str | None = None,
        parent_run_id: str | UnsetType | None = UNSET,
        run_id: str | None = None,
        agent_id: str | None = None,
        to: str | list[str] | None = None,
        occurred_at: Moment | None = None,
    ) -> Run:
        """Begin a run. Inside another run it is that one's child, unless `parent_run_id` says otherwise."""
        if parent_run_id is UNSET:
            outer = current_run()
            parent_run_id = outer.run_id if outer is not None else None
        values = {
            "input": input,
            "trigger_type": trigger_type,
            "external_run_id": external_run_id,
            "parent_run_id": parent_run_id,
            "agent_id": agent_id,
            "to": to,
        }
        if occurred_at is not None:
            values["occurred_at"] = occurred_at
        return Run(self._sender, make_id(run_id), values)

    def emit(self, type: str, payload: object = None, level: str = "info", occurred_at: object = None) -> None:  # noqa: A002 - the field's name
        """Add an event to the current run. Without one it is lost, cause `no_run`."""
        run = current_run()
        if run is not None:
            run.emit(type, payload, level, occurred_at)
        else:
            self._sender.never("event", "", "no_run", "emit() outside of a run: use `with client.start_run() as run`")

    def _decide(
        self, context: object, values: dict[str, Any], ticket: Ticket | None = None
    ) -> tuple[str, str | None, str | None]:
        """Log a decision. Returns its id, run and span."""
        values = self._placed(values)
        values["decision_id"] = make_id(values.get("decision_id"))
        self._sender.record("decision", {"context": "" if context is None else context, **values}, ticket=ticket)
        return values["decision_id"], values["run_id"], values["span_id"]

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Run and span of the context, unless the caller named them."""
        run, span = current_run(), current_span()
        place = {"run_id": run.run_id if run else None, "span_id": span.span_id if span else None}
        return {**place, **values}

    def capture_snapshot(
        self, decision_id: str | Decision | Verdict, snapshot: object, **fields: Unpack[SnapshotFields]
    ) -> None:
        """Keep what a decision was made of: prompt, answer, evaluation."""
        values = {"captured_at": time(), **self._placed(dict(fields))}
        content = {} if snapshot is None else snapshot
        self._sender.record("snapshot", {**_about("decision_id", decision_id), "snapshot": content, **values})

    def record_execution(
        self, decision_id: str | Decision | Verdict, *, execution_status: str, **fields: Unpack[ExecutionFields]
    ) -> None:
        """What was done upon a decision."""
        values = {**_about("decision_id", decision_id), "execution_status": execution_status, **fields}
        self._sender.record("execution", values)

    def record_outcome(
        self, decision_id: str | Decision | Verdict, *, outcome_status: str, **fields: Unpack[OutcomeFields]
    ) -> None:
        """What came of a decision."""
        values = {**_about("decision_id", decision_id), "outcome_status": outcome_status, **fields}
        self._sender.record("outcome", values)

    def record_crm_sync(
        self, decision_id: str | Decision | Verdict, *, sync_status: str, **fields: Unpack[CrmSyncFields]
    ) -> None:
        """What of a decision was written into the CRM."""
        self._sender.record("crm_sync", {**_about("decision_id", decision_id), "sync_status": sync_status, **fields})

    def complete_action(self, action_id: str | Verdict, result: object = None, **fields: Unpack[ActionFields]) -> None:
        """An action that was allowed has been carried out."""
        values = {"occurred_at": time(), **_about("action_id", action_id), **fields}
        self._sender.record("action.completed", {"result": result, **values})

    def fail_action(self, action_id: str | Verdict, error: object, **fields: Unpack[ActionFields]) -> None:
        """An action that was allowed went wrong. An exception may be given as it is."""
        values = {"occurred_at": time(), **_about("action_id", action_id), **fields}
        self._sender.record("action.failed", {"error": error if error is not None else "", **values})

    def heartbeat(self, status: str | None = None, metrics: object = None, **fields: Unpack[Common]) -> None:
        """The agent lives. Only the newest per agent is kept."""
        self._sender.record("heartbeat", {"status": status, "metrics": metrics, **fields}, INFO)


class Client(Gates[Verdict, str], BaseClient):
    """The daemon's friend in the agent's process. `with Client() as client:` flushes at the end."""

    def _verdict(self, steps: Steps[Verdict]) -> Verdict:
        return play(self._find, steps)

    def _text(self, steps: Steps[str]) -> str:
        return play(self._find, steps)

    def log_decision(
        self,
        context: str,
        *,
        options: object = None,
        chosen: str | None = None,
        confidence: float | None = None,
        wait: float | None = None,
        **fields: Unpack[DecisionFields],
    ) -> Decision:
        """Log a decision. With `wait` it returns once the decision is on disk, or raises NotStored."""
        values = {"options": options, "chosen": chosen, "confidence": confidence, **fields}
        if wait is None or self._channel is None:
            return Decision(*self._decide(context, values))
        from threading import Event

        done = Event()
        ticket = Ticket(done.set)
        decision = Decision(*self._decide(context, values, ticket))
        if not ticket.state:
            self._channel.hurry_up()
            done.wait(wait)
        raise_unless_stored(ticket, wait)
        return decision

    def execute_if_authorized(
        self,
        action_type: str,
        resource: str,
        execute: Callable[[], T],
        *,
        timeout: float | None = None,
        result: Callable[[T], object] | None = None,
        **fields: Unpack[ActionRequest],
    ) -> T:
        """Ask ASCEND for leave, then call `execute` and report how it went; `result` makes what is reported of its result.

        Raises GateDenied unless the verdict proceeds. What `execute` raises is reported and raised again.
        """
        verdict = self.evaluate_action(action_type, resource, timeout=timeout, **fields).require()
        with Acting(self, verdict, result) as act:
            value = execute()
            act.done(value)
        return value

    def flush(self, timeout: float = 5.0, until: str = "stored") -> FlushResult:
        """Wait until everything emitted so far is on the daemon's disk, or also `delivered` to the platforms."""
        word = check(until)
        result = flush_stored(self._channel, timeout, word)
        if self._channel is None or word == "stored" or not result.ok:
            return result
        return delivered(self._find, max(timeout - result.waited_s, 0.0), result.waited_s)

    def close(self, timeout: float | None = None) -> None:
        """Flush for at most `timeout` (default: exit_timeout) and end. Later emits are lost, cause `closed`."""
        if self._channel is not None:
            self._channel.close(self._exit_timeout if timeout is None else timeout)

    def __enter__(self) -> Self:
        """Use the client for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and end."""
        self.close()


def raise_unless_stored(ticket: Ticket, waited_s: float) -> None:
    """Raise NotStored with the reason unless the daemon has the record on disk."""
    if ticket.state == "stored":
        return
    if ticket.state:
        raise NotStored(f"the record was {ticket.state}: {ticket.reason}")
    raise NotStored(f"no answer within {waited_s:g} s; the record still waits in memory and may be stored later")
