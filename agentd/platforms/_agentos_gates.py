"""AgentOS's gates: `invoke` runs a hosted agent and waits for it, `human_input` asks a person and waits for the reply.

Source: PyPI pyagentos-sdk 0.4.0 (client.py, run.py), https://agentos-ai.dev/docs/api. A lost invoke may be running and a lost
first question may be on somebody's screen, so that neither is repeated; the SDK repeats them on 429 alone. A question that is
known by its `request_id` is asked for again with the same body. A run that paused (202, and by the SDK's reading any success
that says so) is no success. `invoke` with `stream` is no gate: its answer can't be read as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response, Unencodable
from agentd.gating import Gate, Question, Ruling, Traits, Word
from agentd.platforms._agentos_wire import Envelope, by_code, envelope_in, reason_of
from agentd.platforms._objections import objection
from agentd.platforms._questions import OBJECT, TEXT, Kind, check, check_names, given, read, wrong
from agentd.platforms._rulings import after, bounded, failed, is_cut, lost, says_twice, segment, still_open
from agentd.platforms.base import retry_after

_HUMAN_INPUT = "/api/ingest/v1/human-input/request"
_HUMAN_WAIT = Raw(b"3600")  # seconds; the SDK's default
_LONG_POLL_S = 285.0  # the server holds a question for 270 s; the SDK waits this long
_REST_S = 1.0  # after a 429 that names no time
# What a reply may call its state; no source does. With any other word it is nothing to go on with.
_REPLIED = frozenset({"answered", "completed", "received", "replied", "resolved", "responded"})


class _Turn(Struct):
    """One of a conversation's turns."""

    role: str
    content: str


_FLAG = Kind(bool, "expected true or false")
_INVOKE: Mapping[str, Kind] = {
    "input": OBJECT,
    "prompt_variables": Kind(dict[str, str], "expected an object of strings"),
    "parent_run_id": TEXT,
    "session_id": TEXT,
    "start_session": _FLAG,
    "history": Kind(list[_Turn], "expected an array of {role, content}"),
    "external_user_id": TEXT,
    "test": _FLAG,
}
_CONVERSATIONS = ("session_id", "start_session", "history")
_ASK: Mapping[str, Kind] = {
    "run_id": TEXT,
    "prompt": TEXT,
    "timeout_seconds": Kind(Annotated[int, Meta(ge=1, le=2**31 - 1)], "expected a whole number of seconds above 0"),
    "context": OBJECT,
}
# What the hosted agent, its caller or a person said.
_FREE = frozenset(
    {"awaitingapproval", "awaitinginput", "context", "history", "input", "metadata", "output", "prompt", "usage"}
)
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Invoke:
    """Run a hosted agent. The run that this makes is the hosted agent's: what it introduces is an `invocation`, no `run`.

    As a `run` its id would be one that records may name, and an agent's events would end up in a run that isn't its own.
    """

    traits = Traits("invoke", "invocation", "invocation_id", asker_field="", deadline_s=60.0)

    def references(self, question: Question) -> Sequence[Reference]:
        parent = _text(question, "parent_run_id")
        return (Reference("run", parent, optional=True),) if parent else ()

    def ask(self, question: Question, context: Context) -> Request:
        """The agent to run is the request's `agent_id`, a local name, else whoever asks."""
        fields = given(question, self.traits.id_field)
        if "stream" in fields:
            raise wrong("stream", "expected to be left out: a gate's answer comes whole")
        check_names(fields, {*_INVOKE, "agent_id"})
        check(fields, {**_INVOKE, "agent_id": TEXT}, ())
        for name in ("start_session", "test"):
            if read(fields, name, _FLAG) is False:  # the SDK leaves them out
                del fields[name]
        several = [name for name in _CONVERSATIONS if name in fields]
        if len(several) > 1:
            raise wrong(several[1], f"expected at most one of {', '.join(_CONVERSATIONS)}")
        body: dict[str, Any] = {"input": Raw(b"{}")} | {name: fields[name] for name in _INVOKE if name in fields}
        if "parent_run_id" in fields:
            body["parent_run_id"] = context.resolve("run", read(fields, "parent_run_id", TEXT))
            if body["parent_run_id"] is None:  # it died: the hosted run goes without a parent, as a run.start would
                del body["parent_run_id"]
        return Request(f"/api/v1/agents/{_agent(question, fields, context)}/invoke", _encode(body))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        del question
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        envelope = envelope_in(answer.body)
        if not 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return after(attempt, _refused(answer, envelope, attempt))
        data, reason = _data(answer, envelope)
        run_id = _id(data, "run_id")
        if not reason and run_id is None:
            reason = "without data.run_id"
        if reason or answer.status not in {200, 202}:
            return Ruling(Word.REVIEW, bounded(f"{answer.status} {reason or 'is not documented'}"), run_id)
        waits = _waits_for(data)
        if waits:
            return still_open(f"{answer.status} {waits}", run_id)
        state = data.get("status")
        if answer.status != 200 or state not in (None, "completed"):  # noqa: PLR2004
            return Ruling(Word.REVIEW, bounded(f"{answer.status} without a result: status {state!r}"), run_id)
        return Ruling(Word.ALLOW, "the run is complete", run_id)

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:
        """Nothing: no call is documented with which an agent's key could read how a paused run went on."""
        del question, platform_id, context
        return None

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        del question, answer, attempt
        return still_open("a paused run can't be asked for")


