"""What an SDK gets for a gate: the platform's answer, and from the record only what can be given from there."""

from __future__ import annotations

import pytest
from msgspec import Raw

from agentd import platforms
from agentd.compat.names import Refused
from agentd.compat.paths import Doors
from agentd.compat.relay import _answer
from agentd.compat.stands import Stand
from agentd.exchange import Lost, Response
from agentd.gate.keeper import Passed
from agentd.queued import Source
from agentd.reach import Reach
from agentd.spool.gaterows import GateRow
from agentd.standin import Called, Why

GATE = GateRow("g-1", "invoke", "a", Source("", 1, 1, "sdk"), -1, None, b"", "", "g-1", None, None, b"{}", "", 1, 5.0)
ANSWER = Response(202, {"content-type": "application/json", "connection": "close"}, b'{"data": {}}')


def given(answer, *, repeated=False, stream=b"null"):
    stand_in = platforms.load("agentos").stand_in
    stand = Stand("a", None, stand_in, Doors([]), None, Reach("http://x"), "", None, 5.0, 2.0, False)
    (door,) = (door for door in stand_in.doors if door.streams)
    called = Called(door, {"agent_id": "x"}, (), {}, b"", {"stream": Raw(stream)}, 1)
    verdict = {"reason": "no connection"} | ({"repeated": True} if repeated else {})
    return _answer(Passed(answer, GATE, verdict), stand, called)


@pytest.mark.parametrize(
    ("repeated", "stream"), [(False, b"null"), (True, b"null"), (True, b"false"), (False, b"true")]
)
def test_the_platforms_answer_is_passed_on(repeated, stream):
    """Status and body as they came, from the platform or from the record."""
    answer = given(ANSWER, repeated=repeated, stream=stream)
    assert (answer.status, answer.body, answer.headers.get("connection")) == (202, ANSWER.body, None)


@pytest.mark.parametrize(
    ("answer", "more", "why", "words"),
    [
        (None, {}, Why.UNREACHABLE, "no connection; nothing was sent"),
        (Lost("no answer in time", sent=True), {}, Why.OUTCOME_UNKNOWN, "do not repeat it"),
        (Response(302, {"location": "http://y"}, b""), {}, Why.UNREACHABLE, "redirects"),
        (ANSWER, {"repeated": True, "stream": b"true"}, Why.OUTCOME_UNKNOWN, "agentd gates show g-1"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(answer, more, why, words):
    """A stream from before a restart can't be given again: an SDK that reads events would take the whole for none."""
    with pytest.raises(Refused, match=words) as refused:
        given(answer, **more)
    assert refused.value.why is why
