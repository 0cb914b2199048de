"""The dialects, messages and limits of the socket, from bytes to records and back."""

from __future__ import annotations

import json
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import RecordError, WireError
from agentd.records import KINDS, Event, RunStart
from agentd.wire import (
    MAX_FRAME_BYTES,
    MAX_RECORDS,
    Ack,
    Dialect,
    Hello,
    Message,
    Rejected,
    decode_message,
    deeper_than,
    dialect_of,
    encode,
    frame,
    frame_length,
    hello_answer,
    split_array,
)

EVENT = b'{"kind":"event","run_id":"r","type":"t"}'
BAD = b'{"kind":"event","run_id":"r","type":"t","level":"loud"}'
DEEP = b'{"kind":"event","run_id":"r","type":"t","payload":' + b"[" * 5000 + b"]" * 5000 + b"}"


def errors(message):
    return [str(item) if isinstance(item, RecordError) else None for item in message.items]


WRAPPED = [b'{"seq":7,"records":[%b]}', b' {"records" : [%b] , "seq" : 7 } ', b"[%b]"]


# -- the number of records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "right"), [(MAX_RECORDS - 1, True), (MAX_RECORDS, True), (MAX_RECORDS + 1, False)])
@pytest.mark.parametrize("bad", [b"", b"," + BAD, b"," + DEEP, b',{"kind":"event","run_id":"\\ud800","type":"t"}'])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_message_holds_a_bounded_number_of_records(count, right, bad, wrap):
    """20,000 records are a message, 20,001 are refused with the seq, and the connection lives on; bad ones among them count too."""
    assert MAX_RECORDS == 20_000
    data = wrap % (b",".join([EVENT] * (count - bool(bad))) + bad)
    seq = 7 if b"seq" in wrap else None
    odd = b"records" in wrap[:12] and bad not in (b"", b"," + BAD)  # seq behind records that are cut by hand: not found
    if odd:
        with pytest.raises(WireError):
            decode_message(data)
    elif right:
        message = decode_message(data)
        assert (message.seq, len(message.items)) == (seq, count)
    else:
        with pytest.raises(WireError, match=f"{count} records in one message: expected at most 20000") as caught:
            decode_message(data)
        assert (caught.value.seq, caught.value.fatal) == (seq, False)


# -- lone surrogates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lone", [b"\\ud800", b"\\uDFFF", b"a\\udc80b", b"\\ud83dx", b"\\ud83d\\ud83d"])
@pytest.mark.parametrize(
    "place", [b'"type":"%b"', b'"type":"t","payload":{"a":["%b"]}', b'"type":"t","payload":{"%b":1}']
)
@pytest.mark.parametrize("wrap", WRAPPED[::2])
def test_a_lone_surrogate_costs_its_record_alone(wrap, place, lone):
    """Python writes a lone surrogate as an escape that is no text: that record is refused, its neighbours and the seq are kept."""
    wrong = b'{"kind":"event","run_id":"r",' + place % lone + b"}"
    message = decode_message(wrap % b",".join([EVENT, wrong, EVENT]))
    assert message.seq == (7 if b"seq" in wrap else None)
    assert [error is None for error in errors(message)] == [True, False, True]


@pytest.mark.parametrize("bad", [BAD, DEEP], ids=["bad", "deep"])
@pytest.mark.parametrize("wrap", WRAPPED[::2])
def test_a_lone_surrogate_among_other_bad_records(wrap, bad):
    """Whichever of them the parser meets first: each costs itself alone, and the seq is kept."""
    lone = b'{"kind":"event","run_id":"r","type":"\\ud800"}'
    for parts in ([bad, EVENT, lone, EVENT], [lone, EVENT, bad, EVENT]):
        message = decode_message(wrap % b",".join(parts))
        assert message.seq == (7 if b"seq" in wrap else None)
        assert [error is None for error in errors(message)] == [False, True, False, True]


def test_a_message_that_is_nothing_but_a_surrogate_is_no_reason_to_end_the_connection():
    """A record alone, or an envelope whose seq stands behind its records, is refused as a whole; the connection lives on."""
    wrong = b'{"kind":"event","run_id":"r","type":"\\ud800"}'
    for data in (wrong, WRAPPED[1] % wrong):
        with pytest.raises(WireError) as caught:
            decode_message(data)
        assert not caught.value.fatal


def test_a_pair_of_surrogates_is_a_character():
    """What is written in two escapes as JSON has it is text."""
    message = decode_message(b'{"kind":"event","run_id":"r","type":"\\ud83d\\ude00"}')
    assert message.items == [Event(run_id="r", type="\N{GRINNING FACE}")]


