"""`GET /v1/records/{id}`: what is said of a record, to whom, and what is not. Pure."""

from uuid import UUID

import pytest

from agentd.control import record_documents as documents
from agentd.delivery.waits import Waits, Why
from agentd.gating import Word
from agentd.outcomes import Cause, State
from agentd.queued import Death, Entry, Ref, Seal, Source
from agentd.records import LossClass
from agentd.spool.gaterows import GateRow, Step
from agentd.spool.journal import Note
from agentd.spool.letters import letter_of
from agentd.spool.trace import Lane, Trace, Traced, Waiting

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RAW = UUID(ID).bytes
NOW = 1_767_225_600_000_000
AT = "2026-01-01T00:00:00.000000Z"
SOURCE = Source("billing", 1000, 42, "frames")


def note(number, state, kind="decision", destination="cloud", record_id=RAW, **facts):
    return Note(
        number, state, destination, record_id, kind, "billing", facts.pop("lane", "run:r"), 1000, NOW, NOW, b"\x01" * 32,
        run="r", queue_number=facts.pop("queue_number", 7), **facts,
    )  # fmt: skip


def entry(kind="event", body=b"{}", lane="run:r"):
    return Entry(7, RAW, lane, kind, LossClass.INFO, SOURCE, NOW, body)


def found(*records, **facts):
    return Trace(facts.pop("asked", ID), list(records), first=1, last=9, since_us=NOW, **facts)


def shown(trace, own=documents.everything, waits=lambda _: None, **options):
    return documents.document(trace, own, waits, **options)


def place(*notes, **facts):
    (record,) = shown(found(Traced(1000, RAW, list(notes), **facts)))["records"]
    (there,) = record["destinations"]
    return there


def test_what_a_record_is():
    """Kind, agent, run, uid, times and the digest of it as it is stored."""
    queued = note(1, State.QUEUED, occurred_us=NOW)
    document = shown(found(Traced(1000, RAW, [queued, note(2, State.DELIVERED, key="k", platform_id="p", tries=2)])))
    (record,) = document["records"]
    history = record.pop("destinations")[0].pop("history")
    assert record == {
        "id": ID, "kind": "decision", "agent": "billing", "run": "r", "occurred_at": AT, "received_at": AT, "uid": 1000,
        "sha256": "01" * 32,
        "redacted": {},
    }  # fmt: skip
    assert [(step["entry"], step["state"]) for step in history] == [(1, "queued"), (2, "delivered")]
    assert document["is"] == ["record"]
    assert document["journal"] == {"first": 1, "last": 9, "since": AT, "damaged_rows": 0}


def test_a_delivered_record():
    """When, as what, under which key, after how many tries."""
    there = place(note(1, State.QUEUED), note(2, State.DELIVERED, key="k", platform_id="p", tries=2))
    assert (there["state"], there["at"], there["key"], there["platform_id"], there["tries"]) == (
        "delivered", AT, "k", "p", 2,
    )  # fmt: skip
    assert "by" not in there


def test_a_queued_record_and_what_it_waits_for():
    """Its place, the batch that it was sealed in, and what its lane waits for if somebody knows."""
    seal = Seal(1, "cloud", "run:r", 7, 9, 3, (), "batch", 1, b"", "events")
    record = Traced(1000, RAW, [], [], [Waiting("cloud", entry(), seal, 4)], b"\x02" * 32)
    why = Waits(Why.BACKOFF, "503", 4.0004, 2)
    (shown_record,) = shown(found(record), waits=lambda _: why)["records"]
    (there,) = shown_record["destinations"]
    assert (there["state"], there["number"], there["lane"], there["bytes"]) == ("queued", 7, "run:r", 4)
    assert (there["key"], there["batch"]) == ("batch", 3)
    assert there["waits"] == {"for": "backoff", "reason": "503", "next_try_in_s": 4.0, "failures": 2}
    assert (shown_record["sha256"], shown_record["run"]) == ("02" * 32, "r")
    assert shown(found(record))["records"][0]["destinations"][0]["waits"] is None
    record.waiting[0].seal = None
    assert shown(found(record))["records"][0]["destinations"][0]["key"] is None


def test_a_dead_record():
    """Its cause and the platform's words, and the letter's number, by which it can be shown, replayed or purged."""
    letter = letter_of("cloud", entry("task"), Death(Cause.REJECTED, "400 no", 3, 400, "no", "k"), NOW)
    there = place(note(1, State.QUEUED), note(2, State.DEAD, cause="rejected"), letters=[(12, letter)])
    assert {name: there[name] for name in ("state", "letter", "cause", "reason", "key", "tries", "status")} == {
        "state": "dead", "letter": 12, "cause": "rejected", "reason": "400 no", "key": "k", "tries": 3, "status": 400,
    }  # fmt: skip


def test_what_a_person_did_is_told_with_who_and_why():
    """Purged by whom and why; replayed by whom."""
    there = place(
        note(1, State.QUEUED),
        note(2, State.DEAD, cause="rejected"),
        note(3, State.QUEUED, cause="replayed", by=42),
        note(4, State.DEAD, cause="rejected"),
        note(5, State.PURGED, cause="dropped", by=0, reason="by order"),
    )
    assert (there["state"], there["by"], there["reason"]) == ("purged", 0, "by order")
    assert (there["history"][2]["cause"], there["history"][2]["by"]) == ("replayed", 42)


def test_what_went_with_its_segment():
    """One entry for all of a kind is said to be one."""
    gone = note(
        9, State.PURGED, record_id=b"", lane="1-50", queue_number=0, count=40, cause="dropped", by=0, reason="x"
    )
    there = place(note(1, State.QUEUED), gone)
    assert (there["state"], there["history"][1]["segment"]) == ("purged", {"records": 40, "numbers": "1-50"})


