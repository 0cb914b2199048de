"""What a gate's client does, step by step, without a socket: ask, ask again after a lost answer, wait for the last word.

A `Steps` is a generator that yields what is to be done next (an exchange with the daemon, a pause) and returns what came of
it. `play` does the steps in the calling thread, `aio_gates.play` on an event loop; the rules stand here once.

    ask(question)            one POST /v1/gate; its answer, or UNAVAILABLE with the reason and the cure
    wait(gate_id, timeout)   GET /v1/gates/{id}?wait= as often as it takes; either goes on across restarts of the daemon

A question always goes out under a key, one of its own where the caller gave none, because the daemon acts once for a key:
so what was sent and not answered (the daemon was restarted) can be asked again while there is time. What certainly was not
sent is not tried again: without a daemon the answer is UNAVAILABLE at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from decimal import Decimal
from math import isfinite
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeAlias, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Struct

from agentd.client import mode
from agentd.client.arguments import seconds_above_0, text
from agentd.client.encode import encode, with_number
from agentd.client.find import NoDaemon
from agentd.client.http import Heard, Unheard, exchange, request
from agentd.client.verdict import (
    NO_GATE,
    OWN_KEY,
    GateDenied,
    GateKeyConflict,
    GateRefused,
    GateTimeout,
    Verdict,
    read_fault,
    read_verdict,
)

DEADLINE_S = 5.0  # and of these gates (contract §4):
DEADLINES_S = {"invoke": 60.0, "human_input": 3600.0}
GRACE_S = 2.0  # the daemon counts the deadline itself; then it writes the verdict to the disk, which may be busy
MAX_KEY = 300  # characters
LONG_POLL_S = 30.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0
_EARLY_S = 0.5  # before its deadline a gate that isn't final is looked at again: its daemon may be on its way down
_OK, _NOT_FOUND, _CONFLICT, _BROKEN = 200, 404, 409, 500
_AUTHORS = frozenset({400, 403, _CONFLICT, 413, 415, 422})  # the question is at fault: nothing gets better by itself
_START = "Start one with `agentd run`"
_UNTRIED = Unheard("nobody has tried", sent=False)  # what a pause brings

T = TypeVar("T")


class Exchange(NamedTuple):
    """Ask the daemon, and bring its answer."""

    message: bytes
    timeout_s: float


class Pause(NamedTuple):
    seconds: float


Step: TypeAlias = Exchange | Pause
Steps: TypeAlias = Generator[Step, Heard | Unheard | None, T]
Find: TypeAlias = Callable[[], str]


class Question(Struct, frozen=True):
    """One asking. The request is encoded already: what the caller changes later is not seen."""

    gate: str
    request: bytes
    deadline_s: float
    to: str | None = None
    key: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    span_id: str | None = None

    def message(self, key: str, deadline_s: float) -> bytes:
        """The HTTP request."""
        named = {"to": self.to, "agent_id": self.agent_id, "run_id": self.run_id, "span_id": self.span_id}
        body = {
            "gate": self.gate,
            "deadline": round(max(deadline_s, 0.001), 3),
            "key": key,
            **{name: value for name, value in named.items() if value is not None},
            "request": msgspec.Raw(self.request),
        }
        return request("POST", "/v1/gate", msgspec.json.encode(body))


def make_question(
    gate: str, asked: Mapping[str, object], deadline: float | None, key: str | None, **named: str | None
) -> Question:
    """A question, checked as far as one can without knowing the platform. Raises TypeError and ValueError."""
    text("gate()", "name", gate)
    if not isinstance(asked, Mapping):
        raise TypeError(f"gate {gate!r}: expected a mapping of the platform's fields, got {type(asked).__name__}")
    call = f"gate {gate!r}"
    default_s = DEADLINES_S.get(gate, DEADLINE_S)
    deadline_s = default_s if deadline is None else seconds_above_0(call, "deadline", deadline)
    named = {name: value if value is None else text(call, name, value) for name, value in named.items()}
    if key is not None:
        key = text(call, "key", key, MAX_KEY)
    return Question(gate, _request(gate, asked), deadline_s, key=key, **named)


def _request(gate: str, asked: Mapping[str, object]) -> bytes:
    """The platform's fields as JSON. A Decimal is text, but for an intent's amount, which is a number."""
    amount = asked.get("amount")
    if gate != "intent" or not isinstance(amount, Decimal):
        return encode(dict(asked))
    if not amount.is_finite() or not isfinite(float(amount)):
        raise ValueError(f"gate {gate!r}: the amount must be a finite number, got {amount}")
    return with_number(asked, "amount", amount)


def nobody(question: Question, reason: str) -> Verdict:
    """What an agent hears where nobody answered. agentd knows its id for what it is: later records that name it are dead."""
    return Verdict(
        gate_id="",
        gate=question.gate,
        destination="",
        verdict="unavailable",
        proceed=False,
        id=f"{NO_GATE}{uuid4()}",
        reason=reason,
        agent_id=question.agent_id,
    )


def ask(question: Question, now: Callable[[], float] = monotonic) -> Steps[Verdict]:
    """Ask, and hear the verdict. Raises GateRefused where the agent's author is at fault, never for a missing daemon."""
    key = question.key or f"{OWN_KEY}{uuid4()}"
    end = now() + question.deadline_s
    pause = _FIRST_PAUSE_S
    sent = False
    while True:
        left = end - now()
        heard = yield Exchange(question.message(key, left), left + GRACE_S)
        if isinstance(heard, Heard) and not (sent and heard.status >= _BROKEN):
            verdict = _verdict_of(question, heard, asked_again=sent)
            return verdict if verdict.final else (yield from _go_on(verdict, end, now))
        reason, was_sent = _reason_of(heard)
        sent = sent or was_sent
        if not sent:
            return nobody(question, f"no daemon: {reason}. {_START}; nothing was asked")
        if end - now() <= pause:
            return nobody(question, _lost(reason))
        yield Pause(pause)
        pause = min(2 * pause, _LAST_PAUSE_S)