class HumanInput:
    """Ask a person. `allow` says that somebody replied; what they said is in the response."""

    traits = Traits(
        "human-input", "question", "question_id", deadline_s=3600.0, answer_s=_LONG_POLL_S, poll_s=1.0,
        poll_timeout_s=_LONG_POLL_S,
    )  # fmt: skip

    def references(self, question: Question) -> Sequence[Reference]:
        run_id = _text(question, "run_id") or question.run_id
        return (Reference("run", run_id),) if run_id else ()

    def ask(self, question: Question, context: Context) -> Request:
        return Request(_HUMAN_INPUT, _encode(self._body(question, context)))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        del question
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        envelope = envelope_in(answer.body)
        found = _replied(answer, envelope)
        if found is None:
            return after(attempt, _refused(answer, envelope, attempt))
        if not found.final and found.platform_id is None:
            return Ruling(Word.REVIEW, f"{answer.status} pending without data.request_id: it can't be asked for")
        return found

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:
        return Request(_HUMAN_INPUT, _encode(self._body(question, context) | {"request_id": platform_id}))

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        del question
        if isinstance(answer, Lost):
            return still_open(answer.reason)
        envelope = envelope_in(answer.body)
        found = _replied(answer, envelope)
        if found is not None and (found.word is not Word.REVIEW or _is_reply(answer, envelope)):
            return found
        refused = _refused(answer, envelope, attempt)
        return msgspec.structs.replace(still_open(refused.reason), again_s=refused.again_s)

    def _body(self, question: Question, context: Context) -> dict[str, Any]:
        fields = given(question, self.traits.id_field)
        if "request_id" in fields:
            raise wrong(
                "request_id", "expected to be left out: agentd asks again by itself, GET /v1/gates/{gate_id} waits"
            )
        check_names(fields, _ASK)
        check(fields, _ASK, ("prompt",))
        run_id = read(fields, "run_id", TEXT) or question.run_id
        if run_id is None:
            raise wrong("run_id", "required; the run on whose behalf the person is asked")
        if question.run_id not in (None, run_id):
            raise wrong("run_id", f"expected {question.run_id[:64]!r}, as beside the request, or to be left out")
        known = context.resolve("run", run_id)
        if known is None:
            raise wrong("run_id", "its run is unknown to the platform")
        body = {"run_id": known, "prompt": fields["prompt"]}
        body["timeout_seconds"] = fields.get("timeout_seconds", _HUMAN_WAIT)
        return body | ({"context": fields["context"]} if "context" in fields else {})


GATES: Mapping[str, Gate] = {"invoke": Invoke(), "human_input": HumanInput()}


# -- requests ---------------------------------------------------------------------------------------------------------------


