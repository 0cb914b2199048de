"""The record kinds: what is taken, which lane a record belongs to, and what may be shed."""

from __future__ import annotations

import json

import msgspec
import pytest

from agentd.records import (
    EVIDENCE,
    INTRODUCES,
    KINDS,
    REFERENCE_FIELDS,
    RUN_ENDS,
    RUN_KINDS,
    TYPES,
    LossClass,
    Record,
    kind_of,
    lane_of,
    loss_class,
)

decode = msgspec.json.Decoder(Record).decode
RUN = {"run_id": "r"}
DECISION = {"decision_id": "d"}
LEAST = {
    "run.start": RUN,
    "event": RUN | {"type": "t"},
    "span": RUN | {"span_id": "s", "name": "n"},
    "task": RUN | {"task_id": "t", "name": "n", "status": "running"},
    "run.complete": RUN,
    "run.fail": RUN | {"error_message": "e"},
    "run.cancel": RUN,
    "decision": {"context": "c"},
    "snapshot": DECISION | {"snapshot": {}},
    "action.completed": {"action_id": "a"},
    "action.failed": {"action_id": "a", "error": "e"},
    "execution": DECISION | {"execution_status": "executed"},
    "outcome": DECISION | {"outcome_status": "succeeded"},
    "crm_sync": DECISION | {"sync_status": "ok"},
    "heartbeat": {},
}


