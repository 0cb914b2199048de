"""Redaction at admission: what is stored, compared, kept as evidence and said knows no secret; ids and references stay."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from agentd.errors import RecordError
from agentd.intake import Peer
from agentd.intake.routing import Route
from agentd.redact.build import build_redactor
from agentd.sections import Redact, Secret

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
ME = Peer(1000, 1000, 7)
KEY = "sk" + "-" + "4f" * 16  # of nobody


@pytest.fixture
def redacting(intake):
    intake.admission.redactor = build_redactor(Redact(), {})
    return intake


def event(payload=None, run="r", **fields):
    return json.dumps({"kind": "event", "run_id": run, "type": "t", "payload": payload, **fields}).encode()


def test_what_is_stored_knows_no_secret(redacting):
    """The copy's body, with the rules that hit and their version; the record beside it is as it came."""
    outcome = redacting.admit(b"[" + event({"k": KEY, "n": 1.50}) + b"," + event({"n": 1.50}) + b"]")
    first, second = outcome.copies["one"]
    assert json.loads(first.body)["payload"] == {"k": "[redacted:openai-key]", "n": 1.5}
    assert first.redactions == {"openai-key": 1}
    assert first.source.redaction == redacting.admission.redactor.version > 0
    assert second.redactions is None
    assert b'{"n": 1.5}' in second.body
    assert redacting.admission.redactor.counts == {"openai-key": 1}


def test_every_destination_gets_the_same(make_intake):
    """Copies share what was taken out."""
    intake = make_intake(Route("one", frozenset({"event"})), Route("two", frozenset({"event"})))
    intake.admission.redactor = build_redactor(Redact(mode="hash", key=Secret(env="K")), {"K": "k" * 16})
    outcome = intake.admit(event({"password": "hunter2"}))
    assert outcome.copies["one"][0].body == outcome.copies["two"][0].body
    assert b"[redacted:password:" in outcome.copies["one"][0].body


def test_an_id_stays_whatever_it_looks_like(redacting):
    """It names its run everywhere; it is counted."""
    outcome = redacting.admit(event({"x": KEY}, run=KEY))
    assert outcome.copies["one"][0].lane == f"run:{KEY}"
    assert json.loads(outcome.copies["one"][0].body)["run_id"] == KEY
    assert redacting.admission.redactor.ids == {"run_id": 1}


def test_repeats_are_known_by_what_is_stored(redacting):
    """The same record again is stored once, under masks also one with another secret; other content is refused."""
    assert redacting.admit(event({"k": KEY, "n": 1}, id=ID)).copies
    again = redacting.admit(event({"k": KEY, "n": 1}, id=ID))
    assert (again.accepted, again.copies, again.repeats) == (1, {}, [(1000, UUID(ID).bytes)])
    assert redacting.admit(event({"k": KEY[:-1] + "0", "n": 1}, id=ID)).copies == {}
    refused = redacting.admit(event({"k": KEY, "n": 2}, id=ID)).rejected
    assert refused[0].error == f"$.id: {ID} was used for other content"


def test_tags_tell_repeats_apart(intake):
    """In mode `hash` another secret is other content."""
    intake.admission.redactor = build_redactor(Redact(mode="hash", key=Secret(env="K")), {"K": "k" * 16})
    assert intake.admit(event({"password": "one-1"}, id=ID)).copies
    assert intake.admit(event({"password": "one-1"}, id=ID)).accepted == 1
    assert intake.admit(event({"password": "two-2"}, id=ID)).accepted == 0


def test_a_repeat_of_what_was_taken_before_there_were_rules(intake):
    """Rules that come with a reload or an upgrade make no conflict of it."""
    assert intake.admit(event({"k": KEY}, id=ID)).copies
    intake.admission.redactor = build_redactor(Redact(), {})
    again = intake.admit(event({"k": KEY}, id=ID))
    assert (again.accepted, again.rejected, again.copies) == (1, [], {})


