"""The sandbox as AegisOS Comply, without sockets: what it takes, how it decides, what a person may do, and what it shows."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from agentd.sandbox import AegisSwitches, Call, Emulation
from agentd.sandbox.faults import PASS, parse_fault
from agentd.sandbox.inspection import inspect

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
OTHER = "00000000-0000-4000-8000-000000000000"
LEAST = {"agentId": AGENT, "amount": 12500, "currency": "INR", "reason": "Vendor payment"}
EVIL = "<script>alert('x')</script>\"&"


class Rig:
    """The face, asked at times of the test's choosing."""

    def __init__(self, *switches):
        self.now = 1_000_000.0
        self.emulation = Emulation(["aegis"], switches=switches, wall=lambda: self.now)
        self.face = self.emulation.faces["aegis"]

    def ask(self, method, path, body=b"", query="", **headers):
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": "Bearer aegis_sk_x"} | {n.replace("_", "-"): v for n, v in headers.items()}
        answer = self.emulation.answer(self.face, Call(method, path, headers, sent, query, self.now), PASS)
        return answer.status, json.loads(answer.body)

    def submit(self, body=None, **headers):
        status, answer = self.ask("POST", "/v1/intents", {**LEAST, **(body or {})}, **headers)
        assert status == 202, answer
        return answer["id"]

    def refused(self, body):
        status, answer = self.ask("POST", "/v1/intents", body)
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"code", "message"}
        assert self.face.totals().runs == 0
        return status, answer["error"]["message"]

    def read(self, intent_id):
        status, answer = self.ask("GET", f"/v1/intents/{intent_id}")
        assert status == 200, answer
        return answer

    def list(self, query=""):
        status, answer = self.ask("GET", "/v1/intents", query=query)
        assert status == 200, answer
        return answer

    def ids(self, query=""):
        return [intent["id"] for intent in self.list(query)["intents"]]

    def inspect(self, method, path, query=""):
        return inspect(self.emulation, method, f"/_sandbox{path}", query, b"")


@pytest.fixture
def rig():
    return Rig()


# -- POST /v1/intents ------------------------------------------------------------------------------------------------------


def test_a_submission_is_202_and_pending(rig):
    """Aegis: 202 with id, status `pending`, amount, currency, no decision and the time; nothing more."""
    status, answer = rig.ask("POST", "/v1/intents", LEAST)
    assert status == 202
    assert answer.pop("id").startswith("int_")
    assert answer == {
        "status": "pending", "amount": 12500, "currency": "INR", "policyDecision": None, "createdAt": "1970-01-12T13:46:40.000000Z",
    }  # fmt: skip


@pytest.mark.parametrize("switch", ["aegis.decision_delay=0", "aegis.park=true", "aegis.deny_above=0"])
def test_a_submission_is_pending_whatever_will_be_decided(switch):
    """The POST's answer never tells the decision, also where it is made at once: who branches on it goes wrong here too."""
    rig = Rig("aegis.decision_delay=0", switch)
    status, answer = rig.ask("POST", "/v1/intents", LEAST)
    assert (status, answer["status"], answer["policyDecision"]) == (202, "pending", None)


def test_the_same_submission_twice_is_two_spends(rig):
    """Aegis dedupes nothing, not by content and not by a header: two POSTs are two intents, and the state counts the second."""
    ids = {rig.submit(Idempotency_Key="k") for _ in range(2)} | {rig.submit(), rig.submit()}
    assert len(ids) == 4
    assert (rig.face.totals().runs, rig.face.totals().duplicates) == (4, 1)
    assert rig.emulation.repeats(2)["k"].same_body


def test_everything_that_is_documented_is_taken(rig):
    """All optional fields; fractions of an amount and its least confidence."""
    extra = {"amount": 0.5, "confidence": 0, "merchant": "m", "merchantCategory": "c", "metadata": {"a": [None]}}
    shown = rig.face.run(rig.submit(extra))
    assert shown["sent"] == {**LEAST, **extra}
    assert shown["amount"] == 0.5
    assert rig.face.run(rig.submit())["sent"]["confidence"] == 1.0


def test_what_is_documented_nowhere_is_let_by_and_shown(rig):
    """No source says that unknown fields are refused."""
    assert rig.face.run(rig.submit({"later": [1]}))["sent"]["later"] == [1]


@pytest.mark.parametrize(
    ("name", "camel"),
    [("agent_id", "agentId"), ("merchant_category", "merchantCategory"), ("created_at", "createdAt"), ("a_b_c", "aBC")],
)
def test_snake_case_is_refused(rig, name, camel):
    """Aegis: the wire is camelCase only, however the Python SDK's arguments are spelled; the right name is told."""
    status, message = rig.refused({**LEAST, name: AGENT})
    assert (status, message) == (400, f"unknown field `{name}`, the wire is camelCase: `{camel}`")


