"""What a gate answers, and how an agent hears that it must not act.

AgentdError
├── GateDenied       (PermissionError) `require()`: the verdict does not let the agent go on
├── GateTimeout      (TimeoutError) nobody has decided in time; agentd goes on asking, `wait(gate_id)` hears of it later
└── GateRefused      (ValueError) the question is none: the agent's author corrects the field that it names
    └── GateKeyConflict  the key was used for another request before

Whatever is not certainly a verdict that proceeds is none: an unknown word, a missing field, a daemon that isn't there.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import msgspec
from msgspec import Struct

from agentd.errors import AgentdError

Word = Literal["allow", "deny", "review", "pending", "unavailable"]
WORDS: tuple[Word, ...] = get_args(Word)
OWN_KEY = "client:"  # begins a key that we make for a question without one; agentd forgets it soon
NO_GATE = "no-gate:"  # begins the id of a verdict that no agentd gave: records naming it are dead, `gate_unavailable`
_MAX_QUOTED = 200  # characters of an answer that is quoted in a reason


class Verdict(Struct, frozen=True):
    """A gate's answer. `if verdict:` asks whether the agent may go on; `verdict.require()` raises GateDenied if not.

    `id` names what was asked in later records (`record_execution(verdict, …)`), `platform_id` is the platform's own name for
    it. `final`: the platform will say no more; what isn't final can be waited for under `gate_id`. `repeated`: the recorded
    verdict of an earlier asking under the same key. `fail_open`: nobody was asked, and `fail_mode = "open"` alone lets it
    proceed. `disabled`: the client does nothing and asked nobody. An empty `gate_id`: no agentd gave this verdict; its `id`
    is made up, and agentd buries what names it (`gate_unavailable`).
    """

    gate_id: str
    gate: str
    destination: str
    verdict: Word
    proceed: bool
    id: str
    platform_id: str | None = None
    reason: str = ""
    response: Any = None
    final: bool = True
    repeated: bool = False
    fail_open: bool = False
    disabled: bool = False
    agent_id: str | None = None  # the agent that asked: later records have to name the same

    def __bool__(self) -> bool:
        """Whether the agent may go on."""
        return self.proceed

    @property
    def allowed(self) -> bool:
        """The platform said yes. What proceeds by `fail_mode` alone was not allowed by anybody."""
        return self.verdict == "allow"

    @property
    def denied(self) -> bool:
        """The platform said no."""
        return self.verdict == "deny"

    @property
    def pending(self) -> bool:
        """The platform has not decided yet."""
        return self.verdict == "pending"

    @property
    def unavailable(self) -> bool:
        """The platform gave no word."""
        return self.verdict == "unavailable"

    def require(self) -> Self:
        """The same verdict, if it lets the agent go on. Raises GateDenied otherwise."""
        if not self.proceed:
            raise GateDenied(self)
        return self


class GateDenied(AgentdError, PermissionError):  # noqa: N818 - a state that is found, named as the reader would say it
    """The gate does not let the agent go on."""

    def __init__(self, verdict: Verdict) -> None:
        """Say which gate, its word and its reason; `verdict` keeps the rest."""
        super().__init__(_told(verdict))
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[Self], tuple[Verdict]]:
        """For pools of processes, which send exceptions home."""
        return type(self), (self.verdict,)


class GateTimeout(AgentdError, TimeoutError):  # noqa: N818 - as above
    """Nobody has decided in time."""

    def __init__(self, verdict: Verdict, waited_s: float) -> None:
        """Say how long it was waited for; `verdict` is what is known so far."""
        super().__init__(f"no final word within {waited_s:g} s: {_told(verdict)}")
        self.verdict = verdict
        self.waited_s = waited_s

    def __reduce__(self) -> tuple[type[Self], tuple[Verdict, float]]:
        """As above."""
        return type(self), (self.verdict, self.waited_s)


class GateRefused(AgentdError, ValueError):  # noqa: N818 - as above
    """The daemon does not take this question."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """`code` is the daemon's own: malformed, unrouted, foreign_reference, forbidden, gate_key_conflict, not_found."""
        super().__init__(f"agentd refused the gate ({code}): {message}")
        self.status = status
        self.code = code
        self.told = message

    @property
    def field(self) -> str:
        """The field at fault as the daemon names it (`$.request.amount`), empty where it named none."""
        return self.told.partition(": ")[0] if self.told.startswith("$") else ""

    def __reduce__(self) -> tuple[type[Self], tuple[int, str, str]]:
        """As above."""
        return type(self), (self.status, self.code, self.told)


class GateKeyConflict(GateRefused):
    """The key was used for another request before."""


def _told(verdict: Verdict) -> str:
    place = f"{verdict.gate or 'gate'} of {verdict.destination}" if verdict.destination else verdict.gate or "gate"
    return f"{place} is {verdict.verdict}" + (f": {verdict.reason}" if verdict.reason else "")


def read_verdict(body: bytes, agent_id: str | None = None) -> Verdict | None:
    """The daemon's answer; None if it is none. What a newer daemon says beyond this is left out, and never proceeds."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    word, gate_id, local_id = answer.get("verdict"), answer.get("gate_id"), answer.get("id")
    if not (isinstance(word, str) and isinstance(gate_id, str) and isinstance(local_id, str)):
        return None
    reason = _text(answer.get("reason"))
    known = _known(word)
    if known is None:
        known = "unavailable"
        reason = f"{word[:_MAX_QUOTED]!r} is a word that this client is too old to know: update it. {reason}".rstrip()
    fail_open = known == word == "unavailable" and answer.get("fail_open") is True
    platform_id = answer.get("platform_id")
    return Verdict(
        gate_id=gate_id,
        gate=_text(answer.get("gate")),
        destination=_text(answer.get("destination")),
        verdict=known,
        proceed=answer.get("proceed") is True and (known == "allow" or fail_open),
        id=local_id,
        platform_id=platform_id if isinstance(platform_id, str) else None,
        reason=reason,
        response=answer.get("response"),
        final=answer.get("final") is not False,
        repeated=answer.get("repeated") is True,
        fail_open=fail_open,
        agent_id=agent_id,
    )


def _known(word: str) -> Word | None:
    return next((known for known in WORDS if known == word), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read_fault(body: bytes) -> tuple[str, str]:
    """Code and message of an error answer, from whatever the peer wrote there."""
    try:
        fault = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", body[:_MAX_QUOTED].decode(errors="replace")
    if isinstance(fault, dict):
        return _text(fault.get("code")), _text(fault.get("message"))
    return "", _text(fault)
