"""decide.fyi's parts without sockets: rulebooks, forbidden fields, hashes and views, advice, limits by the clock."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from agentd.sandbox import Call, DecidefyiSwitches, Emulation
from agentd.sandbox._decidefyi_advice import mode_of, options_of, unusable, verdict_word
from agentd.sandbox._decidefyi_bodies import FORBIDDEN, Refused, forbidden_in, read_object
from agentd.sandbox._decidefyi_records import VIEWS, canonical_hash, checks, projected
from agentd.sandbox._decidefyi_rulebook import evaluate, problems, unmet
from agentd.sandbox.faults import PASS
from agentd.sandbox.inspection import inspect

NOW = datetime(2026, 1, 31, 23, 59, 30, tzinfo=UTC).timestamp()
EVIL = "<script>alert('x')</script>\"&"


def outcome(decision, code="BECAUSE", **fields):
    return {"decision": decision, "verdict": "WORD", "reason_code": code, "action": "act", **fields}


def rule(rule_id, condition, decision="yes", **fields):
    return {"rule_id": rule_id, "condition": condition, "outcome": outcome(decision), **fields}


def probe_of(field, operator, *value):
    return {"field": field, "operator": operator, **({"value": value[0]} if value else {})}


def book(*rules, **fields):
    return {
        "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
        "input_schema": {"required": ["amount"], "properties": {"amount": {"type": "number"}}},
        "rules": list(rules) or [rule("small", probe_of("amount", "lte", 100))],
        "default_outcome": outcome("review", "DEFAULT"), **fields,
    }  # fmt: skip


def request(rulebook=None, inputs=None, **fields):
    given = {"amount": 50} if inputs is None else inputs
    return {"mode": "rulebook", "rulebook": rulebook or book(), "context": {"inputs": given}, **fields}


def codes(rulebook):
    return {(each.field, each.code) for each in problems(rulebook)}


# -- rulebook v1 -----------------------------------------------------------------------------------------------------------


def test_a_valid_rulebook_has_no_problems():
    """What the schema allows is allowed, up to its bounds."""
    rules = [rule(f"r{n}", probe_of("x", "exists"), priority=-1000) for n in range(100)]
    assert problems(book(*rules, version="v" * 80, rulebook_id="a" + "b" * 119)) == []


@pytest.mark.parametrize(
    ("fields", "where", "code"),
    [
        ({"schema_version": "rulebook_v2"}, "rulebook.schema_version", "unsupported_version"),
        ({"rulebook_id": "Upper"}, "rulebook.rulebook_id", "invalid_value"),
        ({"rulebook_id": "a"}, "rulebook.rulebook_id", "invalid_value"),
        ({"rulebook_id": "a" + "b" * 120}, "rulebook.rulebook_id", "invalid_value"),
        ({"rulebook_id": "ab\n"}, "rulebook.rulebook_id", "invalid_value"),
        ({"version": ""}, "rulebook.version", "invalid_value"),
        ({"version": "v" * 81}, "rulebook.version", "invalid_value"),
        ({"rules": []}, "rulebook.rules", "invalid_value"),
        ({"rules": [rule(f"r{n}", probe_of("x", "exists")) for n in range(101)]}, "rulebook.rules", "invalid_value"),
        ({"extra": 1}, "rulebook.extra", "unknown_field"),
        ({"default_outcome": outcome("maybe")}, "rulebook.default_outcome.decision", "invalid_value"),
        ({"default_outcome": outcome("no", "lower")}, "rulebook.default_outcome.reason_code", "invalid_value"),
        ({"default_outcome": outcome("no", action="a" * 161)}, "rulebook.default_outcome.action", "invalid_value"),
        ({"default_outcome": outcome("no", note="x")}, "rulebook.default_outcome.note", "unknown_field"),
        ({"input_schema": {"required": "amount"}}, "rulebook.input_schema.required", "invalid_type"),
        ({"input_schema": {"properties": {"a": {"type": "date"}}}}, "rulebook.input_schema.properties.a.type", "invalid_value"),
        ({"input_schema": {"properties": {"a": {"type": []}}}}, "rulebook.input_schema.properties.a.type", "invalid_value"),
        ({"input_schema": {"additional": True}}, "rulebook.input_schema.additional", "unknown_field"),
        ({"rules": [rule("ab", {}, priority=1001)]}, "rulebook.rules[0].priority", "invalid_value"),
        ({"rules": [rule("ab", {}, priority=True)]}, "rulebook.rules[0].priority", "invalid_value"),
        ({"rules": [rule("ab", {}, when={})]}, "rulebook.rules[0].when", "unknown_field"),
        ({"rules": [rule("ab", probe_of("x", "exists"))] * 2}, "rulebook.rules[1].rule_id", "duplicate_value"),
        ({"rules": [rule("ab", probe_of("x", "like", 1))]}, "rulebook.rules[0].condition.operator", "unsupported_operator"),
        ({"rules": [rule("ab", probe_of("x", ["eq"], 1))]}, "rulebook.rules[0].condition.operator", "unsupported_operator"),
        ({"rules": [rule("ab", probe_of("x y", "exists"))]}, "rulebook.rules[0].condition.field", "invalid_value"),
        ({"input_schema": {"required": ["9"]}}, "rulebook.input_schema.required[0]", "invalid_value"),
        ({"input_schema": {"properties": {"a b": {"type": "null"}}}}, "rulebook.input_schema.properties.a b", "invalid_value"),
        ({"rules": [rule("ab", {"all": []})]}, "rulebook.rules[0].condition.all", "invalid_value"),
        ({"rules": [rule("ab", {"any": [probe_of("x", "exists")] * 33})]}, "rulebook.rules[0].condition.any", "invalid_value"),
        ({"rules": [rule("ab", {"not": 5})]}, "rulebook.rules[0].condition.not", "invalid_type"),
    ],
)  # fmt: skip
def test_what_the_schema_forbids(fields, where, code):
    """Each bound, pattern, word and unknown property of rulebook v1 is named with its place."""
    assert (where, code) in codes(book(**fields))


@pytest.mark.parametrize("missing", ["schema_version", "rulebook_id", "version", "rules", "default_outcome"])
def test_what_the_schema_requires(missing):
    """Every part of a rulebook is required, the default outcome among them, but for the inputs' schema."""
    without = {name: value for name, value in book().items() if name != "input_schema"}
    assert (problems(without), unmet(without, {})) == ([], ([], []))
    assert codes({name: value for name, value in book().items() if name != missing}) == {
        (f"rulebook.{missing}", "schema_violation")
    }
    assert codes([]) == {("rulebook", "invalid_type")}


