"""The bodies of AgentOS's calls, and how strictly they are read: optional fields may be left out, but never be null. The switches.

Sources: PyPI `pyagentos-sdk` 0.4.0 for fields, types and the rule about nulls; https://agentos-ai.dev/docs/events and /docs/tracing
for levels and span fields, /docs/approvals for the words of a decision. Unknown fields are let by, as no source says that they are refused; inspection shows them as sent.
Used by the face in `agentos` alone; the underscore keeps this module from being taken for a platform.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

_MAX_ERROR_MESSAGE = 4000  # characters; where pyagentos-sdk cuts
_MAX_REASON = 1000

# A payload is an object; its first key is where agentd puts the id of a record, which AgentOS has no field for.
_PAYLOAD = re.compile(rb'\s*\{(?:\s*"agentd_id"\s*:\s*"([^"\\]*)")?')

Text = Annotated[str, Meta(min_length=1)]
UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z"
Uuid = Annotated[str, Meta(pattern=UUID)]
Count = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1)]
TaskStatus = Literal["pending", "running", "completed", "failed", "skipped"]
RunStatus = Literal["running", "completed", "failed", "cancelled"]


class AgentosSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """What no source settles. The defaults are the readings that pyagentos-sdk 0.4.0 was built for."""

    late_events: Literal["accept", "409"] = "accept"  # events and tasks of a run that has ended
    second_terminal: Literal["same", "409"] = "same"  # same: the first end stands and is answered again
    duplicate_task: Literal["same", "409", "duplicate"] = "same"  # a second creation under one task id
    missing_task: Literal["create", "404"] = "create"  # an update of a task that was never created
    human_input: Literal["wait", "answer", "timeout", "cancel"] = (
        "wait"  # wait: for a person; the others come about at once
    )
    human_input_answer: Text = "yes"  # what is answered at once, or by a person who gives no text
    human_input_poll: Annotated[float, Meta(ge=0)] = 2.0  # seconds that a question is held back; AgentOS: 270
    invoke: Literal["complete", "awaiting_approval", "awaiting_input", "fail"] = (
        "complete"  # what a hosted agent comes to
    )
    rejected: Literal["fail", "complete"] = (
        "fail"  # a rejected approval fails its run, or is a tool's error to its agent
    )
    unknown_session: Literal["404", "accept"] = "404"  # a session_id that the server has not given out
    stream_end: Literal["blank_line", "bare"] = "blank_line"  # how a stream's last event ends
    max_events: Limit | None = None  # events in one batch; above: 400
    max_body_bytes: Limit = 4 * 1024 * 1024  # above: 413


class StartBody(Struct):
    agent_id: Uuid
    trigger_type: Literal["manual", "scheduled", "webhook", "sdk"] = "sdk"
    input: dict[str, Any] | UnsetType = UNSET
    external_run_id: Text | UnsetType = UNSET
    parent_run_id: Text | UnsetType = UNSET


class _Event(Struct, gc=False):
    type: Text
    level: Literal["debug", "info", "warn", "error"] | UnsetType = UNSET
    payload: Raw | UnsetType = UNSET
    occurred_at: datetime | UnsetType = UNSET
    span_id: Text | UnsetType = UNSET
    parent_span_id: Text | UnsetType = UNSET
    kind: Text | UnsetType = UNSET
    started_at: datetime | UnsetType = UNSET
    ended_at: datetime | UnsetType = UNSET
    duration_ms: Count | UnsetType = UNSET


class EventsBody(Struct):
    run_id: str
    events: list[_Event]


class TaskFields(Struct):
    id: Uuid
    name: Text
    status: TaskStatus
    input: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    error_message: str | UnsetType = UNSET


class TaskBody(Struct):
    run_id: str
    task: TaskFields


class CompleteBody(Struct):
    run_id: str
    output: Raw | UnsetType = UNSET
    input_tokens: Count | UnsetType = UNSET
    output_tokens: Count | UnsetType = UNSET
    cache_read_tokens: Count | UnsetType = UNSET
    cache_creation_tokens: Count | UnsetType = UNSET


class FailBody(Struct):
    run_id: str
    error_message: Annotated[str, Meta(max_length=_MAX_ERROR_MESSAGE)]
    error_detail: dict[str, Any] | UnsetType = UNSET


class CancelBody(Struct):
    run_id: str
    reason: Annotated[str, Meta(max_length=_MAX_REASON)] | UnsetType = UNSET


class QuestionBody(Struct):
    """Human input; with a `request_id` it is a question asked before."""

    run_id: str
    prompt: Text
    timeout_seconds: Limit = 3600
    context: dict[str, Any] | UnsetType = UNSET
    request_id: Text | UnsetType = UNSET


class _Turn(Struct):
    role: Literal["user", "assistant"]
    content: str


class InvokeBody(Struct):
    input: dict[str, Any] | UnsetType = UNSET
    prompt_variables: dict[str, str] | UnsetType = UNSET
    parent_run_id: Text | UnsetType = UNSET
    session_id: Text | UnsetType = UNSET
    start_session: bool | UnsetType = UNSET
    history: list[_Turn] | UnsetType = UNSET
    external_user_id: Text | UnsetType = UNSET
    test: bool | UnsetType = UNSET
    stream: bool | UnsetType = UNSET


class ReplyBody(Struct):
    """`request_id` belongs to `/reply` and is required there; `/human-input` answers whatever is asked."""

    response: Text
    request_id: Text | UnsetType = UNSET


class DecideBody(Struct):
    decision: Literal["approve", "reject"]


class RpcDecideBody(Struct):
    """The same over RPC, in other words."""

    approval_id: Text
    decision: Literal["approved", "rejected"]
    decision_note: str | UnsetType = UNSET


class RpcRunBody(Struct):
    run_id: Text
    limit: Limit | UnsetType = UNSET


class RpcListBody(Struct):
    agent_id: Text | UnsetType = UNSET
    status: RunStatus | UnsetType = UNSET
    limit: Limit = 20


class RpcBody(Struct):
    """What every RPC may say: the workspace that is meant, which a person's key has to."""

    workspace: Text | UnsetType = UNSET