def _text(question: Question, name: str) -> str:
    """A field that should be a text, empty where it isn't: `ask` says what is wrong with it."""
    try:
        return read(given(question, ""), name, TEXT) or ""
    except Unencodable:
        return ""


def _agent(question: Question, fields: Mapping[str, Raw], context: Context) -> str:
    """The hosted agent's id as a segment of the path. Raises Unencodable."""
    agent = context.agent(read(fields, "agent_id", TEXT) or question.agent)
    if not agent:
        raise wrong("agent_id", "required, since the destination has none")
    place = segment(agent)
    if place is None or any(c in "/\\" for c in agent):  # an encoded slash is a slash again behind some proxies
        raise wrong("agent_id", f"{agent[:64]!r} can't be the id of an agent")
    return place


# -- answers ----------------------------------------------------------------------------------------------------------------


def _data(answer: Response, envelope: Envelope | None) -> tuple[Mapping[str, Any], str]:
    """What a success carries, and why it can't be gone by (empty where it can)."""
    if envelope is None:
        return {}, "longer than can be read" if is_cut(answer) else "without AgentOS's envelope: is base_url right?"
    data = envelope.data if isinstance(envelope.data, dict) else {}
    if envelope.error is not UNSET and envelope.error is not None:
        return data, f"with an error, {envelope.error.code}: {envelope.error.message}"
    if says_twice(answer.body):
        return data, "in which a name occurs twice"
    doubt = objection(_decode_any(answer.body), _FREE)
    if doubt:
        return data, f"in which {doubt} contradicts it"
    return data, "" if data else "without data"


def _id(data: Mapping[str, Any], name: str) -> str | None:
    named = data.get(name)
    return named if isinstance(named, str) and segment(named) is not None else None


def _waits_for(data: Mapping[str, Any]) -> str:
    """What a run has paused for, empty where it has not."""
    approval, question = data.get("awaiting_approval"), data.get("awaiting_input")
    if approval:
        named = approval.get("approval_id") if isinstance(approval, dict) else None
        return f"awaiting approval {named or ''}".rstrip()
    if question:
        asked = question.get("question") if isinstance(question, dict) else None
        return f"awaiting input: {asked or ''}".rstrip(": ")
    return ""


def _replied(answer: Response, envelope: Envelope | None) -> Ruling | None:
    """What is said of a question, None where the answer says nothing of it."""
    code = envelope.error.code if envelope is not None and envelope.error else ""
    if (answer.status, code) in {(408, "TIMEOUT"), (409, "CONFLICT")}:
        return Ruling(Word.DENY, bounded(reason_of(answer, envelope)))
    if not 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
        return None
    data, reason = _data(answer, envelope)
    request_id, state, said = _id(data, "request_id"), data.get("status"), data.get("input")
    if not reason and state == "pending":
        return still_open(f"{answer.status} pending: nobody has replied yet", request_id)
    if not reason and answer.status == 200 and (state is None or (isinstance(state, str) and state in _REPLIED)):  # noqa: PLR2004
        if isinstance(said, str) and said.strip():
            return Ruling(Word.ALLOW, "a person replied", request_id)
        reason = "with an empty reply"
    return Ruling(Word.REVIEW, bounded(f"{answer.status} {reason or f'without a reply: status {state!r}'}"), request_id)


def _is_reply(answer: Response, envelope: Envelope | None) -> bool:
    """Whether a poll was answered with a reply, however it reads: there will be no other."""
    return answer.status == 200 and envelope is not None and not envelope.error  # noqa: PLR2004


def _refused(answer: Response, envelope: Envelope | None, attempt: Attempt) -> Ruling:
    """An answer that is no success."""
    reason = reason_of(answer, envelope)
    status = by_code(answer, envelope).status
    if status == 404 and envelope is None:  # noqa: PLR2004
        return failed(status, f"{reason}: is base_url right?")
    wait = None
    if status == 429:  # noqa: PLR2004
        wait = retry_after(answer.headers, attempt.now_s)
        wait = _REST_S if wait is None else wait
    return failed(status, reason, wait)
