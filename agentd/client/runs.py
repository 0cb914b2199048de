"""Runs, tasks and spans: what an agent holds while it works. Each is a context manager, `with` and `async with` alike.

Entering sets context variables, so that decisions, snapshots and nested spans know where they belong, across awaits as well.
Leaving by an exception fails what is left; leaving by cancellation, Ctrl-C or a closed generator cancels a run. Each ends
once: the first end counts. A forked child that leaves a `with` block of its parent's ends nothing.
"""

from __future__ import annotations

import itertools
import os
from contextvars import ContextVar, Token
from time import monotonic, time
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import msgspec

from agentd.client import mode
from agentd.client.buffer import KEEP, LEVEL_CLASS
from agentd.client.encode import encode, plain, safe_str, type_name
from agentd.client.lines import MAX_ID, cut_text, event_line, head, late_event, level_of, now, usage_of
from agentd.client.sender import Sender

_run: ContextVar[Run | None] = ContextVar("agentd_run", default=None)
_span: ContextVar[Span | None] = ContextVar("agentd_span", default=None)
_CANCELLED = ("CancelledError", "Cancelled")  # asyncio's and trio's, recognised without importing either
_MS = 1000
_LEVELS = frozenset({"debug", "info", "warn", "error"})


def current_run() -> Run | None:
    """The run that this code works for: the innermost `with client.start_run(…)`."""
    return _run.get()


def current_span() -> Span | None:
    """The innermost open span of the current context."""
    return _span.get()


def make_id(wanted: str | None = None) -> str:
    """The wanted id within its limit, or a new one."""
    return (cut_text(wanted, MAX_ID) if wanted is not None else "") or str(uuid4())


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception means "stop" rather than "this went wrong"."""
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return True
    return not isinstance(error, Exception) and type(error).__name__ in _CANCELLED


def is_clean_exit(error: BaseException) -> bool:
    """Whether a SystemExit means "done"."""
    return isinstance(error, SystemExit) and error.code in (None, 0)


def message_of(error: object) -> str:
    """One line for an error: an exception's class and text, or the text that was given."""
    if not isinstance(error, BaseException):
        return safe_str(error)
    text = safe_str(error)
    return f"{type_name(error)}: {text}" if text else type_name(error)


def _leave(var: ContextVar[Any], token: Token[Any] | None, mine: object) -> None:
    if token is None:
        return
    try:
        var.reset(token)
    except ValueError:  # left in another context than entered: an async generator, a fixture
        if var.get() is mine:
            var.set(None)


class Events:
    """The calls that make an event, for a run and for a client, which asks the context for its run."""

    __slots__ = ()

    def emit(self, type: str, payload: object = None, level: str = "info", occurred_at: object = None) -> None:  # noqa: A002 - the field's name
        raise NotImplementedError

    def emit_llm_request(self, model: str, prompt: object, **options: object) -> None:
        """A question to a model; options such as `temperature` stand beside the prompt."""
        self.emit("llm.request", {"model": model, "prompt": prompt, **options})

    def emit_llm_response(self, model: str, response: object, usage: object = None) -> None:
        """A model's answer. `usage`: the vendor's usage object or a dict; its token counts are kept."""
        self.emit("llm.response", {"model": model, "response": response, **(usage_of(usage) or {})})

    def emit_tool_called(self, tool: str, input: object = None) -> None:  # noqa: A002 - as the platform's SDK names it
        self.emit("tool.called", {"tool": tool} if input is None else {"tool": tool, "input": input})

    def emit_tool_returned(self, tool: str, output: object = None) -> None:
        self.emit("tool.returned", {"tool": tool} if output is None else {"tool": tool, "output": output})

    def emit_tool_failed(self, tool: str, error: object) -> None:
        self.emit("tool.failed", {"tool": tool, "error": message_of(error)}, level="error")