def _go_on(verdict: Verdict, end: float, now: Callable[[], float]) -> Steps[Verdict]:
    """Before the deadline agentd goes without the last word where it can't hear it, or because it is being restarted."""
    if end - now() <= _EARLY_S:
        return verdict
    yield Pause(_EARLY_S)
    try:
        later = yield from _watch(verdict, end, now, patient=False)
    except GateRefused:  # a daemon on another folder has come up, which knows nothing of it
        return verdict
    return msgspec.structs.replace(later, repeated=verdict.repeated)


def _reason_of(heard: Heard | Unheard | None) -> Unheard:
    if isinstance(heard, Heard):
        return Unheard(f"{heard.status} {read_fault(heard.body)[1]}", sent=True)
    return heard or _UNTRIED


def _lost(reason: str) -> str:
    return (
        f"agentd's answer was lost: {reason}. The platform may have been asked: `agentd gates list` shows it,"
        " and asking again under the same key brings its verdict"
    )


def _verdict_of(question: Question, heard: Heard, *, asked_again: bool) -> Verdict:
    if asked_again and heard.status == _CONFLICT and question.key is None:
        return nobody(question, _lost("asked again, it took that for another question"))
    if heard.status in _AUTHORS:
        raise _refusal(heard)
    if heard.status == _NOT_FOUND:
        return nobody(question, "this agentd is older than its client and knows no gates: update it; nothing was asked")
    if heard.status != _OK:
        code, message = read_fault(heard.body)
        return nobody(question, f"agentd could not ask ({heard.status} {code}): {message}")
    verdict = read_verdict(heard.body, question.agent_id)
    if verdict is None:
        return nobody(question, "agentd's answer is no verdict: is something else listening on its socket?")
    if asked_again and question.key is None:
        return msgspec.structs.replace(verdict, repeated=False)  # it was our own first try
    return verdict


def _refusal(heard: Heard) -> GateRefused:
    code, message = read_fault(heard.body)
    kind = GateKeyConflict if heard.status == _CONFLICT else GateRefused
    return kind(heard.status, code or str(heard.status), message)


def wait(known: Verdict | str, timeout_s: float, now: Callable[[], float] = monotonic) -> Steps[Verdict]:
    """A gate's last word, or how it stands when the time is over. Raises GateRefused for a gate that agentd doesn't know."""
    verdict = known if isinstance(known, Verdict) else _unknown(known)
    return (yield from _watch(verdict, now() + timeout_s, now, patient=True))


def _unknown(gate_id: str) -> Verdict:
    return Verdict(gate_id, "", "", "unavailable", proceed=False, id=gate_id, final=False)


def _watch(known: Verdict, end: float, now: Callable[[], float], *, patient: bool) -> Steps[Verdict]:
    """Look at a gate until its last word or the end. Who isn't patient takes "nothing more will come" for an answer."""
    from urllib.parse import quote

    pause = _FIRST_PAUSE_S
    while True:
        began = now()
        poll_s = min(max(end - began, 0.0), LONG_POLL_S)
        target = f"/v1/gates/{quote(known.gate_id, safe='')}?wait={poll_s:.3f}"
        heard = yield Exchange(request("GET", target), poll_s + GRACE_S)
        verdict = _standing(known, heard)
        left = end - now()
        if verdict.final or left <= 0:
            return verdict
        if isinstance(heard, Heard) and heard.status == _OK:
            if now() - began >= poll_s / 2:
                continue  # it has waited: no need to spare it
            if not patient:
                return verdict
        yield Pause(min(pause, left))
        pause = min(2 * pause, _LAST_PAUSE_S)


