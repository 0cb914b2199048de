"""`agentd where` for people: one line for what a thing is, one for each destination, and the steps if there were several."""

import pytest
from click.testing import CliRunner

from agentd.cli import main, stopped
from agentd.cli.where import lines

AT = "2026-01-01T00:00:00.000000Z"
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RECORD = {
    "id": ID, "kind": "decision", "agent": "billing", "run": "r", "uid": 1000, "occurred_at": AT, "received_at": AT,
    "sha256": "ab",
}  # fmt: skip
DOCUMENT = {
    "id": ID, "is": ["record"], "records": [], "more": 0, "references": [], "gates": [],
    "journal": {"first": 1, "last": 2, "since": AT, "damaged_rows": 0},
}  # fmt: skip
ENDED = {"destination": "cloud", "at": AT, "key": None, "platform_id": None, "tries": 0, "cause": None, "history": []}


def shown(place=None, **facts):
    records = [] if place is None else [RECORD | {"destinations": [ENDED | place]}]
    return lines(DOCUMENT | {"records": records} | facts)


def test_what_a_record_is():
    """Kind, id, agent, run and uid; when it occurred and came; its digest."""
    assert shown({"state": "delivered"})[:3] == [
        f"{ID}: record",
        f"decision {ID}, agent billing, run r, uid 1000",
        f"  occurred {AT}, received {AT}, sha256 ab",
    ]
    plain = RECORD | {"agent": "", "run": None, "occurred_at": None, "destinations": [ENDED | {"state": "delivered"}]}
    assert shown(records=[plain])[1:3] == [
        f"decision {ID}, the destination's agent, uid 1000",
        f"  received {AT}, sha256 ab",
    ]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (
            {"state": "delivered", "key": "k", "platform_id": "p", "tries": 3},
            f"  cloud: delivered {AT} as p, key k, 3 tries",
        ),
        ({"state": "delivered", "key": "k", "tries": 1}, f"  cloud: delivered {AT}, key k, 1 try"),
        ({"state": "shed", "cause": "stale"}, f"  cloud: shed {AT}: stale"),
        (
            {"state": "purged", "cause": "dropped", "by": 0, "reason": "by order"},
            f"  cloud: purged {AT}: dropped by uid 0 (by order)",
        ),
        (
            {"state": "dead", "cause": "rejected", "reason": "400 no", "letter": 3, "key": None, "tries": 2},
            f"  cloud: dead since {AT}: rejected: 400 no (letter 3, 2 tries)",
        ),
        (
            {"state": "queued", "number": 7, "lane": "run:r", "waits": None, "batch": None},
            f"  cloud: queued as number 7 of run:r since {AT}",
        ),
        (
            {
                "state": "queued",
                "number": 7,
                "lane": "run:r",
                "key": "k",
                "batch": 2,
                "waits": {"for": "backoff", "reason": "503"},
            },
            f"  cloud: queued as number 7 of run:r since {AT}, in a batch of 2 with key k; waits for backoff: 503",
        ),
        (
            {"state": "queued", "number": 7, "lane": "run:r", "waits": {"for": "turn", "reason": None}},
            f"  cloud: queued as number 7 of run:r since {AT}; waits for turn",
        ),
        ({"state": "ended", "note": "no entry"}, f"  cloud: ended since {AT}: no entry"),
        ({"state": "missing", "note": "audit"}, f"  cloud: missing since {AT}: audit"),
        (
            {"state": "answered", "verdict": "allow", "key": "k", "platform_id": "p", "proceed": True},
            f"  cloud: answered {AT} as p: allow, key k",
        ),
        ({"state": "open", "step": "pending", "key": "k"}, f"  cloud: open {AT}: pending, key k"),
        ({"state": "dead", "destination": None, "cause": "invalid", "reason": "no", "letter": 1, "tries": 0},
         f"  (intake): dead since {AT}: invalid: no (letter 1, 0 tries)"),
        ({"state": "taken", "destination": None, "cause": "replayed", "by": 42}, f"  (intake): taken {AT}: replayed by uid 42"),
    ],
)  # fmt: skip
def test_a_line_for_each_end(place, line):
    """State, time, what the platform calls it, key, tries, cause, and who did it."""
    assert shown(place)[3] == line