_SHAPES: tuple[type, ...] = (
    StartBody, EventsBody, TaskBody, CompleteBody, FailBody, CancelBody, QuestionBody, InvokeBody, ReplyBody, DecideBody,
    RpcDecideBody, RpcRunBody, RpcListBody, RpcBody,
)  # fmt: skip
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {shape: msgspec.json.Decoder(shape) for shape in _SHAPES}
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
BodyT = TypeVar("BodyT")


class Refused(Exception):  # noqa: N818 - named as its reader would say it
    """The platform refuses a request: status and sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def read_body(body: bytes, shape: type[BodyT]) -> BodyT:
    """Decode and validate one body against its shape. Raises Refused with 400 and the place that is wrong."""
    try:
        if not body.isascii():
            body.decode()  # what is skipped over below is not checked for UTF-8 otherwise
        decoded: BodyT = _DECODERS[shape].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, str(error)) from error
    return decoded


def read_events(body: bytes) -> tuple[str, int, list[bytes]]:
    """Validate a batch: its run id, its size and the `agentd_id`s in it. Raises Refused: one bad event refuses all."""
    batch = read_body(body, EventsBody)
    ids: list[bytes] = []
    for index, event in enumerate(batch.events):
        if event.payload is UNSET:
            continue
        start = _PAYLOAD.match(event.payload)
        if start is None:
            raise Refused(400, f"Expected `object` - at `$.events[{index}].payload`")
        if start[1] is not None:
            ids.append(start[1])
    return batch.run_id, len(batch.events), ids


def free_json(value: Raw | UnsetType, name: str) -> bytes | None:
    """The bytes of a free JSON field, None if it was left out. Raises Refused for a null."""
    if value is UNSET:
        return None
    text = bytes(value)
    if text.strip() == b"null":
        raise Refused(400, f"Expected any value but null - at `$.{name}`")
    return text


def plain(text: bytes | None) -> Any:
    """Stored JSON as Python objects; the standard library takes over for numbers beyond msgspec's range."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return json.loads(text)