def test_evidence_and_reasons_know_no_secret(redacting):
    """What is refused as invalid is kept without them, and nobody is told or logs one: not as JSON, nor where it is none."""
    outcome = redacting.admit(b'{"kind":"decision","context":"x","password":"hunter2","level":"%b"}' % KEY.encode())
    [kept] = outcome.invalid
    assert b"hunter2" not in kept.body
    assert kept.redactions["password"] == 1
    assert kept.source.redaction == redacting.admission.redactor.version
    bad = redacting.admit(b'{"kind":"task","run_id":"r","task_id":"t","name":"n","status":"%b"}' % KEY.encode())
    assert KEY not in bad.rejected[0].error + bad.invalid[0].reason
    assert KEY.encode() not in bad.invalid[0].body
    cut = redacting.admission.evidence(
        RecordError(raw=b'{"kind":"decision","context":"%b' % KEY.encode()),
        f"malformed near {KEY}", ME, "lines",
    )  # fmt: skip
    assert KEY.encode() not in cut[0].body
    assert KEY not in cut[0].reason


def test_the_largest_record_may_grow_by_its_marks(make_intake):
    """`max_record_bytes` is of the record as it was sent: nobody is refused for a mark that is longer than the secret."""
    sent = event({"pwd": "abc-1"}).replace(b" ", b"")
    intake = make_intake(max_record_bytes=len(sent))
    intake.admission.redactor = build_redactor(Redact(), {})
    outcome = intake.admit(sent)
    assert len(outcome.copies["one"][0].body) > len(sent)
    longer = intake.admit(event({"pwd": "abc-12"}).replace(b" ", b""))
    assert longer.rejected[0].error == f"$: {len(sent) + 1} bytes, above intake.max_record_bytes ({len(sent)})"


def test_a_name_that_its_marks_make_too_long_is_refused(redacting):
    """A name holds 512 characters; the reason says so, and nothing of it is kept unredacted."""
    names = " ".join(["SK" + f"{number:032x}" for number in range(14)])
    redacting.admission.redactor = build_redactor(Redact(mode="hash", key=Secret(env="K")), {"K": "k" * 16})
    outcome = redacting.admit(json.dumps({"kind": "event", "run_id": "r", "type": names}).encode())
    assert outcome.rejected[0].error.startswith("$: too long for its fields once its secrets are marked")


async def test_held_records_keep_what_was_found(redacting):
    """A message that waits for room is redacted once, and its hits are in what is stored at last."""
    redacting.shelf.room = 0
    future = redacting.submit(event({"password": "hunter2"}), hold=True)
    await redacting.idle()
    redacting.shelf.make_room()
    await redacting.idle()
    redacting.shelf.commit()
    await future
    [(_, entry)] = redacting.shelf.stored
    assert (entry.redactions, b"hunter2" in entry.body) == ({"password": 1}, False)
    assert redacting.admission.redactor.counts == {"password": 1}
    assert json.loads(entry.body)["payload"] == {"password": "[redacted:password]"}


def test_what_is_too_large_is_not_gone_over(make_intake, monkeypatch):
    """Whoever sends more than is taken costs no screening of it: events are refused unseen, evidence is seen as far as it is kept."""
    intake = make_intake(Route("one", frozenset({"event", "decision"})), max_record_bytes=2000)
    intake.admission.redactor = redactor = build_redactor(Redact(), {})
    seen = []
    raw = redactor.raw
    monkeypatch.setattr(redactor, "raw", lambda data: seen.append(len(data)) or raw(data))
    assert intake.admit(event({"k": KEY, "x": "y" * 100_000})).rejected[0].error.endswith("(2000)")
    assert (seen, redactor.counts) == ([], {})
    large = json.dumps({"kind": "decision", "context": "y" * 1900 + " " + KEY + " " + "y" * 100_000}).encode()
    outcome = intake.admit(large)
    [kept] = outcome.invalid
    assert seen == [2000 + 8192]
    assert 1900 < len(kept.body) <= 2000
    assert KEY[:12].encode() not in kept.body
    assert "(the first 2000 of " in kept.reason


def test_a_secret_at_the_very_end_of_what_is_looked_at_is_not_kept(make_intake):
    """What is cut in two there is no secret that anybody knows; it is left out with all behind the limit."""
    intake = make_intake(Route("one", frozenset({"decision"})), max_record_bytes=2000)
    intake.admission.redactor = build_redactor(Redact(), {})
    head = '{"kind":"decision","context":"'
    for place in range(2000 - len(head) - len(KEY) - 4, 2000 - len(head) + 4):
        text = "y " * (place // 2) + KEY + " y" * 20_000
        [kept] = intake.admit((head + text + '"}').encode()).invalid
        assert KEY[:8].encode() not in kept.body
