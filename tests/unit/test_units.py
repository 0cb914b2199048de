"""Durations, sizes and times as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import UsageError
from agentd.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    rfc3339,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5), ("2s", 2), ("1.5h", 5400), ("7d", 604800), ("1w", 604800), ("3m", 180), ("250us", 0.00025), ("0s", 0), (" 2 s ", 2),
        (5, 5), (0.25, 0.25), (0, 0), ("36600d", 36600 * 86400),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    """Durations take units; a plain number is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "ms",
        "5 parsecs",
        "-1s",
        "1e3s",
        "5S",
        "1s 2s",
        "36601d",
        True,
        -1,
        float("nan"),
        float("inf"),
        10**400,
        "9" * 400 + "s",
        "0x5s",
        "5,5s",
    ],
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    """A wrong duration names what would be right, however wrong it is."""
    with pytest.raises(UsageError, match=r"expected a (number with a unit|duration)"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 2**26),
        ("1GB", 10**9),
        ("1.5KiB", 1536),
        ("512B", 512),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1TiB", 2**40),
        (" 3 MB ", 3 * 10**6),
        (5, 5),
        (0, 0),
        (2**60, 2**60),
    ],
)
def test_sizes(text, size):
    """Sizes take decimal and binary units; a plain number is bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "5", "MiB", "5 mib", "-1B", "1e3B", True, -1, 1.5, None, 2**60 + 1, 10**400, "9" * 400 + "B", "1048577TiB"],
)
def test_what_is_no_size_is_refused_with_an_example(text):
    """A wrong size names what would be right, however wrong it is."""
    with pytest.raises(UsageError, match=r"expected a (number with a unit|size)"):
        parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_quantity_or_a_usage_error(text):
    """Nothing that a person can write raises anything else."""
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.25, "250ms"),
        (1, "1s"),
        (2.5, "2.5s"),
        (60, "1m"),
        (90, "1.5m"),
        (3600, "1h"),
        (86400, "1d"),
        (604800, "7d"),
    ],
)
def test_durations_are_shown_short(seconds, text):
    """The shortest readable form with one decimal."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
    ],
)
def test_sizes_are_shown_short(size, text):
    """The shortest readable form in binary units."""
    assert format_size(size).replace(".0", "") == text.replace(".0", "")


@pytest.mark.parametrize(
    ("unix_s", "text"), [(0, "1970-01-01T00:00:00.000000Z"), (1_767_225_600.5, "2026-01-01T00:00:00.500000Z")]
)
def test_times_are_utc(unix_s, text):
    """Times are RFC 3339 in UTC with microseconds."""
    assert rfc3339(unix_s) == text


@pytest.mark.parametrize(
    ("text", "rate", "shown"),
    [
        ("600/min", 10.0, "10/s"), ("20/min", 1 / 3, "20/min"), ("10/s", 10.0, "10/s"), (5, 5.0, "5/s"), (0.5, 0.5, "30/min"),
        (" 1000 / hour ", 1000 / 3600, "1000/h"), ("1/day", 1 / 86400, "1/day"), ("1.5/sec", 1.5, "90/min"), ("7/d", 7 / 86400, "7/day"),
        (3.14159265, 3.14159265, "3.142/s"),
    ],
)  # fmt: skip
def test_rates(text, rate, shown):
    """Requests by time, or a number a second; shown by the shortest time in which it is a whole number."""
    assert parse_rate(text) == pytest.approx(rate)
    assert format_rate(parse_rate(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["fast", "10", "10/", "/s", "10/week", "-1/s", "0/s", 0, -1, True, None, "1e9/s", 1e9, float("nan"), "1/s/s"],
)
def test_what_is_no_rate(text):
    """The error says what would be right."""
    with pytest.raises(UsageError, match="600/min"):
        parse_rate(text)


@given(st.floats(1 / 86400, 1e6) | st.text(max_size=20))
def test_a_rate_that_is_shown_is_the_same_again(text):
    """What `agentd config` prints loads to the same limit, or as near as four digits are."""
    with contextlib.suppress(UsageError):
        rate = parse_rate(text)
        assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=1e-3)
