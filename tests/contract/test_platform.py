"""What every adapter owes to delivery, whatever its platform: held against each one that `agentd.platforms` finds."""

from __future__ import annotations

import json
import math
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd import platforms
from agentd.errors import ConfigError
from agentd.exchange import Attempt, Call, Context, Lost, Request, Response, Sending, Unencodable, is_overload
from agentd.outcomes import Delivered, Pause, Reject, Retry, Split, Unknown
from agentd.queued import Entry, Source
from agentd.records import KINDS, TYPES, Record, kind_of, lane_of, loss_class
from agentd.wire import encode

NAMES = platforms.names()
QUEUED = [name for name in NAMES if platforms.load(name).calls]  # a platform may take gates and nothing that is queued
CONTEXT = Context(lambda local: local or "agent-1", lambda _kind, local_id: f"p-{local_id}", inject_id=True)
VERDICTS = (Delivered, Retry, Pause, Split, Reject, Unknown)
decode_record = msgspec.json.Decoder(Record).decode

MINIMAL = {
    "run.start": {"run_id": "r"},
    "event": {"run_id": "r", "type": "t"},
    "span": {"run_id": "r", "span_id": "s", "name": "n"},
    "task": {"run_id": "r", "task_id": "t", "name": "n", "status": "running"},
    "run.complete": {"run_id": "r"},
    "run.fail": {"run_id": "r", "error_message": "e"},
    "run.cancel": {"run_id": "r"},
    "decision": {"context": "c"},
    "snapshot": {"decision_id": "d", "snapshot": {}},
    "action.completed": {"action_id": "a"},
    "action.failed": {"action_id": "a", "error": "e"},
    "execution": {"decision_id": "d", "execution_status": "executed"},
    "outcome": {"decision_id": "d", "outcome_status": "succeeded"},
    "crm_sync": {"decision_id": "d", "sync_status": "ok"},
    "heartbeat": {},
}


def entry(record, number=1, agent="billing"):
    kind = kind_of(record)
    return Entry(
        number, UUID(int=number).bytes, lane_of(record, agent), kind, loss_class(record),
        Source(agent, 0, 0, "test"), 1_767_225_600_000_000, encode(record),
    )  # fmt: skip


def of_kind(kind, **fields):
    return decode_record(json.dumps({"kind": kind, **MINIMAL[kind], **fields}).encode())


@pytest.fixture(params=NAMES)
def platform(request):
    return platforms.load(request.param)


# -- valid records of every kind, from their types ------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
FREE_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def of_type(hint):
    if isinstance(hint, msgspec.inspect.UnionType):
        kinds = [
            one for one in hint.types if not isinstance(one, (msgspec.inspect.NoneType, msgspec.inspect.CustomType))
        ]
        return st.one_of([of_type(one) for one in kinds])
    match hint:
        case msgspec.inspect.StrType():
            return st.text(st.characters(exclude_categories=["Cs"]), min_size=hint.min_length or 0, max_size=30)
        case msgspec.inspect.IntType():
            return st.integers(hint.ge or 0, 2**63 - 1)
        case msgspec.inspect.FloatType():
            return st.floats(hint.ge or 0, hint.le or 1e9)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.LiteralType():
            return st.sampled_from(hint.values)
        case msgspec.inspect.DateTimeType():
            zones = st.sampled_from(["Z", "+05:30", "-11:00"])
            return st.builds(lambda at, zone: at.isoformat() + zone, st.datetimes(), zones)
        case msgspec.inspect.UUIDType():
            return st.uuids().map(str)
        case msgspec.inspect.ListType():
            return st.lists(of_type(hint.item_type), max_size=3)
        case msgspec.inspect.StructType():
            return objects_of(hint)
        case msgspec.inspect.DictType():
            return st.dictionaries(TEXT, FREE_JSON, max_size=3)
        case msgspec.inspect.RawType():
            return FREE_JSON
    raise AssertionError(hint)