def test_telemetry_that_was_replayed_has_no_entry_of_its_end():
    """It is said honestly that nothing more is known; evidence in that state is a contradiction, and says whom to ask."""
    there = place(note(2, State.DEAD, "event"), note(3, State.QUEUED, "event", cause="replayed", by=1))
    assert (there["state"], there["note"]) == ("ended", documents.TELEMETRY)
    there = place(note(1, State.QUEUED))
    assert there["state"] == "missing"
    assert "agentd audit" in there["note"]


@pytest.mark.parametrize(
    ("state", "cause", "expected"),
    [(State.QUEUED, "pending", ("open", "step")), (State.DELIVERED, "allow", ("answered", "verdict"))],
)
def test_a_gate_in_the_journal(state, cause, expected):
    """How far it came, or what the verdict was."""
    there = place(note(1, state, "gate.decide", cause=cause, proceed=True, lane=f"gate:{ID}"))
    assert (there["state"], there[expected[1]]) == (expected[0], cause)


def test_what_was_refused_at_intake_has_no_destination():
    """A decision that was refused as invalid is dead of no destination."""
    letter = letter_of("", entry("decision"), Death(Cause.INVALID, "$.x: wrong"), NOW)
    assert place(note(1, State.DEAD, destination=""), letters=[(1, letter)])["destination"] is None


def test_what_was_refused_at_intake_and_taken_later_is_not_missing():
    """Its replay is an entry of no destination, which has no queue; what became of it is said where it was admitted."""
    refused = note(1, State.DEAD, destination="", cause="invalid")
    there = place(refused, note(2, State.QUEUED, destination="", cause="replayed", by=42))
    assert (there["destination"], there["state"], there["cause"], there["by"]) == (None, "taken", "replayed", 42)


def test_a_record_that_is_gone_is_said_to_have_been_taken():
    """Its id is within the dedupe window: it came, it is neither queued nor dead, and events leave no entry."""
    document = shown(found(), taken_from=[1000])
    assert document["records"] == [{"id": ID, "kind": None, "uid": 1000, "destinations": [], "note": documents.GONE}]
    assert shown(found(), taken_from=[]) is None


def test_names_of_a_run():
    """What it is called at each platform, and how many of its records are delivered, wait, are dead."""
    ref = Ref("cloud", "run", "r", "billing", 1000, 1, "known", "p-1", delivered=5, ended=True)
    document = shown(found(asked="p-1", references=[ref], lanes={("cloud", "run:r"): Lane(3, 2)}))
    assert document["is"] == ["run by the platform's id"]
    assert document["references"] == [
        {
            "destination": "cloud", "kind": "run", "id": "r", "platform_id": "p-1", "state": "known", "agent": "billing",
            "uid": 1000, "ended": True, "delivered": 5, "queued": 3, "dead": 2,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "facts", "words"),
    [
        ("k", {"key": "k"}, ["idempotency key"]),
        (ID, {"key": ID}, ["record"]),
        ("p", {"platform_id": "p"}, ["platform's id"]),
        ("r", {}, ["run"]),
        ("d", {"lane": "decision:d"}, ["decision"]),
        ("mine", {"local_id": "mine"}, ["decision"]),
    ],
)
def test_what_the_name_is(asked, facts, words):
    """In words: what was asked for may be an id, a key, or a name at the platform."""
    assert shown(found(Traced(1000, RAW, [note(1, State.DELIVERED, **facts)]), asked=asked))["is"] == words


def gate(uid=1000, token=-1):
    return GateRow(
        ID, "decide", "cloud", Source("billing", uid, 1, "http"), token, "pay-7", b"", "decision", "verdict-7", "r", None,
        b"{}", "gk", NOW, 5.0, step=Step.FINAL, word=Word.ALLOW, proceed=True, platform_id="dec_1", decided_us=NOW,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "word"),
    [(ID, "gate"), ("pay-7", "key of a gate"), ("verdict-7", "answer of a gate"), ("dec_1", "answer of a gate")],
)
def test_a_gate_by_its_names(asked, word):
    """Without its question and the platform's answer, which may be large: those are in `GET /v1/gates/{id}`."""
    document = shown(found(asked=asked, gates=[gate()]))
    assert document["is"] == [word]
    (there,) = document["gates"]
    assert (there["verdict"], there["proceed"]) == ("allow", True)
    assert not {"request", "response"} & set(there)


def test_others_see_nothing():
    """What is not the viewer's is not there: neither records nor names nor gates."""
    trace = found(
        Traced(1000, RAW, [note(1, State.QUEUED)]),
        references=[Ref("cloud", "run", ID, "billing", 1000, 1)],
        gates=[gate()],
    )
    asked = []
    assert shown(trace, own=lambda *whose: asked.append(whose) or False) is None
    assert set(asked) == {("cloud", "billing", 1000)}
    assert shown(trace, own=lambda *_: False, shows_gate=lambda _: True)["gates"]


def test_a_part_of_a_record_may_be_seen():
    """Whoever may use one destination sees what became of the record there."""
    record = Traced(
        1000, RAW, [note(1, State.QUEUED), note(2, State.DELIVERED), note(3, State.DELIVERED, destination="b")]
    )
    (seen,) = shown(found(record), own=lambda name, _agent, _uid: name == "b")["records"]
    assert [there["destination"] for there in seen["destinations"]] == ["b"]


def test_the_sentence_for_nothing_is_the_same_for_all():
    """Neither tells whether there is such a thing of somebody else's; it says how far the journal goes back."""
    assert AT in documents.unknown("x", NOW)
    assert "the journal is empty" in documents.unknown("x", 0)
    assert len(documents.unknown("x" * 10_000, NOW)) < 700