def _standing(known: Verdict, heard: Heard | Unheard | None) -> Verdict:
    """What one look at a gate says. Not final: look again."""
    if not isinstance(heard, Heard):
        reason = f"no daemon: {_reason_of(heard).reason}. {_START}"
        return msgspec.structs.replace(known, reason=reason, proceed=False)
    if heard.status in _AUTHORS or heard.status == _NOT_FOUND:
        raise _refusal(heard)
    verdict = read_verdict(heard.body, known.agent_id) if heard.status == _OK else None
    if verdict is not None:
        return verdict
    return msgspec.structs.replace(known, reason=f"agentd could not say: {_reason_of(heard).reason}", proceed=False)


def decided(verdict: Verdict, waited_s: float) -> Verdict:
    """The verdict if it is the last word. Raises GateTimeout."""
    if not verdict.final:
        raise GateTimeout(verdict, waited_s)
    return verdict


def input_of(verdict: Verdict, waited_s: float) -> str:
    """What a person answered. Raises GateTimeout if nobody did, GateDenied if the question was cancelled or never asked."""
    if not verdict.final or verdict.pending or _timed_out(verdict.response):
        raise GateTimeout(verdict, waited_s)
    verdict.require()
    answer = verdict.response
    if isinstance(answer, Mapping) and isinstance(answer.get("data"), Mapping):
        answer = answer["data"]  # the platform's envelope
    text = answer.get("input") if isinstance(answer, Mapping) else None
    if isinstance(text, str):
        return text
    if verdict.disabled:
        return ""  # as the platform's own SDK does where it is disabled
    raise GateDenied(msgspec.structs.replace(verdict, proceed=False, reason="the answer holds no input"))


def _timed_out(response: Any) -> bool:
    """Whether the platform says that its own time is over (AgentOS: 408 TIMEOUT)."""
    fault = response.get("error") if isinstance(response, Mapping) else None
    return isinstance(fault, Mapping) and fault.get("code") == "TIMEOUT"


# -- clients that do nothing, and tests ------------------------------------------------------------------------------------

_UNASKED = {
    "environment": "AGENTD_DISABLED is set, so nobody was asked. Unset it; AGENTD_DISABLED=allow lets every gate allow",
    "pytest": "no answer is scripted for this gate: agentd_recorder.answer({gate!r}, 'allow') gives one,"
    " --agentd-live lets clients speak to a real daemon",
}


def unasked(question: Question, why_disabled: str) -> Verdict:
    """The verdict of a client that does nothing. Only what was turned off on purpose, for gates as well, allows."""
    verdict = msgspec.structs.replace(nobody(question, ""), disabled=True)
    if why_disabled in _UNASKED:
        return msgspec.structs.replace(verdict, reason=_UNASKED[why_disabled].format(gate=question.gate))
    return msgspec.structs.replace(verdict, verdict="allow", proceed=True, reason="this client is disabled")


def ask_as(question: Question, why_disabled: str) -> Steps[Verdict]:
    """Ask as the client may: the daemon, the test's script, or nobody. The test's recorder hears of it in any case."""
    script = mode.script
    verdict = script.ask(question) if script is not None and why_disabled else None
    if verdict is None:
        verdict = (yield from ask(question)) if not why_disabled else unasked(question, why_disabled)
    if script is not None:
        script.heard(question, verdict)
    return verdict


def wait_as(known: Verdict | str, timeout_s: float, why_disabled: str) -> Steps[Verdict]:
    """Wait as the client may. A verdict that is final already is brought back as it is."""
    if isinstance(known, Verdict) and (known.final or not known.gate_id):
        return known
    if not why_disabled:
        return (yield from wait(known, timeout_s))
    script = mode.script
    gate_id = known.gate_id if isinstance(known, Verdict) else known
    verdict = script.later(gate_id) if script is not None else None
    if verdict is not None:
        return verdict
    return known if isinstance(known, Verdict) else unasked(Question("", b"{}", timeout_s), why_disabled)


# -- doing it --------------------------------------------------------------------------------------------------------------


def place(find: Find) -> str | Unheard:
    """Where the daemon is, or why it isn't there."""
    try:
        return find()
    except (NoDaemon, ValueError) as error:  # ValueError: a path with a null byte in it
        return Unheard(str(error), sent=False)


def play(find: Find, steps: Steps[T]) -> T:
    """Do the steps in this thread."""
    heard: Heard | Unheard | None = None
    while True:
        try:
            step = steps.send(heard)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(step, Pause):
            sleep(step.seconds)
            heard = None
        else:
            path = place(find)
            heard = path if isinstance(path, Unheard) else exchange(path, step.message, step.timeout_s)
