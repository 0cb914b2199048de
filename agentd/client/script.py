"""The gates of a test: what `agentd_recorder.answer(…)` says is what the code under test hears, and what was asked is kept.

Answers given with `times` come first, in the order in which they were given; one without stays and replaces the one before.
A key works as with a daemon: asked again under it the recorded verdict comes, with another request GateKeyConflict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from agentd.client.encode import plain
from agentd.client.gates import Question
from agentd.client.verdict import WORDS, GateKeyConflict, Verdict, Word

EVERY = "*"
Answers = Word | Callable[[dict[str, Any]], "Word | Mapping[str, Any] | None"]
_SETTABLE = frozenset({"verdict", "response", "id", "platform_id", "destination", "reason", "then", "fail_open"})


class AskedGate(NamedTuple):
    """What the code under test asked, and what it heard."""

    name: str
    request: dict[str, Any]
    key: str | None
    run_id: str | None
    verdict: Verdict
    agent_id: str | None = None
    to: str | None = None
    deadline: float = 0.0  # seconds


class _Line:
    """One answer of the script, and how often it may still be given; None: for ever."""

    __slots__ = ("answer", "fields", "left")

    def __init__(self, answer: Answers, fields: Mapping[str, Any], left: int | None) -> None:
        self.answer = answer
        self.fields = fields
        self.left = left


class Script:
    """Answers by gate, and the gates that were asked."""

    def __init__(self) -> None:
        self.gates: list[AskedGate] = []
        self._counted: defaultdict[str, list[_Line]] = defaultdict(list)
        self._standing: dict[str, _Line] = {}
        self._by_key: dict[tuple[str, str], tuple[bytes, Verdict]] = {}
        self._later: dict[str, Verdict] = {}

    def answer(self, gate: str, answer: Answers, times: int | None = None, **fields: object) -> None:
        """Have a gate answer this. Raises ValueError for what no gate could answer."""
        if times is not None and times < 1:
            raise ValueError(f"answer({gate!r}): times must be at least 1, got {times}")
        if not callable(answer):
            _verdict(Question(gate, b"{}", 1.0), {"verdict": answer, **fields})
        line = _Line(answer, fields, times)
        if times is None:
            self._standing[gate] = line
        else:
            self._counted[gate].append(line)

    def ask(self, question: Question) -> Verdict | None:
        """The scripted verdict, None where there is none. Raises GateKeyConflict as the daemon would."""
        place = (question.gate, question.key or "")
        known = self._by_key.get(place)
        if known is not None:
            if known[0] != question.request:
                raise GateKeyConflict(409, "gate_key_conflict", f"$.key: {place[1]!r} was used for another request")
            return msgspec.structs.replace(known[1], repeated=True)
        for line in [*self._lines(question.gate), *self._lines(EVERY)]:
            said = line.answer(msgspec.json.decode(question.request)) if callable(line.answer) else line.answer
            if said is None:
                continue
            if line.left is not None:
                line.left -= 1
            more = said if isinstance(said, Mapping) else {"verdict": said}
            verdict, later = _verdict(question, {**line.fields, **more})
            self._later[verdict.gate_id] = later
            if question.key:
                self._by_key[place] = (question.request, verdict)
            return verdict
        return None

    def _lines(self, gate: str) -> list[_Line]:
        standing = self._standing.get(gate)
        counted = [line for line in self._counted[gate] if line.left]
        return counted if standing is None else [*counted, standing]

    def heard(self, question: Question, verdict: Verdict) -> None:
        """Keep what was asked, through live clients as well."""
        asked = msgspec.json.decode(question.request)
        named = (question.agent_id, question.to, question.deadline_s)
        self.gates.append(AskedGate(question.gate, asked, question.key, question.run_id, verdict, *named))

    def later(self, gate_id: str) -> Verdict | None:
        """What a wait for a scripted verdict brings: that of `then`, else the same again."""
        return self._later.get(gate_id)


def _verdict(question: Question, said: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
    """The verdict that a script's words make, and the later one."""
    unknown = sorted(said.keys() - _SETTABLE)
    if unknown:
        raise ValueError(f"answer({question.gate!r}): unknown {unknown[0]!r}, known are {', '.join(sorted(_SETTABLE))}")
    word, then = _word(question, said.get("verdict")), said.get("then")
    fail_open = said.get("fail_open") is True
    if fail_open and word != "unavailable":
        raise ValueError(f"answer({question.gate!r}): fail_open goes with 'unavailable' alone")
    gate_id = str(uuid4())
    verdict = Verdict(
        gate_id=gate_id,
        gate=question.gate,
        destination=str(said.get("destination") or question.to or ""),
        verdict=word,
        proceed=word == "allow" or fail_open,
        id=str(said.get("id") or gate_id),
        platform_id=said.get("platform_id"),
        reason=str(said.get("reason") or "scripted by agentd_recorder"),
        response=plain(said.get("response")),
        final=word != "pending" and then is None,
        fail_open=fail_open,
        agent_id=question.agent_id,
    )
    if then is None:
        return verdict, verdict
    last = _word(question, then)
    return verdict, msgspec.structs.replace(verdict, verdict=last, proceed=last == "allow", final=last != "pending")


def _word(question: Question, word: object) -> Word:
    for known in WORDS:
        if known == word:
            return known
    raise ValueError(f"answer({question.gate!r}): no verdict {word!r}, known are {', '.join(WORDS)}")