class Run(Events):
    """One run of an agent. Ends once, by `complete`, `fail` or `cancel`, or by leaving its `with` block."""

    __slots__ = ("_ends", "_head", "_pid", "_sender", "_spans", "_token", "agent_id", "run_id")

    def __init__(self, sender: Sender, run_id: str, values: dict[str, Any]) -> None:
        self.run_id = run_id
        self._sender = sender
        self._ends = itertools.count()  # next() is atomic: the first end gets 0
        self._spans: dict[str, Span] = {}
        self._token: Token[Run | None] | None = None
        self._pid = os.getpid()
        common = {"agent_id": sender.agent_id} | {
            name: values[name] for name in ("agent_id", "to") if values[name] is not None
        }
        self.agent_id: str | None = common["agent_id"]
        self._head = head("event", {"run_id": run_id, **common})
        sender.record("run.start", {"run_id": run_id, "occurred_at": time(), **values, **common})
        if sender.channel is not None:
            sender.channel.run_opened(1)

    def __repr__(self) -> str:
        """The run's id, for debugging."""
        return f"<Run {self.run_id}>"

    def emit(self, type: str, payload: object = None, level: str = "info", occurred_at: object = None) -> None:  # noqa: A002 - the field's name
        """Add an event. The payload is encoded before this returns, so later changes are not seen. Never raises."""
        sender = self._sender
        if sender.channel is None and mode.tap is None:
            return
        try:
            if occurred_at is None and mode.tap is None and level.__class__ is str and level in _LEVELS:
                late, size = late_event(self._head, type, level, payload)
                if size <= sender.max_record_bytes and sender.channel is not None:
                    sender.channel.send("event", LEVEL_CLASS.get(level, KEEP), self.run_id, late, size)
                    return
            level = level_of(level)
            rank = LEVEL_CLASS.get(level, KEEP)
            sender.out("event", rank, self.run_id, event_line(self._head, type, level, payload, occurred_at))
        except Exception as error:  # noqa: BLE001 - telemetry never raises
            sender.unmade("event", self.run_id, error)

    def start_task(self, name: str, input: object = None, *, task_id: str | None = None) -> Task:  # noqa: A002 - the field's name
        """Begin a task; it says `running` at once and how it ended later."""
        return Task(self, self._sender, name, input, make_id(task_id))

    def start_span(
        self,
        name: str,
        kind: str | None = None,
        payload: object = None,
        *,
        level: str = "info",
        span_id: str | None = None,
    ) -> Span:
        """Begin a span inside the current one. One record is sent, when it ends."""
        span = Span(self, self._sender, make_id(span_id), {"name": name, "span_kind": kind, "level": level}, payload)
        self._spans[span.span_id] = span
        return span

    def complete(self, output: object = None, usage: object = None) -> None:
        """End the run well. `usage`: input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens."""
        self._end("run.complete", {"output": output, "usage": usage_of(usage) or None})

    def fail(self, error_message: object, error_detail: object = None) -> None:
        """End the run badly. An exception may be given as it is; it brings its own detail."""
        if error_detail is None and isinstance(error_message, BaseException):
            error_detail = error_message
        self._end("run.fail", {"error_message": message_of(error_message), "error_detail": error_detail})

    def cancel(self, reason: object = None) -> None:
        """End the run because nobody wants it any more."""
        self._end("run.cancel", {"reason": None if reason is None else message_of(reason)})

    def _end(self, kind: str, values: dict[str, Any]) -> None:
        if next(self._ends):
            return
        for span in reversed(list(self._spans.values())):
            span.end()
        sender = self._sender
        sender.record(kind, {**values, "run_id": self.run_id})
        if sender.channel is not None:
            sender.channel.run_opened(-1)

    def __enter__(self) -> Self:
        """Make this the current run."""
        self._token = _run.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run by how it was left."""
        _leave(_run, self._token, self)
        self._token = None
        if os.getpid() != self._pid:
            return
        if error is None or is_clean_exit(error):
            self.complete()
        elif is_cancellation(error):
            self.cancel(error)
        else:
            self.fail(error)

    async def __aenter__(self) -> Self:
        """As `with`: nothing here ever waits."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `with`."""
        self.__exit__(kind, error, trace)


