"""What every stand-in owes to the gateway, whatever its platform: held against each adapter that `agentd.platforms` finds."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from agentd import platforms
from agentd.errors import RecordError
from agentd.records import TYPES, Record, kind_of
from agentd.standin import STATUSES, Called, Does, Door, Why
from agentd.wire import encode

PLATFORMS = {name: platforms.load(name) for name in platforms.names()}
STAND_INS = {name: platform.stand_in for name, platform in PLATFORMS.items()}
DOORS = [(name, door) for name, stand_in in STAND_INS.items() for door in stand_in.doors]
RECORDS = [(name, door) for name, door in DOORS if door.does is Does.RECORD]
NOW_US = 1_767_225_600_000_000
SEGMENT = re.compile(r"[A-Za-z0-9._-]+|\{[a-zA-Z_]+\}")
decode_record = msgspec.json.Decoder(Record).decode
decode_members = msgspec.json.Decoder(dict[str, Raw]).decode


def ids(doors):
    return [f"{name} {door.method} {door.path}" for name, door in doors]


def make_id(word):
    return str(uuid.uuid5(uuid.NAMESPACE_OID, word))


def called(door, body, headers=None):
    """A call of this door, each segment with an id."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    members = decode_members(data) if data.lstrip().startswith(b"{") else {}
    segments = dict.fromkeys(re.findall(r"\{(\w+)\}", door.path), "id_1")
    return Called(door, segments, [], headers or {}, data, members, NOW_US)


def outcome(question, *arguments):
    """What it gives, or the sentence in which it refuses."""
    try:
        return question(*arguments)
    except RecordError as error:
        return str(error)


def camel(name):
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


# Members that some platform knows, and some that none does; values of every sort of JSON.
FIELDS = sorted({field for type_ in TYPES.values() for field in type_.__struct_fields__})
WORDS = sorted(
    {*FIELDS, *map(camel, FIELDS), "requestId", "runPolicyEval", "completed_at", "kind", "events", "task", "newer"}
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "completed", "id_1", "info"]
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
OBJECTS = st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), VALUES, max_size=12)
# What the doors need at least, so that much of what is generated gets past the first check
NEEDED = st.fixed_dictionaries(
    {},
    optional={
        "context": st.just("c"), "decisionId": st.just("d"), "snapshot": st.just({}), "run_id": st.just("r"),
        "agent_id": st.just("a"), "execution_status": st.just("executed"), "outcome_status": st.just("succeeded"),
        "sync_status": st.just("written"), "error_message": st.just("e"),
        "task": OBJECTS.map(lambda members: members | {"id": "t", "name": "n", "status": "running"}),
        "events": st.lists(OBJECTS.map(lambda members: members | {"type": "t"}), max_size=3),
    },
)  # fmt: skip
BODIES = st.tuples(OBJECTS, NEEDED).map(lambda parts: parts[0] | parts[1])


@pytest.fixture(params=STAND_INS)
def stand_in(request):
    return STAND_INS[request.param]


# -- doors -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "door"), DOORS, ids=ids(DOORS))
def test_a_door_s_path_is_well_formed(name, door):
    """Absolute, without query, and each segment is a plain word or one name."""
    assert isinstance(door, Door)
    assert door.method in {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert door.path.startswith("/")
    segments = door.path.split("/")[1:]
    assert all(SEGMENT.fullmatch(segment) for segment in segments), door.path
    names = re.findall(r"\{(\w+)\}", door.path)
    assert len(set(names)) == len(names)


def test_a_call_fits_one_door(stand_in):
    """Of one method no two paths are the same but for what their segments are called, so that nothing is both read and written."""
    shapes = Counter((door.method, re.sub(r"\{\w+\}", "{}", door.path)) for door in stand_in.doors)
    assert [shape for shape, times in shapes.items() if times > 1] == []


def test_control_plane_has_no_way_round_it(stand_in):
    """No path that is an admin's has a door beside it that fits the same call with fewer names and lets it pass."""
    admin = [door for door in stand_in.doors if door.does is Does.ADMIN]
    others = [door for door in stand_in.doors if door.does in {Does.READ, Does.RECORD, Does.GATE}]
    twins = [
        (one.path, other.path)
        for one in admin
        for other in others
        if one.method == other.method
        and _covers(one.path, other.path)
        and "rpc" not in one.path  # listed by method there
    ]
    assert twins == []


def _covers(general, special):
    """Whether every call of the special path would fit the general one."""
    ours, theirs = general.split("/"), special.split("/")
    return len(ours) == len(theirs) and all(a == b or a.startswith("{") for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "door"), DOORS, ids=ids(DOORS))
def test_a_gate_is_one_that_the_adapter_has(name, door):
    """A gate's door names a gate; what is only read or the admin's has none."""
    if door.does is Does.GATE:
        assert door.gate
    if door.gate:
        assert door.does in {Does.GATE, Does.RECORD}
        assert door.gate in PLATFORMS[name].gates


@pytest.mark.parametrize(("name", "door"), DOORS, ids=ids(DOORS))
def test_what_asks_is_said_by_the_door(name, door):
    """No call is a gate that its door does not name; an empty call is answered, not a crash."""
    assert STAND_INS[name].asks(called(door, {})) in {None, door.gate or None}