def test_depth_and_nodes_have_bounds():
    """A condition has at most 8 levels below its first, and all of a rulebook together at most 256 nodes."""

    def nested(depth):
        return probe_of("x", "exists") if depth == 1 else {"not": nested(depth - 1)}

    assert problems(book(rule("ab", nested(9)))) == []
    assert any(code == "too_deep" for _, code in codes(book(rule("ab", nested(10)))))
    leaf = {"all": [probe_of("x", "exists")] * 31}  # 32 nodes
    assert problems(book(rule("ab", {"any": [leaf] * 7 + [{"all": [probe_of("x", "exists")] * 30}]}))) == []  # 256
    assert any(code == "too_complex" for _, code in codes(book(rule("ab", {"any": [leaf] * 8}))))  # 257
    half = {"any": [leaf] * 4}  # 129
    assert any(code == "too_complex" for _, code in codes(book(rule("ab", half), rule("bc", half))))


@pytest.mark.parametrize(
    ("operator", "value", "holds", "fails"),
    [
        ("eq", 1, [1, 1.0], [True, "1", 2, None]), ("eq", [1], [], [[1], [2], 1]), ("eq", {"a": 1}, [], [{"a": 1}]),
        ("neq", 1, [2, True, "1", None], [1]), ("gt", 5, [6], [5, "6", True, None]), ("gte", 5, [5], [4]),
        ("lt", "m", [], ["a", "z", 1]), ("in", "a", [], ["a"]), ("not_in", "a", [], ["a", "b"]), ("lte", 5, [5, -1], [6]), ("in", ["a", 1], ["a", 1], ["b", True]),
        ("not_in", ["a"], ["b", None], ["a"]), ("contains", "b", ["abc", ["b"]], ["ac", ["bc"], 5, {"b": 1}]),
        ("not_contains", "b", ["ac", ["a"], 5], ["abc", ["b"]]), ("exists", 0, [None, 0, ""], []), ("not_exists", 0, [], [None, 0]),
    ],
)  # fmt: skip
def test_operators(operator, value, holds, fails):
    """Every operator: true is not 1, arrays and objects equal nothing, and only numbers are ordered."""
    given = book(rule("ab", probe_of("x", operator, value)))
    assert problems(given) == []
    for actual in holds:
        assert evaluate(given, {"x": actual}).rule_id == "ab", actual
    for actual in fails:
        assert evaluate(given, {"x": actual}).rule_id is None, actual
    assert (evaluate(given, {}).rule_id == "ab") is (operator == "not_exists")


