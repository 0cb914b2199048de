"""Gates on which the platform decides later: asked after until there is a last word, with the agent or without it.

While somebody waits the platform is asked every `poll_s`; later the pauses double up to half a minute. After `gate.follow`
(also counted over restarts) the question is closed as `unavailable`: the platform gave no word, and may still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from agentd.exchange import Attempt, Request, Unencodable, told_at
from agentd.gate.flow import Flow
from agentd.gate.sending import Outcome, json_of, status_of
from agentd.gating import Ruling, Word
from agentd.spool.gaterows import Step
from agentd.units import format_duration

log = logging.getLogger("agentd.gate")

LONGEST_PAUSE_S = 30.0
_ANOTHER = "the platform answered about another thing than the one that it was asked for; it is asked on"


async def follow(flow: Flow) -> None:
    """Ask after a pending gate until its last word is on record."""
    pause_s = flow.adapter.traits.poll_s
    while flow.gate.step is Step.PENDING:
        left_s = _left_s(flow)
        if left_s <= 0:
            await flow.conclude(Outcome(_expired(flow)))
            return
        request = _request(flow)
        if flow.stuck != (request is None):
            flow.stuck = request is None
            flow.tell()
        if request is None:
            await asyncio.sleep(min(LONGEST_PAUSE_S, left_s))
            continue
        await _rest(flow, min(pause_s, left_s))
        if flow.sender.left_s() <= 0:
            flow.announce_pending()
        ruling = await _poll(flow, request)
        pause_s = _next_pause_s(flow, pause_s, ruling)


def _next_pause_s(flow: Flow, pause_s: float, ruling: Ruling) -> float:
    longer_s = min(pause_s * 2, LONGEST_PAUSE_S)
    return max(longer_s if not _is_waited_for(flow) else flow.adapter.traits.poll_s, ruling.again_s or 0.0)


def _is_waited_for(flow: Flow) -> bool:
    return flow.watchers > 0 or flow.sender.left_s() > 0


def _left_s(flow: Flow) -> float:
    return flow.common.follow_s - flow.common.age_us(flow.gate.asked_us) / 1e6


def _expired(flow: Flow) -> Ruling:
    reason = f"no decision within gate.follow ({format_duration(flow.common.follow_s)})"
    return Ruling(Word.UNAVAILABLE, reason, flow.gate.platform_id, acted=True)


def _request(flow: Flow) -> Request | None:
    """None where there is no way to ask."""
    if flow.adapter.traits.poll_s <= 0 or flow.gate.platform_id is None:
        return None
    try:
        return flow.adapter.follow(flow.question, flow.gate.platform_id, flow.context())
    except Unencodable:
        return None
    except Exception:
        log.exception("%s: the adapter failed", flow, extra={"action": "defect"})
        return None


async def _rest(flow: Flow, pause_s: float) -> None:
    """The pause before the next look; who comes to wait for the decision ends it."""
    flow.looked_for.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await flow.looked_for.wait()


async def _poll(flow: Flow, request: Request) -> Ruling:
    """Ask once, and record what is new."""
    traits = flow.adapter.traits
    async with contextlib.nullcontext() if _is_waited_for(flow) else flow.desk.polls:
        answer = await flow.sender.fetch(request, traits.poll_timeout_s)
    now_s = told_at(answer, flow.common.now_us() / 1e6)
    attempt = Attempt(now_s, agent_id=flow.desk.agent_of(flow.gate.source.agent))
    try:
        ruling = flow.adapter.rule_followed(flow.question, answer, attempt)
    except Exception as error:
        log.exception("%s: the adapter failed", flow, extra={"action": "defect"})
        return Ruling(Word.PENDING, repr(error), final=False)
    if ruling.platform_id not in (None, flow.gate.platform_id):
        return await _beside_the_point(flow, ruling)
    if ruling.final:
        # it was made, whatever else is said of it: under its key it is not asked again
        final = msgspec.structs.replace(ruling, acted=True)
        await flow.conclude(Outcome(final, response=json_of(answer), status=status_of(answer)))
    elif ruling.word is not flow.gate.word:
        await flow.conclude(Outcome(ruling))
    return ruling


async def _beside_the_point(flow: Flow, ruling: Ruling) -> Ruling:
    """The platform answered about another thing than the one it was asked for: no word of that is said of ours."""
    still = Ruling(Word.PENDING, _ANOTHER, final=False, again_s=ruling.again_s)
    if (flow.gate.word, flow.gate.reason) != (still.word, still.reason):
        log.warning(
            "%r: asked for %r, answered about %r", flow, flow.gate.platform_id, ruling.platform_id,
            extra={"action": "gate_answer_foreign", "destination": flow.gate.destination},
        )  # fmt: skip
        await flow.conclude(Outcome(still))
    return still