@pytest.mark.parametrize("name", list(LEAST))
def test_required_fields(rig, name):
    """Agent, amount, currency and reason have to be there."""
    status, message = rig.refused({key: value for key, value in LEAST.items() if key != name})
    assert (status, name in message) == (400, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agentId", "billing"), ("agentId", AGENT + "\n"), ("agentId", 5), ("amount", 0), ("amount", -1), ("amount", "12500"), ("amount", True),
        ("amount", 10**400), ("amount", 1e16), ("currency", "inr"), ("currency", "RUPEE"), ("currency", "INR\n"), ("reason", ""), ("reason", 5),
        ("confidence", 1.01), ("confidence", -0.01), ("confidence", "1"), ("merchant", 5), ("merchantCategory", 5), ("metadata", []),
        ("metadata", "x"), *((name, None) for name in (*LEAST, "confidence", "merchant", "merchantCategory", "metadata")),
    ],
)  # fmt: skip
def test_wrong_values(rig, name, value):
    """Types, ranges and ISO 4217 as documented; an optional field is left out and never null."""
    status, message = rig.refused({**LEAST, name: value})
    assert (status, f"$.{name}" in message) == (400, True)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"agentId":"\xff"}', b"[" * 100_000, b'{"amount":1e999}', b'{"a":"\\ud800"}']
)  # fmt: skip
def test_bodies_that_are_none(rig, body):
    """Whatever comes is answered in the envelope, and nothing is kept of it."""
    assert rig.refused(body)[0] == 400


# -- the decision ----------------------------------------------------------------------------------------------------------


def test_the_decision_comes_later():
    """Until the delay is over an intent is pending, then it is decided; a read shows when."""
    rig = Rig("aegis.decision_delay=2s")
    intent_id = rig.submit()
    rig.now += 1.999
    undecided = rig.read(intent_id)
    assert (undecided["status"], undecided["policyDecision"], undecided["matchedPolicy"], undecided["riskScore"]) == ("pending", None, None, None)  # fmt: skip
    rig.now += 0.002
    decided = rig.read(intent_id)
    assert (decided["status"], decided["policyDecision"], decided["riskScore"]) == ("approved", "allow", 0.12)
    assert (decided["createdAt"], decided["updatedAt"]) == (
        "1970-01-12T13:46:40.000000Z",
        "1970-01-12T13:46:42.000000Z",
    )
    assert decided["matchedPolicy"]
    assert set(decided) == {
        "id", "status", "amount", "currency", "policyDecision", "createdAt", "matchedPolicy", "riskScore", "updatedAt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("amount", "status"), [(99, "approved"), (100, "approved"), (100.01, "denied"), (10**15, "denied")]
)
def test_amounts_above_the_limit_are_denied(amount, status):
    """The policy is one number: what is above it is denied."""
    rig = Rig("aegis.decision_delay=0", "aegis.deny_above=100")
    decided = rig.read(rig.submit({"amount": amount}))
    assert (decided["status"], decided["policyDecision"]) == (status, {"approved": "allow", "denied": "deny"}[status])
    assert 0 <= decided["riskScore"] <= 1


def test_without_a_limit_everything_is_approved():
    """`none` lifts the limit."""
    rig = Rig("aegis.decision_delay=0", "aegis.deny_above=none")
    assert rig.read(rig.submit({"amount": 10**15}))["status"] == "approved"


def test_parked_intents_wait_for_a_person():
    """With `park` what would be approved waits as `pending_approval`, for ever; what the policy denies is denied all the same."""
    rig = Rig(AegisSwitches(decision_delay=1, park=True, deny_above=100))
    parked, denied = rig.submit({"amount": 1}), rig.submit({"amount": 101})
    assert rig.read(parked)["status"] == "pending"
    rig.now += 1e7
    assert (rig.read(parked)["status"], rig.read(parked)["policyDecision"]) == ("pending_approval", "review")
    assert rig.read(denied)["status"] == "denied"


def test_an_intent_is_decided_by_the_switches_under_which_it_came(rig):
    """A switch that is thrown later changes nothing for those that are there."""
    intent_id = rig.submit()
    rig.emulation.throw("aegis.deny_above=1")
    rig.emulation.throw("aegis.decision_delay=1h")
    rig.now += 1
    assert rig.read(intent_id)["status"] == "approved"
    assert rig.read(rig.submit())["status"] == "pending"