def test_all_any_not_and_dotted_fields():
    """Conditions nest; a field is a way into objects, and a name with a dot in it is no way."""
    both = {"all": [probe_of("a.b", "eq", 1), {"any": [probe_of("c", "exists"), {"not": probe_of("d", "eq", 2)}]}]}
    given = book(rule("ab", both))
    for inputs, holds in [
        ({"a": {"b": 1}, "d": 3}, True), ({"a": {"b": 1}, "c": 0}, True), ({"a.b": 1, "c": 0}, False), ({"a": {"b": 1}, "d": 2}, False), ({"a": 1}, False),
    ]:  # fmt: skip
        assert (evaluate(given, inputs).rule_id == "ab") is holds


def test_priority_then_name_then_default():
    """The higher priority is asked first, equals by name; if none holds, the default is the outcome."""
    always = probe_of("x", "exists")
    given = book(rule("bb", always, "no"), rule("aa", always, "yes"), rule("zz", always, "review", priority=1))
    assert evaluate(given, {"x": 1}).rule_id == "zz"
    assert evaluate(book(*given["rules"][:2]), {"x": 1}).rule_id == "aa"
    found = evaluate(given, {})
    assert (found.rule_id, found.outcome["reason_code"]) == (None, "DEFAULT")


def test_inputs_are_held_against_the_schema():
    """Missing and mistyped inputs are told apart; true is no number, and what the schema does not name is let by."""
    assert unmet(book(), {"amount": 1, "more": 2}) == ([], [])
    assert unmet(book(), {}) == (["amount"], [])
    assert unmet(book(), {"amount": True}) == ([], ["amount"])
    deep = book(input_schema={"required": ["a.b"], "properties": {"a.b": {"type": "integer"}}})
    assert (unmet(deep, {"a": {"b": 1.0}}), unmet(deep, {"a.b": 1})) == (([], []), (["a.b"], []))
    assert unmet(deep, {"a": {"b": 1.5}}) == ([], ["a.b"])


# -- forbidden fields, bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_forbidden_fields_are_found_wherever_they_are(name):
    """What decide.fyi gives out is forbidden at the top, at any depth of the inputs, and in an adapter's facts."""
    assert forbidden_in({name: 1}) == [name]
    deep = {"context": {"inputs": {"a": [{"b": {name: None}}]}}}
    assert forbidden_in(deep) == [f"context.inputs.a[0].b.{name}"]
    assert forbidden_in({"adapter": {"input": [[{name: 1}]]}}) == [f"adapter.input[0][0].{name}"]
    assert forbidden_in({"context": {name: 1}}) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a":1e999}'])
def test_what_is_no_object_is_400(body):
    """A body that is no JSON object is refused with 400, however broken it is."""
    with pytest.raises(Refused) as refusal:
        read_object(body)
    assert refusal.value.status == 400


# -- advice ----------------------------------------------------------------------------------------------------------------


def test_modes():
    """Without a mode, options or a `|` make the question multi; a rulebook is a rulebook; an unknown mode is refused."""
    assert mode_of({"rulebook": book()}) == mode_of({"rulebook": book(), "mode": "single"}) == "rulebook"
    assert mode_of({"rulebook": {}, "question": "Ship?"}) == "single"
    assert mode_of({"question": "Ship?"}) == "single"
    assert mode_of({"question": "a | b"}) == mode_of({"options": ["a"]}) == "multi"
    assert options_of({"question": "red | blue |"}) == ["red", "blue"]
    with pytest.raises(Refused):
        mode_of({"mode": ["rulebook"]})


def test_verdict_words():
    """Words that mean yes or no are folded; every other is review."""
    assert [verdict_word(word) for word in ("Approve", "pass", "BLOCK", "tie", "perhaps")] == [
        "yes", "yes", "no", "review", "review",
    ]  # fmt: skip


def test_unusable_questions():
    """Too short, too few or too many options, and topics that are refused: each its own word."""
    assert unusable({"question": "ab"}, "single") == {"c": "unclear", "v": "Ask a question"}
    for count in (1, 9):
        answer = unusable({"question": "Which?", "options": ["o"] * count}, "multi")
        assert answer == {"c": "unclear", "v": "Need 2-8 options"}
    assert unusable({"question": "Should I invest in stocks?"}, "single")["c"] == "filtered"
    assert unusable({"question": "Which?", "options": ["a", "b"]}, "multi") is None


