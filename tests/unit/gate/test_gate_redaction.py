"""Gates and secrets: the platform hears the question as it was asked and the agent the answer as it was given; the record holds neither's secrets."""

from __future__ import annotations

import json

import msgspec
import pytest
from gate_kit import ScriptedWay, opened, says, warped

from agentd.gate.asking import digest_of
from agentd.intake import GateRefusal
from agentd.redact.build import build_redactor
from agentd.sections import Redact, Secret
from agentd.spool.tables import Table

KEY = "sk" + "-" + "4f" * 16  # of nobody


def rules(**keys):
    return build_redactor(Redact(**keys), {"K": "k" * 16})


def on_disk(room):
    return b"".join(value for table in Table for _, value in room.store.rows(table))


@warped
async def test_the_record_holds_no_secret_and_those_who_talk_hear_all():
    """The platform is asked what was asked, the agent hears what was said; disk and journal have both without secrets, and say what hit."""
    answer = says("allow", output=KEY, reason=f"fine, {KEY}")
    async with opened(way=ScriptedWay(answer), redactor=rules()) as room:
        heard = await room.ask(request={"card": {"password": "hunter2"}, "what": KEY})
        assert heard["response"]["output"] == KEY
        sent = json.loads(room.way.sent[0][0].body)["request"]
        assert sent == {"card": {"password": "hunter2"}, "what": KEY}
        row = room.row(heard["gate_id"])
        assert json.loads(row.request) == {"card": {"password": "[redacted:password]"}, "what": "[redacted:openai-key]"}
        assert json.loads(row.response)["output"] == "[redacted:openai-key]"
        assert row.source.redaction == rules().version
        assert b"hunter2" not in on_disk(room)
        assert KEY.encode() not in on_disk(room)
        notes = room.journal(heard["gate_id"])
        assert notes[0].redactions == {"password": 1, "openai-key": 1}
        seen = await room.look(heard["gate_id"])
        assert KEY not in json.dumps(json.loads(bytes(seen["request"])))
        await room.crash()
        again = json.loads(msgspec.json.encode(await room.look(heard["gate_id"])))
        assert again["response"]["output"] == "[redacted:openai-key]"


@warped
async def test_the_same_question_is_known_and_another_secret_is_another():
    """Under a key: while the process lives also where the secret alone differs; the digest on disk is of the redacted question."""
    async with opened(redactor=rules()) as room:
        first = await room.ask(request={"password": "one-1"}, key="k")
        assert (await room.ask(request={"password": "one-1"}, key="k")) == first | {"repeated": True}
        with pytest.raises(GateRefusal, match="was used for another question"):
            await room.ask(request={"password": "two-2"}, key="k")
        with pytest.raises(GateRefusal, match="was used for another question"):
            await room.ask(request={"password": "one-1", "n": 1}, key="k")
        await room.crash()
        assert (await room.ask(request={"password": "one-1"}, key="k"))["repeated"]
        with pytest.raises(GateRefusal, match="was used for another question"):
            await room.ask(request={"password": "one-1", "n": 1}, key="k")
        assert len(room.way.sent) == 1


@warped
async def test_no_digest_on_disk_is_of_the_secret():
    """A short secret could be tried out on it: what is stored is the digest of the question as it is stored."""
    async with opened(redactor=rules()) as room:
        heard = await room.ask(request={"password": "one-1"}, key="k")
        row = room.row(heard["gate_id"])
        assert row.digest == digest_of("act", "cloud", "", None, b'{"password":"[redacted:password]"}')
        assert digest_of("act", "cloud", "", None, b'{"password":"one-1"}') not in on_disk(room)


@warped
async def test_tags_tell_questions_apart_after_a_restart_too():
    """Mode `hash`: another secret under a key is another question for good."""
    async with opened(redactor=rules(mode="hash", key=Secret(env="K"))) as room:
        await room.ask(request={"password": "one-1"}, key="k")
        await room.crash()
        assert (await room.ask(request={"password": "one-1"}, key="k"))["repeated"]
        with pytest.raises(GateRefusal, match="was used for another question"):
            await room.ask(request={"password": "two-2"}, key="k")