class _Part:
    """What Task and Span share: they belong to a run, make it the current one, and end once."""

    __slots__ = ("_ends", "_pid", "_run_token", "_sender", "run")

    def __init__(self, run: Run, sender: Sender) -> None:
        self.run = run
        self._sender = sender
        self._ends = itertools.count()
        self._run_token: Token[Run | None] | None = None
        self._pid = os.getpid()

    def _finish(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Make the run the current one, in a thread of its own too."""
        self._run_token = _run.set(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End by how it was left."""
        _leave(_run, self._run_token, self.run)
        self._run_token = None
        if os.getpid() == self._pid:
            self._finish(None if error is not None and is_clean_exit(error) else error)

    async def __aenter__(self) -> Self:
        """As `with`: nothing here ever waits."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `with`."""
        self.__exit__(kind, error, trace)


class Task(_Part):
    """A unit of work that a person would recognise on a list. Ends by `complete`, `fail` or `skip`."""

    __slots__ = ("name", "task_id")

    def __init__(self, run: Run, sender: Sender, name: str, task_input: object, task_id: str) -> None:
        super().__init__(run, sender)
        self.name = name
        self.task_id = task_id
        self._record("running", input=task_input)

    def __repr__(self) -> str:
        """The task's name and id, for debugging."""
        return f"<Task {self.name!r} {self.task_id}>"

    def complete(self, output: object = None) -> None:
        self._end("completed", output=output)

    def fail(self, error: object) -> None:
        self._end("failed", error_message=message_of(error))

    def skip(self, output: object = None) -> None:
        self._end("skipped", output=output)

    def _end(self, status: str, **values: object) -> None:
        if not next(self._ends):
            self._record(status, **values)

    def _record(self, status: str, **values: object) -> None:
        ids = {"run_id": self.run.run_id, "task_id": self.task_id, "name": self.name, "status": status}
        self._sender.record("task", {**ids, **values})

    def _finish(self, error: BaseException | None) -> None:
        if error is None:
            self.complete()
        else:
            self.fail(error)


class Span(_Part):
    """A stretch of time inside a run. Sent once, when it ends; a span whose process dies is never seen."""

    __slots__ = ("_payload", "_span_token", "_started", "_started_at", "_values", "parent_span_id", "span_id")

    def __init__(self, run: Run, sender: Sender, span_id: str, values: dict[str, Any], payload: object) -> None:
        super().__init__(run, sender)
        outer = _span.get()
        self.span_id = span_id
        self.parent_span_id = outer.span_id if outer is not None and outer.run is run else None
        self._values = values
        self._payload: bytes | None = None if payload is None or sender.silent else encode(payload)
        self._started = monotonic()
        self._started_at = now()
        self._span_token: Token[Span | None] | None = None

    def __repr__(self) -> str:
        """The span's name and id, for debugging."""
        return f"<Span {self._values['name']!r} {self.span_id}>"

    def end(self, payload: object = None) -> None:
        """End it. The payload given now is laid over the one given at the start."""
        self._end(payload, None)

    def fail(self, error: object, payload: object = None) -> None:
        """End it with an error: level `error`, and the error's text in the payload."""
        self._end(payload, message_of(error))

    def _end(self, payload: object, error: str | None) -> None:
        if next(self._ends):
            return
        self.run._spans.pop(self.span_id, None)  # noqa: SLF001 - a span is its run's own part
        if self._sender.silent:
            return
        level = level_of("error" if error is not None else self._values["level"])
        values = {
            "run_id": self.run.run_id,
            "span_id": self.span_id,
            **self._values,
            "parent_span_id": self.parent_span_id,
            "started_at": self._started_at.decode(),
            "ended_at": time(),
            "duration_ms": max(0, round((monotonic() - self._started) * _MS)),
            "level": level,
            "payload": self._overlay(payload, error),
        }
        self._sender.record("span", values, LEVEL_CLASS.get(level, KEEP))

    def _overlay(self, payload: object, error: str | None) -> object:
        """The start's payload under the end's, and the error on top."""
        if payload is None and error is None:
            return None if self._payload is None else msgspec.json.decode(self._payload)
        layers: dict[str, Any] = {}
        for layer in (None if self._payload is None else msgspec.json.decode(self._payload), plain(payload)):
            if isinstance(layer, dict):
                layers.update(layer)
            elif layer is not None:
                layers["value"] = layer
        return layers if error is None else {**layers, "error": error}

    def __enter__(self) -> Self:
        """Make this the current span."""
        self._span_token = _span.set(self)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it by how it was left."""
        _leave(_span, self._span_token, self)
        self._span_token = None
        super().__exit__(kind, error, trace)

    def _finish(self, error: BaseException | None) -> None:
        if error is None:
            self.end()
        else:
            self.fail(error)