def objects_of(struct):
    required = {f.encode_name: of_type(f.type) for f in struct.fields if f.required}
    optional = {f.encode_name: of_type(f.type) for f in struct.fields if not f.required}
    return st.fixed_dictionaries(required, optional=optional)


def valid_records(kind):
    struct = msgspec.inspect.type_info(TYPES[kind])
    return objects_of(struct).map(lambda fields: json.dumps({"kind": kind, **fields}).encode())


def nulls(value):
    if isinstance(value, dict):
        return any(nulls(v) for v in value.values())
    if isinstance(value, list):
        return any(nulls(v) for v in value)
    return value is None


# -- capabilities ----------------------------------------------------------------------------------------------------------


def test_there_is_a_platform():
    """A test over no adapter would prove nothing."""
    assert "agentos" in NAMES
    assert "base" not in NAMES


def test_an_unknown_platform_is_refused_with_the_known_ones():
    """The word in the configuration is the module's name; a wrong one is answered with all right ones."""
    with pytest.raises(ConfigError, match=r"'nonesuch' is unknown; known: .*agentos"):
        platforms.load("nonesuch")


def test_capabilities_are_consistent(platform):
    """What an adapter takes and introduces is data: kinds that exist, calls with paths, introducers among its kinds."""
    assert platform.name in NAMES
    assert platform.calls or platform.gates
    assert set(platform.calls) <= set(KINDS)
    assert platform.introduces <= set(platform.calls)
    assert platform.default_base_url.startswith("https://")
    assert platform.encoder_version >= 1
    by_name = {}
    for call in platform.calls.values():
        assert isinstance(call, Call)
        assert call.path.startswith("/")
        assert by_name.setdefault(call.name, call) == call


def test_headers_carry_key_and_idempotency_key(platform):
    """Promise 4: the idempotency key goes with every delivered call, beside the platform's key; names are lower case."""
    headers = platform.headers(Sending("the-key", "the-idempotency-key", 1.8e9))
    assert any("the-key" in value for value in headers.values())
    assert "the-idempotency-key" in headers.values()
    assert all(name == name.lower() for name in headers)


def test_no_repr_shows_a_key(platform):
    """A key is in the headers and in nothing that is printed."""
    platform.headers(Sending("the-key", "k", 1.8e9))
    assert "the-key" not in f"{platform!r} {platform.calls!r} {vars(platform)!r}"


# -- requests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_accepted_kind_has_a_request(platform, kind):
    """The least record of each accepted kind becomes a POST with a JSON object, without a null anywhere."""
    if kind not in platform.calls:
        return
    call = platform.calls[kind]
    item = entry(of_kind(kind))
    request = platform.encode(call, [item], CONTEXT)
    assert isinstance(request, Request)
    assert request.method == "POST"
    assert request.path.startswith("/")
    body = json.loads(request.body)
    assert isinstance(body, dict)
    assert not nulls(body)
    for reference in platform.references(item):
        assert reference.kind
        assert reference.local_id


@pytest.mark.parametrize("kind", KINDS)
def test_explicit_nulls_are_left_out(platform, kind):
    """Optional fields that a client sends as null are left out: one null can make a platform refuse a whole batch."""
    if kind not in platform.calls:
        return
    fields = msgspec.inspect.type_info(TYPES[kind]).fields
    absent = {}
    for f in fields:
        kinds = f.type.types if isinstance(f.type, msgspec.inspect.UnionType) else (f.type,)
        if not f.required and any(isinstance(k, (msgspec.inspect.NoneType, msgspec.inspect.RawType)) for k in kinds):
            absent[f.encode_name] = None
    request = platform.encode(platform.calls[kind], [entry(of_kind(kind, **absent))], CONTEXT)
    assert not nulls(json.loads(request.body))