def record(kind, **fields):
    return decode(json.dumps({"kind": kind, **LEAST[kind], **fields}).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_may_say_more_than_agentd_has_fields_for(kind):
    """`extra` is a JSON object whose values stay as they were written; anything else is refused by name."""
    assert bytes(record(kind, extra={"a": [1.50]}).extra["a"]) == b"[1.5]"
    assert record(kind, extra=None).extra is None
    with pytest.raises(msgspec.ValidationError, match=r"\$\.extra"):
        record(kind, extra=["a"])


def test_the_table_of_kinds_is_whole():
    """Every kind that is promised exists, and none beside them."""
    assert set(KINDS) == set(LEAST)
    assert RUN_ENDS <= RUN_KINDS <= set(KINDS)
    assert set(KINDS) - {"event", "span", "heartbeat"} == EVIDENCE


@pytest.mark.parametrize("kind", KINDS)
def test_the_required_fields_are_enough_and_needed(kind):
    """Each kind is taken with its required fields alone, and refused without any one of them."""
    assert kind_of(record(kind)) == kind
    for field in LEAST[kind]:
        with pytest.raises(msgspec.ValidationError, match=field):
            decode(json.dumps({"kind": kind} | {k: v for k, v in LEAST[kind].items() if k != field}).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_common_fields_and_no_unknown_ones(kind):
    """`id`, `to` and `agent_id` belong to every record; an unknown field is refused by name."""
    common = {"id": "01890a5d-ac96-774b-bcce-b302099a8057", "to": ["a", "b"], "agent_id": "billing"}
    found = record(kind, **common)
    assert (str(found.id), found.to, found.agent_id) == tuple(common.values())
    with pytest.raises(msgspec.ValidationError, match="no_such_field"):
        record(kind, no_such_field=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "warning"}, {"run_id": ""}, {"run_id": "x" * 257}, {"run_id": 5}, {"id": "no-uuid"}, {"to": ""}, {"to": 5},
        {"occurred_at": "2026-01-31T12:00:00"}, {"occurred_at": "yesterday"}, {"type": ""}, {"type": "x" * 513}, {"agent_id": ""},
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(wrong):
    """Names, ids and times have bounds; a time without an offset is none."""
    with pytest.raises(msgspec.ValidationError):
        record("event", **wrong)


@pytest.mark.parametrize(("field", "value", "right"), [
    ("confidence", 0, True), ("confidence", 1, True), ("confidence", 1.0001, False), ("confidence", -0.1, False),
    ("tokens_input", 2**63 - 1, True), ("tokens_input", 2**63, False), ("tokens_input", -1, False), ("tokens_input", 1.5, False),
    ("cost_usd", 0.5, True), ("cost_usd", 10**16, False), ("context", "x" * 65536, True), ("context", "x" * 65537, False),
])  # fmt: skip
def test_numbers_are_bounded(field, value, right):
    """Integers fit into 63 bits and shares lie between 0 and 1, tested at both sides of the bounds."""
    if right:
        assert getattr(record("decision", **{field: value}), field) == value
    else:
        with pytest.raises(msgspec.ValidationError):
            record("decision", **{field: value})


@pytest.mark.parametrize(
    "payload", [b'{ "b" : 1.50, "a": [1e2] }', b"5", b"null", b'"x"', b"[]", b"123456789012345678901234567890"]
)
def test_free_json_stays_as_it_was_sent(payload):
    """Payloads are kept byte for byte: numbers keep their digits, keys their order."""
    given = b'{"kind":"event","run_id":"r","type":"t","payload":' + payload + b"}"
    found = decode(given)
    assert bytes(found.payload) == payload
    assert payload in msgspec.json.encode(found)
    assert decode(msgspec.json.encode(found)) == found


@pytest.mark.parametrize(
    ("kind", "fields", "lane"),
    [
        ("run.start", {}, "run:r"), ("event", {}, "run:r"), ("span", {}, "run:r"), ("task", {}, "run:r"), ("run.complete", {}, "run:r"),
        ("run.fail", {}, "run:r"), ("run.cancel", {}, "run:r"), ("snapshot", {"run_id": "r"}, "decision:d"), ("execution", {}, "decision:d"),
        ("outcome", {}, "decision:d"), ("crm_sync", {}, "decision:d"), ("action.completed", {}, "action:a"),
        ("action.failed", {}, "action:a"), ("heartbeat", {"agent_id": "other"}, "heartbeat:billing"),
    ],
)  # fmt: skip
def test_the_ordering_key(kind, fields, lane):
    """Promise 2: a record's ordering key is its run, its decision or its action; a heartbeat's is its agent."""
    for ordering in ("run", "agent", "none"):
        assert lane_of(record(kind, **fields), "billing", ordering, "id") == lane


@pytest.mark.parametrize(
    ("ordering", "run_id", "lane"),
    [
        ("run", "r", "run:r"), ("run", None, "agent:billing"), ("agent", "r", "agent:billing"), ("agent", None, "agent:billing"),
        ("none", "r", "record:id"), ("none", None, "record:id"),
    ],
)  # fmt: skip
def test_the_ordering_of_decisions(ordering, run_id, lane):
    """Promise 2: `ordering` moves decisions alone: by run, the whole ledger of an agent, or not at all."""
    fields = {} if run_id is None else {"run_id": run_id}
    assert lane_of(record("decision", **fields), "billing", ordering, "id") == lane


def test_what_may_be_shed():
    """Promise 6: debug and info events and spans, and heartbeats, may be shed; everything else never."""
    for kind in KINDS:
        expected = LossClass.INFO if kind in {"event", "span", "heartbeat"} else LossClass.KEEP
        assert loss_class(record(kind)) is expected, kind
    for kind in ("event", "span"):
        assert loss_class(record(kind, level="debug")) is LossClass.DEBUG
        assert loss_class(record(kind, level="warn")) is loss_class(record(kind, level="error")) is LossClass.KEEP


def test_references_name_fields_that_exist():
    """The tables of introducers and references speak of real kinds and real fields."""
    for kind, (_, field) in (INTRODUCES | REFERENCE_FIELDS).items():
        assert field in TYPES[kind].__struct_fields__


def test_defaults_are_not_written():
    """A record is stored without what was not said."""
    assert msgspec.json.encode(record("event")) == b'{"kind":"event","run_id":"r","type":"t"}'