def test_the_steps_where_there_were_several():
    """Each entry of the journal; one alone says no more than the line above it."""
    steps = [
        {"entry": 3, "at": AT, "state": "queued"},
        {"entry": 9, "at": AT, "state": "dead", "cause": "rejected"},
        {"entry": 11, "at": AT, "state": "queued", "cause": "replayed", "by": 42},
        {"entry": 12, "at": AT, "state": "purged", "segment": {"records": 4, "numbers": "1-9"}, "by": 0, "reason": "x"},
    ]
    assert shown({"state": "purged", "history": steps})[4:] == [
        f"    {AT}  queued (entry 3)",
        f"    {AT}  dead: rejected (entry 9)",
        f"    {AT}  queued: replayed by uid 42 (entry 11)",
        f"    {AT}  purged, with 4 of the numbers 1-9 by uid 0 (x) (entry 12)",
    ]
    assert len(shown({"state": "queued", "number": 1, "lane": "l", "waits": None, "history": steps[:1]})) == 4


def test_names_and_gates():
    """What a run is called at each platform, and how its records stand; a gate with its verdict."""
    reference = {
        "destination": "cloud", "kind": "run", "id": "r", "platform_id": "p", "state": "known", "ended": True, "delivered": 4,
        "queued": 2, "dead": 1,
    }  # fmt: skip
    gate = {"gate_id": "g", "gate": "decide", "destination": "cloud", "verdict": "deny", "reason": "too much"}
    assert shown(references=[reference, reference | {"platform_id": None, "ended": False}], gates=[gate])[1:] == [
        "run r at cloud: known, there p, ended; 4 delivered, 2 queued, 1 dead",
        "run r at cloud: known; 4 delivered, 2 queued, 1 dead",
        "gate g: decide at cloud: deny (too much)",
    ]


def test_what_is_left_out_is_said():
    """Records beyond the first 200, and rows that can't be read."""
    assert shown(more=7, journal=DOCUMENT["journal"] | {"damaged_rows": 2})[1:] == [
        "and 7 more records",
        "2 rows can't be read and may say more",
    ]


def test_a_record_that_is_gone():
    """It came, and nothing else is known of it."""
    gone = {"id": ID, "kind": None, "uid": 1000, "destinations": [], "note": "it was taken"}
    assert shown(records=[gone])[1] == f"record {ID}, uid 1000: it was taken"


def test_the_daemon_is_asked_by_name(monkeypatch):
    """Whatever the name holds, it is one segment of the path."""
    asked = []

    class Daemon:
        def get(self, path):
            asked.append(path)
            return DOCUMENT

    monkeypatch.setattr(stopped, "daemon", lambda _socket, timeout_s: asked.append(timeout_s) or Daemon())
    done = CliRunner().invoke(main, ["where", "Fälle/7 #1"])
    assert (done.exit_code, done.output) == (0, f"{ID}: record\n")
    assert asked == [120.0, "/v1/records/F%C3%A4lle%2F7%20%231"]


def test_what_others_have_named_orders_no_terminal(monkeypatch):
    """An agent or a run is called what its client likes."""
    hostile = RECORD | {"agent": "\x1b]0;x\x07", "run": "r\n\x9b2J", "destinations": [ENDED | {"state": "delivered"}]}

    class Daemon:
        def get(self, _path):
            return DOCUMENT | {"records": [hostile]}

    monkeypatch.setattr(stopped, "daemon", lambda *_, **__: Daemon())
    done = CliRunner().invoke(main, ["where", "r"])
    assert "agent \\x1b]0;x\\x07, run r\\n\\x9b2J, uid 1000" in done.output
    assert all(char.isprintable() or char == "\n" for char in done.output)


def test_nothing_is_no_name():
    """In a stopped daemon's journal everything goes by no name."""
    done = CliRunner().invoke(main, ["where", ""])
    assert (done.exit_code, "ID: expected an id or a key" in done.output) == (2, True)