# -- a person --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "status"), [("approve", "approved"), ("deny", "denied")])
@pytest.mark.parametrize("park", [True, False])
def test_a_person_decides(verb, status, park):
    """A parked intent, or one that is still pending, is approved or denied by a POST below /_sandbox; the policy is void then."""
    rig = Rig(AegisSwitches(decision_delay=10, park=park))
    intent_id = rig.submit()
    rig.now += 20 if park else 1
    assert rig.read(intent_id)["status"] == ("pending_approval" if park else "pending")
    answer = rig.inspect("POST", f"/act/aegis/{intent_id}/{verb}")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, status)
    rig.now += 20
    assert rig.read(intent_id)["status"] == status
    by = [(event["status"], event["by"]) for event in rig.face.run(intent_id)["events"]]
    assert by == [("pending", "agent"), *([("pending_approval", "policy")] if park else []), (status, "person")]


@pytest.mark.parametrize("verb", ["approve", "deny"])
def test_what_is_decided_stays_decided(rig, verb):
    """Nobody turns a final word round: 409, and nothing has changed."""
    intent_id = rig.submit()
    rig.now += 1
    assert rig.read(intent_id)["status"] == "approved"
    assert rig.inspect("POST", f"/act/aegis/{intent_id}/{verb}").status == 409
    assert rig.read(intent_id)["status"] == "approved"


@pytest.mark.parametrize("place", ["nosuch/approve", "ID/maybe", "ID/"])
def test_there_is_nothing_else_to_do(rig, place):
    """An unknown intent or verb is 404."""
    assert rig.inspect("POST", f"/act/aegis/{place.replace('ID', rig.submit())}").status == 404


def test_buttons_stand_where_something_waits():
    """The pages have a button for each thing that a person may do now, and none where all is decided."""
    rig = Rig("aegis.decision_delay=0", "aegis.park=true")
    intent_id = rig.submit()
    for page in ("/", f"/view/aegis/{intent_id}"):
        text = rig.inspect("GET", page).body.decode()
        for verb in ("approve", "deny"):
            assert f'action="/_sandbox/view/aegis/{intent_id}/{verb}"' in text
    pressed = rig.inspect("POST", f"/view/aegis/{intent_id}/approve")
    assert (pressed.status, pressed.headers["Location"]) == (303, f"/_sandbox/view/aegis/{intent_id}")
    for page in ("/", f"/view/aegis/{intent_id}"):
        assert "<form" not in rig.inspect("GET", page).body.decode()


# -- reads -----------------------------------------------------------------------------------------------------------------


def test_the_list_is_newest_first_and_20_long(rig):
    """Documented: limit is 20 by default and 100 at most, and an offset; the order is our choice."""
    ids = [rig.submit() for _ in range(105)][::-1]
    assert rig.ids() == ids[:20]
    assert rig.ids("limit=100") == ids[:100]
    assert rig.ids("limit=3&offset=103") == ids[103:]
    assert rig.ids("offset=105") == []
    page = rig.list("limit=2&offset=1")
    assert (page["total"], page["limit"], page["offset"]) == (105, 2, 1)


def test_the_lists_filters():
    """By status, agent, and time of creation from … to, both counting themselves in; all at once they narrow each other."""
    rig = Rig("aegis.decision_delay=10s", "aegis.deny_above=100")
    old = rig.submit({"amount": 1})
    rig.now += 20
    denied = rig.submit({"amount": 200})
    rig.now += 20
    new = rig.submit({"amount": 1, "agentId": OTHER})
    assert (rig.ids("status=pending"), rig.ids("status=approved"), rig.ids("status=denied")) == ([new], [old], [denied])
    assert rig.ids("status=pending_approval") == []
    assert (rig.ids(f"agentId={AGENT}"), rig.ids(f"agentId={OTHER}")) == ([denied, old], [new])
    middle = "1970-01-12T13:47:00Z"
    assert rig.read(denied)["createdAt"] == "1970-01-12T13:47:00.000000Z"
    assert (rig.ids(f"from={middle}"), rig.ids(f"to={middle}")) == ([new, denied], [denied, old])
    assert rig.ids(f"from={middle}&to={quote('1970-01-12T19:17:00+05:30')}") == [denied]
    assert rig.ids(f"from={middle}&agentId={AGENT}&status=denied") == [denied]
    assert rig.ids(f"from={middle}&agentId={AGENT}&status=approved") == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "limit=", "offset=-1", "status=allowed", "status=", "agentId=x", "from=yesterday",
     "from=2026-01-01T00:00:00", "to=2026-01-01", "agent_id=" + AGENT, "%ff=1", "limit=%ff"],
)  # fmt: skip
def test_wrong_filters(rig, query):
    """A filter that can't be read is refused instead of ignored; snake_case here too."""
    status, answer = rig.ask("GET", "/v1/intents", query=query)
    assert (status, answer["error"]["code"]) == (400, "validation_error")