# -- the face --------------------------------------------------------------------------------------------------------------


class Decide:
    """The face behind an emulation with its clock in our hand."""

    def __init__(self, *switches) -> None:
        self.now = NOW
        self.emulation = Emulation(["decidefyi"], switches=switches, wall=lambda: self.now)

    def call(self, method, path, body=None, *, api_key="k", query="", **headers):
        given = {"x-api-key": api_key} | {name.replace("_", "-"): value for name, value in headers.items()}
        raw = b"" if body is None else json.dumps(body).encode()
        face, relative = self.emulation.route(path)
        answer = self.emulation.answer(face, Call(method, relative, given, raw, query, self.now), PASS)
        return answer.status, answer.headers, json.loads(answer.body)

    def decide(self, body=None, **more):
        return self.call("POST", "/api/decide", body or request(), **more)

    def made(self, **more):
        status, _, record = self.decide(**more)
        assert status == 200
        return record

    def execute(self, decision_id, status="executed", **more):
        path = f"/api/decision/{decision_id}/execution"
        return self.call("POST", path, {"execution_status": status}, **more)


def test_views_are_nested_and_hashes_hold():
    """minimal ⊂ standard ⊂ full; hashes and signature cover the record, and a changed one is found out."""
    record = Decide().made()
    minimal, standard, full = (set(projected(record, view)) for view in VIEWS)
    assert minimal < standard < full
    assert all(checks(record, request()).values())
    assert checks({**record, "verdict": "no"})["record_hash"] is False
    assert not checks(record, request(inputs={"amount": 51}))["input_hash"]
    assert canonical_hash({"b": {"d": 1, "c": 2}, "a": 1}) == canonical_hash({"a": 1, "b": {"c": 2, "d": 1}})
    assert len(record["record_hash"]) == 64


def test_the_month_starts_anew_in_utc():
    """A monthly cap answers 429 until the first of the next month, in the header's unit and in seconds; repeats are free."""
    decide = Decide("decidefyi.monthly_cap=2")
    first = decide.made(x_idempotency_key="a")
    decide.execute(first["decision_id"])
    status, headers, body = decide.decide()
    assert (status, body["error"], body["v"]) == (429, "DECIDE_API_MONTHLY_CAP_EXCEEDED", "monthly_cap_exceeded")
    assert (body["retry_after"], headers["X-RateLimit-Reset"]) == (30, str(int((NOW + 30) * 1000)))
    assert decide.execute(first["decision_id"])[0] == 429
    assert decide.made(x_idempotency_key="a")["decision_id"] == first["decision_id"]
    decide.emulation.throw("decidefyi.reset_unit=s")
    assert decide.decide()[1]["X-RateLimit-Reset"] == str(int(NOW + 30))
    decide.now += 30
    assert decide.decide()[0] == 200


def test_the_minute_starts_anew():
    """A rate limit is counted per API key and minute; refused and accepted requests say what is left."""
    decide = Decide("decidefyi.rate_limit=2")
    remaining = [decide.decide()[1]["X-RateLimit-Remaining"] for _ in range(2)]
    status, headers, body = decide.decide()
    assert (remaining, status, body["error"], body["retry_after"]) == (["1", "0"], 429, "DECIDE_API_RATE_LIMITED", 30)
    assert (headers["Retry-After"], headers["X-RateLimit-Reset"]) == ("30", str(int((NOW + 30) * 1000)))
    assert decide.decide(api_key="other")[0] == 200
    decide.emulation.throw("decidefyi.rate_limit_form=runtime")
    body = decide.decide()[2]
    assert (body["ok"], body["error"]) == (False, "RATE_LIMIT_EXCEEDED")
    decide.now += 30
    assert decide.decide()[0] == 200


def test_a_twin_in_flight():
    """Both kinds of 409: a repeat while the first still runs, and a changed payload; afterwards the first receipt."""
    decide = Decide("decidefyi.inflight_409=on", "decidefyi.inflight_s=2")
    decision_id = decide.made()["decision_id"]
    _, _, first = decide.execute(decision_id, x_idempotency_key="k1")
    status, headers, body = decide.execute(decision_id, x_idempotency_key="k1")
    assert (status, body["status"], headers["x-idempotency-status"]) == (409, "in_progress", "in_progress")
    status, _, body = decide.execute(decision_id, "failed", x_idempotency_key="k1")
    assert (status, body["error"], body["v"]) == (409, "DECIDE_EXECUTION_IDEMPOTENCY_CONFLICT", "idempotency_conflict")
    decide.now += 2
    status, headers, again = decide.execute(decision_id, x_idempotency_key="k1")
    assert (status, again, headers["x-idempotency-status"]) == (200, first, "replayed")
    details = decide.emulation.state().faces["decidefyi"]["details"]
    assert (details["executions"], details["in_progress"], details["conflicts"], details["replays"]) == (1, 1, 1, 1)


