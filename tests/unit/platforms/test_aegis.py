"""AegisOS Comply as an adapter: it takes nothing that is queued. Its gate is tested in test_aegis_gates."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import Attempt, Call, Context, Response, Sending, Unencodable
from agentd.outcomes import Reject
from agentd.queued import Entry, Source
from agentd.records import KINDS, LossClass

AEGIS = platforms.load("aegis")
ITEM = Entry(1, UUID(int=1).bytes, "run:x", "event", LossClass.KEEP, Source("billing", 0, 0, "test"), 0, b"{}")
CALL = Call("none", "/none")


def test_no_kind_is_queued():
    """Aegis has no call that may be sent late: it takes no kind, introduces none, and has one gate."""
    assert (dict(AEGIS.calls), AEGIS.introduces, list(AEGIS.gates)) == ({}, frozenset(), ["intent"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_record_can_be_said(kind):
    """Whatever record it is handed, it has no words for it, no reference to wait for, and no success to report."""
    item = msgspec.structs.replace(ITEM, kind=kind)
    assert AEGIS.references(item) == ()
    with pytest.raises(Unencodable, match=kind):
        AEGIS.encode(CALL, [item], Context(str, lambda _kind, local: local))
    verdict = AEGIS.classify(CALL, [item], Response(200, {}, b"{}"), Attempt(0.0))
    assert verdict == Reject(f"Aegis has no call for {kind}")


def test_headers_are_a_bearer_and_the_key():
    """Authentication as documented; the idempotency key goes along, though Aegis promises nothing for it."""
    assert AEGIS.headers(Sending("aegis_sk_x", "k", 1.8e9)) == {
        "authorization": "Bearer aegis_sk_x",
        "idempotency-key": "k",
    }