def test_broken_json_beside_a_surrogate_is_fatal_all_the_same():
    """An escape in it makes no message of what is none."""
    with pytest.raises(WireError) as caught:
        decode_message(b'{"seq":7,"records":[{"kind":"\\ud800"')
    assert caught.value.fatal


@pytest.mark.parametrize(
    "data", [b"[" * 5000, b'{"seq":7,"records":' + b"[" * 5000, b'{"a":' * 5000, b"[" * 5000 + b"]" * 4999]
)
def test_nothing_but_brackets_is_an_error_of_ours(data):
    """However deep it goes and wherever it ends, what is raised is a WireError and no RecursionError."""
    with pytest.raises(WireError):
        decode_message(data)


# -- dialects and frames ---------------------------------------------------------------------------------------------------


def test_the_first_byte_chooses_the_dialect():
    """0x00 frames; {, [ or white space lines; an ASCII capital HTTP; any of the other 222 bytes none."""
    expected = (
        {0: Dialect.FRAMES}
        | dict.fromkeys(b"{[ \t\r\n", Dialect.LINES)
        | dict.fromkeys(string.ascii_uppercase.encode(), Dialect.HTTP)
    )
    assert {byte: dialect_of(byte) for byte in range(256)} == {byte: expected.get(byte) for byte in range(256)}


@pytest.mark.parametrize(
    ("length", "right"), [(0, False), (1, True), (MAX_FRAME_BYTES, True), (MAX_FRAME_BYTES + 1, False)]
)
def test_a_frame_has_one_byte_to_16_mib_less_one(length, right):
    """Frames are tested at, below and above both limits; the first byte of each is 0, which is how they are told."""
    message = bytes(length)
    if right:
        made = frame(message)
        assert made[0] == 0
        assert frame_length(made[:4]) == length
    else:
        with pytest.raises(WireError, match=f"{length} bytes: expected 1 to"):
            frame(message)


@pytest.mark.parametrize(
    ("length", "right"), [(0, False), (1, True), (99, True), (100, True), (101, False), (2**32 - 1, False)]
)
def test_a_header_is_held_against_the_configured_limit(length, right):
    """`intake.max_frame_bytes` is judged on the four bytes of the header alone."""
    header = length.to_bytes(4, "big")
    if right:
        assert (
            frame_length(header, 100)
            == frame_length(bytearray(header), 100)
            == frame_length(memoryview(header), 100)
            == length
        )
    else:
        with pytest.raises(WireError, match="max_frame_bytes"):
            frame_length(header, 100)


# -- messages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [EVENT, b" \n" + EVENT + b"\n", b'{"run_id":"r","type":"t","kind":"event"}'])
def test_a_record(data):
    """A record alone is a message without an answer; its fields may come in any order."""
    assert decode_message(data) == Message(None, [Event(run_id="r", type="t")])


@pytest.mark.parametrize("data", [b"[" + EVENT + b"," + EVENT + b"]", b"\t[ " + EVENT + b" ,\n" + EVENT + b" ]"])
def test_an_array(data):
    """An array of records is a message without an answer."""
    assert decode_message(data) == Message(None, [Event(run_id="r", type="t")] * 2)


@pytest.mark.parametrize(
    "data", [b'{"seq":7,"records":[%b]}', b' {"records" : [%b] , "seq" : 7 } ', b'{"seq": 7, "records": [%b]}']
)
def test_an_envelope(data):
    """An envelope has a seq and records, in any order; it may be empty."""
    assert decode_message(data % EVENT) == Message(7, [Event(run_id="r", type="t")])
    assert decode_message(data % b"") == Message(7, [])


@pytest.mark.parametrize(
    ("seq", "right"),
    [(0, True), (2**63 - 1, True), (2**63, False), (-1, False), (1.5, False), ("7", False), (None, False)],
)
def test_a_seq_is_an_unsigned_integer(seq, right):
    """The seq has its bounds, in an ordinary message and in one that is cut by hand for its depth."""
    for record in (EVENT, DEEP):
        data = b'{"seq":' + json.dumps(seq).encode() + b',"records":[' + record + b"]}"
        if right:
            assert decode_message(data).seq == seq
        else:
            with pytest.raises(WireError):
                decode_message(data)


def test_a_hello():
    """A hello says who speaks; what a newer client adds is let pass."""
    hello = decode_message(b'{"hello":1,"stream":"s","owns_runs":true,"lost":{"no_daemon":3},"newer":[1]}')
    assert hello == Hello(hello=1, stream="s", owns_runs=True, lost={"no_daemon": 3})
    assert decode_message(b'{"hello":1}') == Hello(hello=1)