def test_keys_count_in_their_first_300_characters():
    """Keys that are equal so far are one key."""
    decide = Decide()
    first = decide.made(x_idempotency_key="x" * 300 + "a")
    assert decide.made(x_idempotency_key="x" * 300 + "b")["decision_id"] == first["decision_id"]
    assert decide.made(x_idempotency_key="x" * 299)["decision_id"] != first["decision_id"]


def test_without_a_key_there_is_no_dedupe():
    """Every call makes a new record, and the same receipt again is counted as a duplicate."""
    decide = Decide()
    one, two = decide.made(), decide.made()
    assert one["decision_id"] != two["decision_id"]
    for _ in range(2):
        assert decide.execute(one["decision_id"])[0] == 200
    assert (decide.emulation.state().runs, decide.emulation.state().events, decide.emulation.state().duplicates) == (
        2,
        2,
        1,
    )


def test_deep_inputs_do_no_harm():
    """Inputs nested as deep as JSON is read at all are compared, hashed and answered, or refused with 400."""
    deep = json.loads("[" * 900 + "]" * 900)
    given = book(rule("ab", probe_of("amount", "eq", deep)), input_schema={})
    assert Decide().decide(request(given, {"amount": deep}))[0] in {200, 400}


def test_switches_have_types():
    """Switches are thrown by text and by Struct; a wrong value is refused."""
    emulation = Emulation(["decidefyi"], switches=[DecidefyiSwitches(receipt_status="201"), "decidefyi.inflight_s=0.5"])
    assert emulation.switches()["decidefyi"]["receipt_status"] == "201"
    assert emulation.switches()["decidefyi"]["inflight_s"] == 0.5
    for wrong in ("receipt_status=202", "monthly_cap=-1", "rate_limit=0", "ai=broken", "inflight_s=-1"):
        with pytest.raises(Exception, match=wrong.partition("=")[0]):
            emulation.throw(f"decidefyi.{wrong}")


def test_inspection_finds_a_decision_by_any_of_its_ids():
    """A decision is shown with its record, request and receipts, by its id, key, request id or a receipt's id; others are not."""
    decide = Decide()
    record = decide.made(x_idempotency_key="a/b")
    receipt = decide.execute(record["decision_id"], x_idempotency_key="k1")[2]
    for key in (record["decision_id"], "a/b", record["request_id"], receipt["execution_receipt_id"]):
        shown = decide.emulation.run(key)
        assert (shown["record"], shown["executions"]) == (record, [receipt])
    assert [(one["sequence_number"], one["type"], one["status"]) for one in shown["events"]] == [
        (1, "execution", "executed")
    ]
    row = decide.emulation.runs()[0]
    assert (row["verdict"], row["executions"], row["mode"]) == ("yes", 1, "rulebook")
    with pytest.raises(KeyError):
        decide.emulation.run("nosuch")
    decide.emulation.reset()
    assert decide.emulation.runs() == []


def test_pages_escape_what_agents_wrote():
    """Nothing that a client sends becomes markup on a page."""
    decide = Decide()
    body = request(inputs={"amount": 1, EVIL: EVIL})
    body["context"] |= {"source_record_id": EVIL, "target_system": EVIL, EVIL: EVIL}
    decision_id = decide.made(body=body, x_idempotency_key=EVIL)["decision_id"]
    decide.execute(decision_id, EVIL, x_idempotency_key=EVIL + "2")
    for path in ("/", f"/view/decidefyi/{decision_id}"):
        page = inspect(decide.emulation, "GET", f"/_sandbox{path}", "", b"").body.decode()
        assert "&lt;script&gt;" in page
        assert "<script" not in page


def test_nothing_waits_for_a_person():
    """A review is final at decide.fyi: there is nothing to approve or deny."""
    decide = Decide()
    decision_id = decide.made(body=request(inputs={"amount": 5000}))["decision_id"]
    assert inspect(decide.emulation, "POST", f"/_sandbox/act/decidefyi/{decision_id}/approve", "", b"").status == 404
    assert "verbs" not in decide.emulation.runs()[0]
