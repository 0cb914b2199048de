"""The demonstration's last run: acts for which the agent asks first, and a decision that it answers for.

    what is decided          asked of     the sandbox says          and then
    which answer to publish  nobody       –                         decision and snapshot at Decision OS
    publish it on the board  decide.fyi   yes, by the rulebook      the board is written; execution and outcome on record
    mail it to all readers   ASCEND       no: personal data stays   nothing is mailed
    order a printed copy     Aegis        a person has to approve   ordered when somebody has

Acts are real as far as they go: board, outbox and orders are files, and what is refused is not written.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentd import Client
    from agentd.client.verdict import Verdict
    from agentd.sandbox.demo import Report

QUESTION = "What goes on the board?"
_MOST_WORDS = 60  # the board has room for so many
_PRICE_EUR = 42.0
_PERSON_WITHIN_S = 60.0
_PUBLISH = {"decision": "yes", "verdict": "PUBLISH", "reason_code": "FITS_THE_BOARD", "action": "publish_answer"}
_KEEP = {"decision": "no", "verdict": "KEEP", "reason_code": "TOO_LONG", "action": "keep_answer"}
_RULEBOOK = {
    "schema_version": "rulebook_v1",
    "rulebook_id": "board",
    "version": "1",
    "input_schema": {"required": ["words"], "properties": {"words": {"type": "number"}}},
    "rules": [
        {
            "rule_id": "fits",
            "condition": {"field": "words", "operator": "lte", "value": _MOST_WORDS},
            "outcome": _PUBLISH,
        }
    ],
    "default_outcome": _KEEP,
}


class Asked(NamedTuple):
    """An act, what was said of it, and whether it was done."""

    act: str
    platform: str
    verdict: str
    id: str
    platform_id: str | None
    waited_s: float
    done: bool


class Account(NamedTuple):
    """What the run told agentd, for comparison with what the platforms hold. `records` went to other platforms than AgentOS."""

    run_id: str
    question: str
    events: list[str]
    decision_id: str
    chosen: str
    asked: list[Asked]
    records: int


class Publisher:
    """The run. `board` is the file to publish on."""

    def __init__(self, client: Client, board: Path) -> None:
        self._client = client
        self._board = board
        self._events: list[str] = []
        self._asked: list[Asked] = []
        self._records = 0

    def work(self, reports: Sequence[Report]) -> Account:
        """Choose the best answer, publish it as far as one may, and say what became of it."""
        with self._client.start_run(input={"question": QUESTION}, trigger_type="manual") as run:
            answers = {report.question: report.answer for report in reports if report.answer}
            decision_id, chosen = self._choose(answers)
            answer = answers.get(chosen) or ""
            self._publish(answer)
            self._mail(answer)
            self._order(chosen)
            self._events.append("board.closed")
            run.emit("board.closed", {"asked": len(self._asked), "done": sum(asked.done for asked in self._asked)})
            run.complete({"chosen": chosen})
        return Account(run.run_id, QUESTION, self._events, decision_id, chosen, self._asked, self._records)

    def _choose(self, answers: dict[str, str]) -> tuple[str, str]:
        """The longest answer that the board has room for, and why: a decision and what it was made of."""
        fitting = {question: len(answer.split()) for question, answer in answers.items()}
        chosen = max((q for q, words in fitting.items() if words <= _MOST_WORDS), key=lambda q: fitting[q], default="")
        decision = self._client.log_decision(
            "Which answer goes on the board?",
            options=list(answers) or ["none"],
            chosen=chosen or "none",
            confidence=round(1 / max(1, len(answers)), 3),
            constraints=[f"at most {_MOST_WORDS} words"],
            runner="agentd demo",
        )
        self._client.capture_snapshot(
            decision, {"prompt": fitting, "response": chosen}, eval_pass=bool(chosen), timings={"answers": len(answers)}
        )
        self._records += 2
        return decision.decision_id, chosen

    def _publish(self, answer: str) -> None:
        words = len(answer.split())
        context = {"requested_action": "publish_answer", "target_system": "board", "inputs": {"words": words}}
        began = time.monotonic()
        verdict = self._client.decide(mode="rulebook", rulebook=_RULEBOOK, context=context)
        if verdict:
            self._write(self._board.name, answer)
            acted: dict[str, Any] = {"action_taken": "publish_answer", "target_system": "board"}
            self._client.record_execution(verdict, execution_status="executed", **acted)
            self._client.record_outcome(
                verdict, outcome_status="succeeded", action_executed=True, observed_metrics={"words": words}, **acted
            )
            self._records += 2
        self._note("publish the answer on the board", "decide.fyi", verdict, began, self._board.name)

    def _mail(self, answer: str) -> None:
        began = time.monotonic()
        verdict = self._client.evaluate_action(
            "communication",
            "addresses of all readers",
            tool_name="send_mail",
            description=f"Mail an answer of {len(answer.split())} words to every reader",
            risk_indicators={"pii_involved": True, "external_transfer": True},
        )
        if verdict:
            self._write("outbox.txt", answer)
            self._client.complete_action(verdict)
        self._note("mail it to all readers", "ASCEND", verdict, began, "outbox.txt")

    def _order(self, chosen: str) -> None:
        """A spend: it waits for a person, and nothing is ordered before."""
        began = time.monotonic()
        reason = f"A printed copy of: {chosen}"[:200]
        verdict = self._client.submit_intent(_PRICE_EUR, "EUR", reason, merchant="Copy shop", deadline=_PERSON_WITHIN_S)
        if verdict:
            self._write("orders.txt", reason)
        self._note(f"order a printed copy for {_PRICE_EUR:.0f} EUR", "AegisOS", verdict, began, "orders.txt")

    def _write(self, name: str, text: str) -> None:
        (self._board.parent / name).write_text(text + "\n", encoding="utf-8")

    def _note(self, act: str, platform: str, verdict: Verdict, began: float, name: str) -> None:
        """Whether it was done is not what we think: it is whether its file is there."""
        waited_s = round(time.monotonic() - began, 1)
        done = (self._board.parent / name).exists()
        self._asked.append(Asked(act, platform, verdict.verdict, verdict.id, verdict.platform_id, waited_s, done))