@pytest.mark.parametrize(
    "data", [b'{"hello":"x"}', b'{"hello":1,"lost":[]}', b'{"hello":1,"lost":{"a":-1}}', b'{"hello":1,"stream":5}']
)
def test_a_wrong_hello_is_an_error(data):
    """A hello of the wrong shape is answered with the field that is wrong."""
    with pytest.raises(WireError, match=r"^\$\."):
        decode_message(data)


def test_a_record_with_a_field_hello_is_no_hello():
    """Unknown fields of a record are refused by name, also this one."""
    message = decode_message(b'{"kind":"event","run_id":"r","type":"t","hello":1}')
    assert errors(message) == ["$.hello: unknown field of event"]


WRAPS = [b"[%b]", b'{"seq":7,"records":[%b]}', b'{"records":[%b],"seq":7}']
WRONG = [BAD, b"5", b"null", b"[]", b"{}", b'{"kind":"nonesuch"}', b'{"kind":5}', b'{"kind":"event"}']


@pytest.mark.parametrize(
    ("wrap", "bad"), [(wrap, bad) for wrap in WRAPS for bad in WRONG] + [(wrap, DEEP) for wrap in WRAPS[:2]]
)
def test_one_bad_record_never_costs_its_neighbours(wrap, bad):
    """What is wrong with one record is said in its place; the others are taken, and the seq is kept."""
    message = decode_message(wrap % b",".join([EVENT, bad, EVENT]))
    assert [isinstance(item, RecordError) for item in message.items] == [False, True, False]
    assert message.seq == (7 if b"seq" in wrap else None)
    assert message.items[0] == Event(run_id="r", type="t")


def test_a_bad_record_before_a_deep_one():
    """Two different faults in one message are both told, and cost nothing else."""
    message = decode_message(b'{"seq":1,"records":[' + b",".join([BAD, DEEP, EVENT]) + b"]}")
    assert [isinstance(item, RecordError) for item in message.items] == [True, True, False]
    assert "nested too deeply" in errors(message)[1]
    message = decode_message(b"[" + b",".join([BAD, DEEP, EVENT]) + b"]")
    assert [isinstance(item, RecordError) for item in message.items] == [True, True, False]


@pytest.mark.parametrize(
    "data", [DEEP, b'{"id":5,' + DEEP[1:], b"[" * 10**5, b"{" * 10**5, b'{"a":' * 10**5, b'{"hello":' + b"[" * 10**5]
)
def test_a_message_that_is_nothing_but_deep_is_refused(data):
    """Nesting beyond all measure is an error, whatever it stands in, and no crash."""
    with pytest.raises(WireError):
        decode_message(data)


def test_a_deep_message_that_is_too_large_to_be_cut_is_refused_whole():
    """Cutting by hand is bounded: above 1 MiB a message with a too deep record is refused as a whole, with its seq."""
    data = b'{"seq":7,"records":[' + b",".join([EVENT] * 30_000 + [DEEP]) + b"]}"
    with pytest.raises(WireError, match="nested too deeply") as caught:
        decode_message(data)
    assert caught.value.seq == 7


@pytest.mark.parametrize(
    ("data", "seq"),
    [
        (b'{"seq":7,"records":5}', 7), (b'{"seq":7}', 7), (b'{"seq":7,"records":null}', 7), (b'{"seq":7,"records":[],"x":1}', 7),
        (b'{"x":1,"records":[],"seq":7}', 7), (b'{"records":[]}', None), (b'{"seq":"x","records":[]}', None), (b'{"seq":-1,"records":[]}', None),
    ],
)  # fmt: skip
def test_an_envelope_of_the_wrong_shape_keeps_its_seq(data, seq):
    """JSON of the wrong shape is answered with the seq if it had one, and the stream can be trusted after it."""
    with pytest.raises(WireError, match=r"\$") as caught:
        decode_message(data)
    assert (caught.value.seq, caught.value.fatal) == (seq, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[",
        b'{"kind":',
        EVENT + b"x",
        EVENT + EVENT,
        b'{"seq":1,"records":[' + EVENT + b",]}",
        b"{'kind':1}",
        b"nonsense",
        b"[1,]",
    ],
)
def test_what_is_no_json_is_fatal(data):
    """What can't be parsed can't be trusted: in frames the connection is closed after the answer."""
    with pytest.raises(WireError, match=r"malformed|truncated") as caught:
        decode_message(data)
    assert caught.value.fatal


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_what_is_no_utf8_is_refused_wherever_it_stands(wrong):
    """One byte that is no UTF-8, deep in a payload too, would poison the request that it is put into."""
    with pytest.raises(WireError, match="invalid UTF-8 at byte"):
        decode_message(b'{"kind":"event","run_id":"r","type":"t","payload":{"a":"' + wrong + b'"}}')


