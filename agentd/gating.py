"""Gates: calls whose answer an agent waits for before it acts. What the gate room, adapters and intake say to one another.

An adapter's `Gate` turns a question into a request and an answer into a ruling; it does no I/O and reads no clock. Whatever
it can't read for certain is not `allow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from msgspec import Raw, Struct

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response


class Word(StrEnum):
    """A gate's verdict. ALLOW alone lets the agent go on by itself; UNAVAILABLE says that the platform gave no word."""

    ALLOW = "allow"
    DENY = "deny"
    REVIEW = "review"
    PENDING = "pending"
    UNAVAILABLE = "unavailable"


class Question(Struct, frozen=True):
    """What an agent asks. `request` holds the platform's fields under the names of its Python SDK, nulls included."""

    gate: str
    gate_id: str  # agentd's own id of this asking, a UUID
    local_id: str  # what later records will call the action, decision or intent: the client's own id, else the gate's
    agent: str  # the local name of the agent, empty: the destination's
    run_id: str | None
    request: Mapping[str, Raw]
    asked_us: int  # microseconds since 1970


class Ruling(Struct, frozen=True):
    """What an answer means for whoever asked.

    `platform_id` is the platform's name for what the question made, where the answer says it. Not `final`: the platform will
    say more, and `Gate.follow` asks for it. `acted` False is said of an answer after which certainly nothing was made (turned
    away at the door, malformed): only then may the same question be asked again. `again_s`: the platform asked for rest
    (429) and can be asked the same in that many seconds.
    """

    word: Word
    reason: str = ""
    platform_id: str | None = None
    final: bool = True
    acted: bool = True
    again_s: float | None = None


class Traits(Struct, frozen=True):
    """What is particular to a gate, as data."""

    call: str  # the call's name in logs: submit, intents
    introduces: str  # the kind of reference that it makes: action, decision, intent, run, question
    id_field: str  # the field of `request` in which a client may name that itself: action_id; it is not sent
    repeat: bool = False  # the same bytes under the same key act once: may be sent again after a lost answer
    asker_field: str = (
        "agent_id"  # the field of `request` that may name the agent which asks; empty where it names another
    )
    fails_open: bool = True  # whether fail_mode = "open" covers it
    deadline_s: float = 5.0
    # How long the platform may take for its first word (a long poll takes minutes), whatever the deadline: who asked hears
    # `pending` when that is over, and what comes later is recorded. None: the first word comes within the deadline or is lost.
    answer_s: float | None = None
    poll_s: float = 0.0  # how often a pending decision is asked for; 0: it can't be followed
    poll_timeout_s: float = 10.0  # how long one such asking may take (a long poll takes minutes)


class Gate(Protocol):
    """One of a platform's gates."""

    traits: Traits

    def references(self, question: Question) -> Sequence[Reference]:
        """The ids that the platform has to know before it can be asked, such as the question's run."""
        ...

    def ask(self, question: Question, context: Context) -> Request:
        """The request, the same bytes for the same question. Raises Unencodable that names the field as `$.request.…`."""
        ...

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        """What the answer to `ask` means. For Lost: UNAVAILABLE, `acted` as `answer.sent` says."""
        ...

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:
        """The request that asks for the decision on what was made; None where there is no such call.

        Raises Unencodable when what it has to name (the question's run) has died since.
        """
        ...

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        """What the answer to `follow` means: PENDING and not final for all that isn't the platform's last word."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """A gate before which the platform's kill switch is read."""

    def guard(self) -> Request:
        """The read."""
        ...

    def rule_guard(self, answer: Response | Lost, attempt: Attempt) -> Ruling | None:
        """DENY where the switch is thrown, UNAVAILABLE where it can't be read, None where it is off or there is none."""
        ...
