"""Durations, sizes and RFC 3339 times as people write them. No I/O; used by configuration, command line and sandbox.

`parse_duration("500ms")` and `parse_size("64MiB")` give plain numbers; a wrong one names what would be right.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from agentd.errors import UsageError

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_MAX_DURATION_S = 100 * 366 * 86400.0  # a century: anything above is a typing error, and datetime would overflow
_MAX_SIZE = 2**60
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)\s*")
_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # by the unit's first letter
_MAX_RATE = 1e6  # a second; above it a limit says nothing
_LEAST_RATE = 1 / 86400.0


def _quantity(text: str, units: dict[str, float] | dict[str, int], example: str) -> tuple[float, float]:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        allowed = ", ".join(units)
        raise UsageError(f"expected a number with a unit ({allowed}) such as {example!r}, got {text!r}")
    return float(match[1]), units[match[2]]


def parse_duration(value: str | float) -> float:
    """Seconds from `"500ms"`, `"2s"`, `"7d"` or a plain number of seconds. Raises UsageError."""
    if isinstance(value, bool):
        raise UsageError(f"expected a duration such as '500ms', got {value!r}")
    if isinstance(value, int | float):
        seconds = float(value) if abs(value) <= _MAX_DURATION_S else math.inf
    else:
        number, unit = _quantity(value, _DURATION_UNITS, "500ms")
        seconds = number * unit
    if not 0 <= seconds <= _MAX_DURATION_S:
        raise UsageError(f"expected a duration between 0 and 100 years, got {value!r}")
    return seconds


def parse_size(value: str | int) -> int:
    """Bytes from `"64MiB"`, `"1GB"` or a plain number of bytes. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"expected a size such as '64MiB', got {value!r}")
    if isinstance(value, int):
        size = value
    else:
        number, unit = _quantity(value, _SIZE_UNITS, "64MiB")
        size = int(min(number * unit, 2.0 * _MAX_SIZE))  # hundreds of digits are infinite as a float
    if not 0 <= size <= _MAX_SIZE:
        raise UsageError(f"expected a size between 0 and 1 EiB, got {value!r}")
    return size


def parse_rate(value: str | float) -> float:
    """Requests a second from `"600/min"`, `"10/s"`, `"1000/h"` or a plain number of them. Raises UsageError."""
    if isinstance(value, str):
        match = _RATE.fullmatch(value)
        rate = float(match[1]) / _PERIODS[match[2][0]] if match else math.nan
    else:
        rate = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    if not _LEAST_RATE * 0.999 <= rate <= _MAX_RATE:
        raise UsageError(
            f"expected requests by time such as '600/min', '10/s' or a number a second, one a day or more, got {value!r}"
        )
    return rate


def format_rate(rate: float) -> str:
    """`10/s`, `20/min`, `5/h`: the shortest time in which it is a whole number, as near as a float can say."""
    for unit, seconds in (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("day", 86400.0)):
        count = round(rate * seconds)
        if count and abs(count - rate * seconds) < 1e-6 * count:
            return f"{count}/{unit}"
    return f"{rate:.4g}/s"


def format_duration(seconds: float) -> str:
    """The shortest readable form with one decimal: `850ms`, `2.5s`, `3h`."""
    for unit, factor in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= factor:
            return f"{seconds / factor:.1f}".removesuffix(".0") + unit
    return f"{seconds * 1e3:.0f}ms"


def format_size(size: int) -> str:
    """The shortest readable form with one decimal: `512 B`, `1.5 MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _SIZE_UNITS[unit]:
            return f"{size / _SIZE_UNITS[unit]:.1f} {unit}"
    return f"{size} B"


def rfc3339(unix_s: float) -> str:
    """RFC 3339 in UTC with microseconds and `Z`, from seconds since 1970."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