@pytest.mark.parametrize(
    "payload", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"01", b"1.", b"'x'", b'"\x00"', b'"\\x"', b"{1:2}"]
)
def test_what_json_has_no_word_for_is_refused(payload):
    """NaN, infinities and the like are no JSON, and no platform would take them."""
    with pytest.raises(WireError):
        decode_message(b'{"kind":"event","run_id":"r","type":"t","payload":' + payload + b"}")


JSON_LIKE = st.lists(
    st.sampled_from([b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'"kind"', b'"event"', b'"seq"', b'"records"', b'"hello"', b"1", b"-", b"null", b" ", b"\xff", EVENT, BAD, b"[" * 2000]),
    max_size=25,
).map(b"".join)  # fmt: skip


def message_or_error(data):
    try:
        return decode_message(data)
    except WireError as error:
        return error


@given(st.binary(max_size=200) | JSON_LIKE)
def test_any_bytes_are_a_message_or_an_error(data):
    """Whatever a peer sends is a message, a hello or a WireError, and nothing else."""
    found = message_or_error(data)
    if isinstance(found, WireError):
        assert 0 < len(str(found)) < 500
        return
    assert isinstance(found, Message | Hello)
    if isinstance(found, Message):
        assert all(isinstance(item, RecordError | msgspec.Struct) for item in found.items)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=10,
)  # fmt: skip
EVENTS = st.fixed_dictionaries(
    {"kind": st.just("event"), "run_id": TEXT, "type": TEXT},
    optional={"level": st.sampled_from(["debug", "info", "warn", "error"]), "payload": FREE, "agent_id": TEXT},
)


@given(st.lists(EVENTS, max_size=5), st.integers(0, 2**63 - 1), st.booleans())
def test_valid_records_come_through_unchanged(events, seq, ascii_only):
    """Every valid record goes in and out again with the same meaning, its payload byte for byte."""
    data = json.dumps({"seq": seq, "records": events}, ensure_ascii=ascii_only).encode()
    message = decode_message(data)
    assert message.seq == seq
    for item, event in zip(message.items, events, strict=True):
        out = json.loads(encode(item))
        assert {**out, "level": out.get("level", "info")} == {"level": "info", **event}


# -- the parts -------------------------------------------------------------------------------------------------------------


@given(st.lists(FREE, max_size=6))
def test_an_array_is_cut_at_its_commas(values):
    """Cutting by hand finds the elements that the parser would find."""
    data = json.dumps(values).encode()
    parts = split_array(data, 1)
    assert [json.loads(part) for part in parts] == values if values else parts == [b""]


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(FREE, st.integers(0, 8))
def test_depth_is_measured_as_a_parser_would(value, limit):
    """Brackets in strings are no nesting; the limit itself is allowed."""
    assert deeper_than(json.dumps(value).encode(), limit) is (depth(value) > limit)


@pytest.mark.parametrize(("levels", "deeper"), [(63, False), (64, False), (65, True), (1000, True)])
def test_depth_at_its_limit(levels, deeper):
    """`intake.max_depth` at limit − 1, limit and limit + 1, in arrays and objects alike."""
    assert deeper_than(b"[" * levels + b"]" * levels, 64) is deeper
    assert deeper_than(b'{"[":' * levels + b'"]"' + b"}" * levels, 64) is deeper


def test_answers_as_they_go_out():
    """`rejected` is left out when it is empty; the hello's answer says what a client has to know."""
    assert encode(Ack(7, 2)) == b'{"seq":7,"accepted":2}'
    assert encode(Ack(7, 1, [Rejected(1, "no")])) == b'{"seq":7,"accepted":1,"rejected":[{"index":1,"error":"no"}]}'
    answer = hello_answer("0.1.0", 100, 41)
    assert answer == {
        "hello": 1,
        "agentd": "0.1.0",
        "contract": 1,
        "max_frame_bytes": 100,
        "kinds": list(KINDS),
        "last_seq": 41,
    }


def test_other_kinds_go_the_fast_way_too():
    """The fast path decides by the first bytes and is right about every kind."""
    assert decode_message(b'{"kind":"run.start","run_id":"r"}') == Message(None, [RunStart(run_id="r")])
