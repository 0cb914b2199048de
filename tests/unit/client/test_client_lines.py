"""A record's bytes: the record kinds take what the client makes, and long values are cut rather than refused."""

import json
import typing
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import records
from agentd.client import lines
from agentd.client.encode import encode
from agentd.client.lines import cut_text, event_line, head, late_event, level_of, line, render, shrink, stamp, usage_of

EAST, WEST = timezone(timedelta(hours=2)), timezone(timedelta(hours=-2))
decode = msgspec.json.Decoder(records.Record).decode


def test_the_table_of_limits_is_that_of_the_record_kinds():
    """Each field is cut to the very limit that the daemon checks, for every kind there is."""
    tables = {
        records.Id: lines.IDS,
        records.Name: lines.NAMES,
        records.Text: lines.TEXTS,
        records.Time: lines.TIMES,
        records.UInt: lines.INTEGERS,
        records.Share: lines.NUMBERS,
        records.Amount: lines.NUMBERS,
    }
    free_words = {"level", "trigger_type", "status"}  # closed sets: text all the same
    for kind in records.TYPES.values():
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            plain = list(typing.get_args(hint) if typing.get_origin(hint) is not typing.Annotated else [hint])
            wanted = next((tables[part] for part in [hint, *plain] if part in tables), None)
            if wanted is not None and name != "to":
                assert name in wanted, (kind, name)
            elif name not in free_words:
                assert all(name not in table for table in tables.values()), (kind, name)


def test_text_is_cut_and_marked():
    """What is too long for its field is cut to the limit and says by how much."""
    text = cut_text("x" * 70_000, lines.MAX_TEXT)
    assert len(text) == lines.MAX_TEXT
    assert text.endswith("…[cut 4464 characters]")
    assert cut_text("y" * 300, lines.MAX_ID) == "y" * 256


@pytest.mark.parametrize("size", [lines.MAX_NAME - 1, lines.MAX_NAME, lines.MAX_NAME + 1])
def test_a_long_name_is_taken_by_the_record_kinds(size):
    """At the limit and beyond it the record is valid."""
    record = decode(line("event", {"run_id": "r" * size, "type": "t" * size, "occurred_at": 0}))
    assert len(record.type) == min(size, 512)
    assert len(record.run_id) == 256


def test_values_of_the_wrong_type_are_brought_into_form():
    """Numbers as text, text as a list, a float as an integer: what was meant is sent."""
    record = decode(
        line(
            "decision",
            {
                "context": 5,
                "constraints": "one",
                "confidence": "0.5",
                "tokens_input": 3.0,
                "to": ("a", "b"),
                "chosen": "",
            },
        )
    )
    assert record.context == "5"
    assert record.constraints == ["one"]
    assert record.confidence == 0.5
    assert record.tokens_input == 3
    assert record.to == ["a", "b"]
    assert record.chosen is None


@pytest.mark.parametrize("moment", [0, 1.5, datetime(2026, 1, 1), "2026-01-01T00:00:00Z"])  # noqa: DTZ001 - naive on purpose
def test_every_form_of_time_is_taken(moment):
    """Seconds, datetimes with and without a zone, and text."""
    assert decode(line("event", {"run_id": "r", "type": "t", "occurred_at": moment})).occurred_at is not None


@pytest.mark.parametrize(
    "moment", [datetime.min.replace(tzinfo=EAST), datetime.max.replace(tzinfo=WEST), 1e300, float("nan")]
)
def test_an_impossible_time_does_not_raise(moment):
    """A time that no calendar holds is sent as text, for the daemon to refuse by name."""
    json.loads(line("event", {"run_id": "r", "type": "t", "occurred_at": moment}))


def test_an_event_is_stamped_in_utc_with_microseconds():
    """occurred_at is the time of the call."""
    found = json.loads(event_line(head("event", {"run_id": "r"}), "t", "info", None, None))
    assert found.keys() == {"kind", "run_id", "type", "occurred_at"}
    assert len(found["occurred_at"]) == len("2026-01-01T00:00:00.000000Z")
    assert abs(datetime.fromisoformat(found["occurred_at"]).timestamp() - datetime.now().timestamp()) < 10  # noqa: DTZ005 - a difference


@given(st.text(), st.text(), st.text(st.characters()))
def test_an_event_line_is_what_the_general_way_makes(run_id, event_type, text):
    """The spliced line says the same as the one that is made field by field."""
    fields = {"run_id": run_id, "type": event_type, "level": "warn", "payload": {"t": text}, "occurred_at": 0}
    spliced = event_line(head("event", {"run_id": run_id}), event_type, "warn", {"t": text}, 0)
    assert json.loads(spliced) == json.loads(line("event", fields))


def test_other_words_for_levels_are_understood():
    """`warning` is `warn`; what can't be guessed is left for the daemon to refuse by name."""
    assert [level_of(word) for word in ("warning", "critical", "trace", "loud")] == ["warn", "error", "debug", "loud"]


def test_usage_objects_of_the_vendors_are_understood():
    """Token counts are found under the names that model vendors give them."""
    anthropic = SimpleNamespace(input_tokens=5, output_tokens=7, cache_read_input_tokens=None, service_tier="standard")
    assert usage_of(anthropic) == {"input_tokens": 5, "output_tokens": 7}
    assert usage_of({"prompt_tokens": 1, "completion_tokens": 2}) == {"input_tokens": 1, "output_tokens": 2}
    assert usage_of(object()) == {}
    assert usage_of(None) is None


@pytest.mark.parametrize(
    "payload",
    [
        {"a": "x" * 5000, "b": "short"},
        {"a": ["é" * 300] * 50},
        {"a": '"' * 5000},
        {"k" * 5000: 1},
        [[i] for i in range(5000)],
        {"n": list(range(5000))},
        "z" * 5000,
    ],
)
def test_a_record_that_is_too_large_is_cut_and_marked(payload):
    """Above the limit the longest strings go first; short ones, ids and kinds stay as they are."""
    data = shrink(event_line(head("event", {"run_id": "r"}), "t", "info", payload, 0), 2000)
    assert len(data) <= 2000
    assert "[cut " in data.decode()
    record = decode(data)
    assert (record.run_id, record.type) == ("r", "t")
    if isinstance(payload, dict) and "b" in payload:
        assert b'"b":"short"' in data


def test_a_field_named_kind_can_not_make_another_record():
    """Free keyword arguments do not change what a record is."""
    assert json.loads(line("event", {"kind": "decision", "run_id": "r"})) == {"kind": "event", "run_id": "r"}
    assert encode({"kind": 1}) == b'{"kind":1}'


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
@given(st.text(st.characters()), st.none() | st.text(st.characters()))
def test_an_event_put_together_later_says_the_same(level, event_type, payload):
    """What the sending thread puts together is what would have been written at once, within the size that was announced."""
    run_head = head("event", {"run_id": "r"})
    late, size = late_event(run_head, event_type, level, payload)
    data = render(late)
    assert data == render(late) == event_line(run_head, event_type, level, payload, late[-1])
    assert len(data) <= size
    assert render(b"{}") == b"{}"


@pytest.mark.parametrize("moment", [0.0, 0.9999999, 1767225599.9999995, 1767225600.0, 1e10])
def test_a_stamp_is_the_time_to_the_microsecond(moment):
    """The part that is remembered for a second never belongs to another."""
    for near in (moment, moment + 1, moment):
        assert abs(datetime.fromisoformat(stamp(near).decode()).timestamp() - near) < 2e-6
