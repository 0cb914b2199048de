"""AegisOS Comply (https://www.aegis-comply.com/api-reference.html, its pages of the Python and Node SDKs): leave to spend.

Aegis has no call for anything that may wait in a queue: an intent is a question whose answer its agent waits for, and
runs, events, outcomes and heartbeats are unknown to it. So `calls` is empty, and all that it does is a gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentd.exchange import Attempt, Call, Context, Item, Lost, Reference, Request, Response, Sending, Unencodable
from agentd.gating import Gate
from agentd.outcomes import Reject, Verdict
from agentd.platforms._aegis_gates import GATES
from agentd.platforms._aegis_sdk import STAND_IN
from agentd.probing import Probe
from agentd.standin import StandIn


class Aegis:
    """The adapter; it has no state."""

    name = "aegis"
    default_base_url = "https://api.aegis-os.com"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()
    options: Mapping[str, tuple[str, ...]] = {}
    calls: Mapping[str, Call] = {}
    gates: Mapping[str, Gate] = GATES
    stand_in: StandIn = STAND_IN
    probe = Probe("/v1/intents?limit=1")

    def headers(self, sending: Sending) -> dict[str, str]:
        return {"authorization": f"Bearer {sending.api_key}", "idempotency-key": sending.idempotency_key}

    def references(self, item: Item) -> Sequence[Reference]:  # noqa: ARG002 - the protocol's
        return ()

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:  # noqa: ARG002 - the protocol's
        raise Unencodable(f"Aegis has no call for {items[0].kind}")

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:  # noqa: ARG002 - the protocol's
        return Reject(f"Aegis has no call for {items[0].kind}")


PLATFORM = Aegis()