def test_a_batch_has_every_record_once_and_in_order(platform):
    """A batch call carries all of its records; the same records give the same bytes (promise 4)."""
    for kind, call in platform.calls.items():
        if not call.batch:
            continue
        items = [entry(of_kind(kind), number) for number in range(1, 51)]
        first = platform.encode(call, items, CONTEXT)
        assert first == platform.encode(call, items, CONTEXT)
        assert len(first.body) > 40 * len(platform.encode(call, items[:1], CONTEXT).body) / 2


@pytest.mark.parametrize("name", QUEUED)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_valid_record_has_one_valid_encoding(name, data):
    """Promise 4: any valid record of an accepted kind is UTF-8 JSON of one object, the same bytes each time, without nulls."""
    platform = platforms.load(name)
    kind = data.draw(st.sampled_from(sorted(platform.calls)))
    item = entry(decode_record(data.draw(valid_records(kind))))
    call = platform.calls[kind]
    try:
        request = platform.encode(call, [item], CONTEXT)
    except Unencodable:
        return
    assert request.body == platform.encode(call, [item], CONTEXT).body
    body = json.loads(request.body.decode("utf-8"), parse_constant=pytest.fail)
    assert isinstance(body, dict)
    assert not nulls(body)
    platform.references(item)


# -- verdicts --------------------------------------------------------------------------------------------------------------

BODIES = [
    b"", b" ", b"null", b"{}", b"[]", b'"x"', b"<html>bad gateway</html>", b"\xff\xfe\x00", b'{"data":', b"{" * 100_000,
    b"[" * 100_000 + b"]" * 100_000, b'{"data":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"error":null}', b'{"error":"text"}',
    b'{"error":{"code":5}}', b'{"error":{"code":"' + b"x" * 70_000, b'{"data":{"run_id":null},"error":null}', b'{"data":1e999}',
    b'{"data":{"run_id":""}}', b'{"data":{"run_id":5}}', b'{"data":[],"error":[]}', b'{"error":{"code":"CONFLICT","message":"\\ud83d\\ude00"}}',
]  # fmt: skip


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_a_verdict(platform, status):
    """Promise 5: whatever a platform, or whoever stands in its place, answers is a verdict and never an exception."""
    for kind, call in platform.calls.items():
        items = [entry(of_kind(kind))]
        for body in BODIES[:12]:
            for maybe_taken in (False, True):
                verdict = platform.classify(call, items, Response(status, {}, body), Attempt(0.0, maybe_taken))
                assert isinstance(verdict, VERDICTS)
                assert 200 <= status < 300 or status == 409 or not isinstance(verdict, Delivered)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:16].decode(errors="replace"))
@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503])
def test_any_body_has_a_verdict(platform, status, body):
    """Garbage, empty and deep bodies never raise, and what is said of them in a reason is short and printable."""
    for kind, call in platform.calls.items():
        verdict = platform.classify(call, [entry(of_kind(kind))], Response(status, {}, body), Attempt(0.0))
        reason = getattr(verdict, "reason", "")
        assert len(reason) < 1000
        msgspec.json.encode(reason)


@pytest.mark.parametrize(
    ("status", "verdict", "scope"),
    [
        (401, Pause, "destination"), (402, Pause, "destination"), (403, Pause, "lane"), (301, Pause, "destination"),
        (408, Retry, "lane"), (425, Retry, "lane"), (500, Retry, "lane"), (503, Retry, "lane"), (429, Retry, "destination"),
        (413, Split, None), (400, Split, None), (422, Split, None),
    ],
)  # fmt: skip
def test_statuses_mean_what_the_promise_says(platform, status, verdict, scope):
    """Promise 5: failures are told apart, with their scope, at every platform that says nothing special of a status."""
    for kind, call in platform.calls.items():
        found = platform.classify(call, [entry(of_kind(kind))], Response(status, {}, b""), Attempt(0.0))
        assert isinstance(found, verdict)
        assert scope is None or found.scope.value == scope