@pytest.mark.parametrize(("name", "door"), RECORDS, ids=ids(RECORDS))
def test_records_are_of_kinds_that_the_platform_takes(name, door):
    """What an SDK reports to a platform is delivered to that platform."""
    kinds = set()
    for body in ({"context": "c"}, {"decisionId": "d", "snapshot": {}}, {}, *LEAST):
        handed = outcome(STAND_INS[name].hand_over, called(door, body), make_id)
        if not isinstance(handed, str):
            kinds |= {kind_of(decode_record(encode(record))) for record in handed.records}
    assert kinds, f"no example for {door.path}"
    assert kinds <= set(PLATFORMS[name].calls)


LEAST = (
    {"run_id": "r"}, {"run_id": "r", "error_message": "e"}, {"agent_id": "a"}, {"run_id": "r", "events": [{"type": "t"}]},
    {"run_id": "r", "task": {"id": "t", "name": "n", "status": "running"}}, {"execution_status": "e"}, {"outcome_status": "o"},
    {"sync_status": "s"}, b"[{}]",
)  # fmt: skip


def test_names_are_those_of_kinds_that_are_known(stand_in):
    """Only ids that agentd keeps references for, and agents, are replaced; every one of them can occur."""
    assert set(stand_in.names.values()) <= {"agent", "run", "decision", "action", "intent", "question"}


def test_headers_that_go_on_hold_no_key(stand_in):
    """What the caller shows us as its key never reaches the platform."""
    assert stand_in.headers.isdisjoint({"authorization", "x-api-key", "cookie", "proxy-authorization", "host"})
    assert all(name == name.lower() for name in stand_in.headers)


# -- records -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "door"), RECORDS, ids=ids(RECORDS))
@given(body=BODIES, key=st.sampled_from(["", "k"]))
@example(body={"context": "c", "agentId": None, "requestId": None}, key="")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_call_becomes_records_or_is_refused(name, door, body, key):
    """Whatever an SDK sends: every record is one that the daemon takes, or the call is refused in words, and nothing else."""
    call = called(door, body, {"x-idempotency-key": key} if key else {})
    handed = outcome(STAND_INS[name].hand_over, call, make_id)
    if isinstance(handed, str):
        assert handed.startswith("$")
        return
    for record in handed.records:
        assert {"id", "to"}.isdisjoint(record)
        decoded = decode_record(encode(record))
        for extra in (decoded.extra or {}).values():
            json.loads(bytes(extra))
    assert 200 <= handed.reply.status < 300
    assert isinstance(json.loads(handed.reply.body), dict)


@pytest.mark.parametrize(("name", "door"), RECORDS, ids=ids(RECORDS))
@given(
    data=st.binary(max_size=20) | st.sampled_from([b"[]", b"[1]", b'"x"', b"{", b"null", b"[" * 5000, b'{"a": "\xff"}'])
)
@settings(max_examples=30, deadline=None)
def test_what_is_no_object_is_refused_in_words(name, door, data):
    """Bytes that are no JSON, or no object, are nobody's crash."""
    call = msgspec.structs.replace(called(door, {}), body=data, members={})
    handed = outcome(STAND_INS[name].hand_over, call, make_id)
    assert not isinstance(handed, str) or handed.startswith("$")


@pytest.mark.parametrize(("name", "door"), RECORDS, ids=ids(RECORDS))
@given(body=BODIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_call_is_the_same_records(name, door, body):
    """Ids come from the call alone: asked twice, also at another time, a call gives the same records under the same key."""
    call = called(door, body)
    one = outcome(STAND_INS[name].hand_over, call, make_id)
    two = outcome(STAND_INS[name].hand_over, msgspec.structs.replace(call, now_us=NOW_US + 10**9), make_id)
    if isinstance(one, str):
        assert one == two
        return
    assert [encode(record) for record in one.records] == [encode(record) for record in two.records]
    assert one.key == two.key


# -- questions and refusals ----------------------------------------------------------------------------------------------------------


@given(body=BODIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_a_question_is_read_or_refused(stand_in, body):
    """What a gate is asked can be put on record as JSON; a wrong one is refused in words."""
    for door in stand_in.doors:
        if door.does is not Does.GATE:
            continue
        asked = outcome(stand_in.asked, called(door, body))
        if isinstance(asked, str):
            assert asked.startswith("$")
            continue
        assert isinstance(asked.agent, str)
        assert all(isinstance(value, Raw) for value in asked.request.values())
        json.loads(encode(asked.request))


@pytest.mark.parametrize("why", list(Why))
@pytest.mark.parametrize("message", ["$.confidence: between 0 and 1", 'quotes " and \\', "", "ü" * 400])
def test_a_refusal_is_json_with_the_sentence(stand_in, why, message):
    """Every refusal is an error status and a JSON object that holds the sentence."""
    reply = stand_in.refusal(why, message)
    assert 400 <= reply.status < 600
    assert json.dumps(message)[1:-1] in json.dumps(json.loads(reply.body))
    assert isinstance(json.loads(reply.body), dict)


def test_a_gate_s_unknown_outcome_is_nothing_to_repeat(stand_in):
    """The statuses on which retry layers repeat a call are not for what may have acted."""
    assert stand_in.refusal(Why.OUTCOME_UNKNOWN, "m").status not in {408, 425, 429, *range(500, 600)}


def test_what_was_not_stored_may_come_again(stand_in):
    """No room is a passing state, and said by a status that asks for a repeat."""
    assert stand_in.refusal(Why.SPOOL_FULL, "m").status in {429, 503}


def test_every_reason_has_a_usual_status():
    """A stand-in that deviates says only where."""
    assert set(STATUSES) == set(Why)