def test_the_lists_shape_is_a_switch():
    """No source shows it: an object or a bare array, with metadata or without."""
    rig = Rig("aegis.list_shape=array")
    rig.submit({"metadata": {"ours": "1"}})
    [listed] = rig.list()
    assert "metadata" not in listed
    rig.emulation.throw("aegis.list_metadata=true")
    assert rig.list()[0]["metadata"] == {"ours": "1"}
    rig.submit()
    assert "metadata" not in rig.list()[0]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/intents/int_nosuch", 404, "not_found"), ("GET", "/v1/intents/", 404, "not_found"), ("GET", "/v1/approvals", 404, "not_found"),
        ("GET", "/v1/agents", 404, "not_found"), ("POST", "/v1/events", 404, "not_found"), ("GET", "/", 404, "not_found"),
        ("PUT", "/v1/intents", 405, "method_not_allowed"), ("DELETE", "/v1/intents/x", 405, "method_not_allowed"),
        ("POST", "/v1/intents/x", 405, "method_not_allowed"),
    ],
)  # fmt: skip
def test_what_is_not_there(rig, method, path, status, code):
    """Documented paths only: where approvals and agents are is unknown, so they are nowhere."""
    got, answer = rig.ask(method, path)
    assert (got, answer["error"]["code"]) == (status, code)


# -- keys, faults, inspection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "key"), [("Bearer aegis_sk_x", "aegis_sk_x"), ("bearer j.w.t", "j.w.t"), ("Bearer", ""), ("Basic x", ""), ("", "")]
)  # fmt: skip
def test_the_key_is_a_bearer(rig, header, key):
    """An agent's key or a dashboard's JWT, both as bearer."""
    assert rig.face.presented_key({"Authorization": header}) == key


def test_without_a_key_401(rig):
    """Documented: missing is 401; nothing is kept."""
    status, answer = rig.ask("POST", "/v1/intents", LEAST, Authorization="")
    assert (status, answer["error"]["code"], rig.face.totals().runs) == (401, "unauthorized", 0)


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "rate_limited"), (500, "internal_error"), (503, "internal_error"), (418, "invalid_request")],
)
def test_faults_speak_in_the_envelope(rig, status, code):
    """An injected fault looks like the platform's own error."""
    rig.emulation.faults.add(parse_fault(f"status={status}"))
    call = Call("POST", "/v1/intents", {"Authorization": "Bearer k"}, json.dumps(LEAST).encode(), now=1.0)
    answer = rig.emulation.answer(rig.face, call, rig.emulation.faults.decide("aegis", "/v1/intents"))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert rig.face.totals().runs == 0


def test_paths_below_v1_are_aegis_own():
    """Beside other platforms its paths find it without its name."""
    emulation = Emulation(["agentos", "aegis"])
    aegis = emulation.faces["aegis"]
    assert emulation.route("/v1/intents/int_1") == (aegis, "/v1/intents/int_1")
    assert emulation.route("/aegis/v1/intents") == (aegis, "/v1/intents")
    assert emulation.route("/api/ingest/v1/events")[0] is emulation.faces["agentos"]


def test_rows_and_totals(rig):
    """Inspection shows each intent with its status and how often it was read, found by its id or its first key."""
    first = rig.submit({"merchant": "m"}, Idempotency_Key="k")
    second = rig.submit()
    rig.now += 1
    rig.read(first)
    assert [row["id"] for row in rig.emulation.runs()] == [second, first]
    assert [row["id"] for row in rig.emulation.runs(1, 1)] == [first]
    row = rig.emulation.runs()[1]
    assert (row["status"], row["reads"], row["agentId"], row["merchant"], row["verbs"]) == (
        "approved",
        1,
        AGENT,
        "m",
        [],
    )
    shown = rig.emulation.run("k", 1, 1)
    assert (shown["id"], shown["idempotency_key"], shown["event_count"]) == (first, "k", 2)
    assert [event["sequence_number"] for event in shown["events"]] == [2]
    assert rig.face.totals().details == {"intents_by_status": {"approved": 2}, "reads": 1}
    rig.emulation.reset()
    assert (rig.emulation.runs(), rig.face.run(first), rig.face.totals().duplicates) == ([], None, 0)


def test_pages_escape_what_agents_wrote(rig):
    """Nothing that an agent sends becomes markup."""
    intent_id = rig.submit(
        {"reason": EVIL, "merchant": EVIL, "metadata": {EVIL: EVIL}, EVIL: EVIL}, Idempotency_Key=EVIL
    )
    rig.ask("GET", "/v1/intents/" + EVIL)
    for page in ("/", f"/view/aegis/{intent_id}"):
        text = rig.inspect("GET", page).body.decode()
        assert "&lt;script&gt;" in text
        assert "<script" not in text