@pytest.mark.parametrize(
    ("header", "after_s"),
    [
        ("0", 0.0), ("1", 1.0), ("1.5", 1.5), (" 120 ", 120.0), ("-5", 0.0), ("1e999", 3600.0), ("99999999", 3600.0),
        ("nan", None), ("", None), ("soon", None), ("Thu, 01 Jan 1970 00:01:00 GMT", 60.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0), ("Thu, 01 Jan 1970 01:01:00 +0100", 60.0), ("Thu, 32 Jan 1970 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(platform, header, after_s):
    """Promise 5: `Retry-After` in either form of RFC 9110, never negative, and asked again after an hour at the latest."""
    for kind, call in platform.calls.items():
        answer = Response(429, {"retry-after": header}, b"")
        verdict = platform.classify(call, [entry(of_kind(kind))], answer, Attempt(0.0))
        assert isinstance(verdict, Retry)
        assert verdict.after_s == after_s


@given(
    header=st.text(max_size=60)
    | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,12} [+-]?[0-9A-Z]{0,12}")
)
def test_no_header_breaks_a_verdict(header):
    """Promise 5: a header of nonsense is no header."""
    for name in QUEUED:
        platform = platforms.load(name)
        kind, call = next(iter(platform.calls.items()))
        verdict = platform.classify(
            call, [entry(of_kind(kind))], Response(503, {"retry-after": header}, b""), Attempt(0.0)
        )
        assert isinstance(verdict, Retry)
        assert verdict.after_s is None or 0 <= verdict.after_s <= 3600
        assert verdict.after_s is None or math.isfinite(verdict.after_s)


def test_a_lost_answer_is_read_by_whether_the_call_may_be_repeated(platform):
    """Promise 5: nothing sent is everybody's retry; an answer lost is a retry where it is safe, and unknown elsewhere."""
    for kind, call in platform.calls.items():
        items = [entry(of_kind(kind))]
        unsent = platform.classify(call, items, Lost("refused", sent=False), Attempt(0.0))
        assert isinstance(unsent, Retry)
        assert unsent.scope.value == "destination"
        for repeat, expected in ((True, Retry), (False, Unknown)):
            other = msgspec.structs.replace(call, repeat=repeat)
            assert isinstance(platform.classify(other, items, Lost("timeout", sent=True), Attempt(0.0)), expected)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:16].decode(errors="replace"))
@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 401, 402, 403, 429, 500, 503])
def test_any_answer_tells_of_a_cap_or_does_not(platform, status, body):
    """Where a platform tells of a cap: nothing that anybody answers raises, and only a refusal says that it is reached."""
    if not hasattr(platform, "usage"):
        return
    assert platform.cap
    headers = (
        {},
        {"x-usage-monthly-remaining": "9" * 400},
        {"x-usage-monthly-remaining": "-1", "x-ratelimit-reset": "nan"},
    )
    for call in platform.calls.values():
        for sent in headers:
            usage = platform.usage(Request(call.path, b"{}"), Response(status, sent, body), 1e9)
            assert usage.spent in (0, 1)
            assert not usage.reached or status in (402, 429) or b"PAYMENT" in body
            assert not (usage.reached and usage.passed)
            assert usage.left is None or usage.left >= 0
            assert usage.resets_in_s is None or 0 < usage.resets_in_s < 40 * 86400


def test_overload_is_a_wait_of_everybody_and_costs_nothing(platform):
    """Promise 5 and the courier's concurrency: 429, 503 and no answer in time are retries, never the record's fault."""
    for kind, call in platform.calls.items():
        items = [entry(of_kind(kind))]
        safe = msgspec.structs.replace(call, repeat=True)
        for said in (Response(429, {}, b""), Response(503, {}, b""), Lost("no answer in time", sent=True, late=True)):
            assert is_overload(said)
            assert isinstance(platform.classify(safe, items, said, Attempt(0.0)), Retry)
