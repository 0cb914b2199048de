"""Faults on demand: what goes wrong, how often, and the seeded die that decides. No I/O, no platform.

As text, the way a command line gives it, comma-separated:

    status=503,rate=0.1                  one answer in ten is a 503 in the platform's own envelope
    status=429,retry_after=2s            … with Retry-After in seconds; retry_after_as=date gives an HTTP date
    latency=50ms  latency=50ms..200ms    answers come late; the request is committed before the wait
    cut                                  the request is committed, then the connection is cut: the answer is lost
    hang                                 nothing is committed, and no answer ever comes
    down  down=5s                        connections are reset as soon as a request arrives, for a while or until lifted
    …,count=3,path=/api/x,face=NAME,duration=10s    three times only; only there; lapses by itself

The same names as JSON: `{"status": 503, "rate": 0.1}`. A fault may have one ending (status, cut, hang or down) and a latency.
Of several faults the first whose ending fires decides; latencies add up. Given the same seed and the same requests in the same
order, the same ones fail.
"""

from __future__ import annotations

import email.utils
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from agentd.errors import UsageError
from agentd.units import format_duration, parse_duration

Ending = Literal["", "status", "cut", "hang", "down"]
_NUMBER = re.compile(r"\d+(\.\d+)?")
_BARE_WORDS = frozenset({"cut", "hang", "down"})
_TOO_MANY_REQUESTS = 429


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing that goes wrong; the module's docstring explains the fields. Raises UsageError if they make no sense."""

    status: int | None = None
    retry_after: float | None = None  # seconds; alone it means status 429
    retry_after_as: Literal["seconds", "date"] = "seconds"
    body: str | None = None  # sent instead of the platform's envelope, as a proxy on the way would
    latency: tuple[float, float] | None = None  # seconds, from … to
    cut: bool = False
    hang: bool = False
    down: bool = False
    rate: float = 1.0
    count: int | None = None
    path: str = ""  # a prefix of the path as the platform knows it
    face: str = ""
    duration: float | None = None  # seconds from the moment the fault is set

    def __post_init__(self) -> None:
        """Refuse what could never fire or would be two things at once."""
        endings = [self.status_code is not None, self.cut, self.hang, self.down]
        if sum(endings) > 1:
            raise UsageError("a fault has one ending: status, cut, hang or down")
        if not any(endings) and self.latency is None:
            raise UsageError("a fault needs an effect: status, latency, cut, hang or down")
        if self.status is not None and not 200 <= self.status <= 599:  # noqa: PLR2004 - the range of HTTP
            raise UsageError(f"status must lie between 200 and 599, got {self.status}")
        if not 0 <= self.rate <= 1:
            raise UsageError(f"rate must lie between 0 and 1, got {self.rate}")
        if self.count is not None and self.count < 1:
            raise UsageError(f"count must be 1 or more, got {self.count}")
        if self.latency is not None and not 0 <= self.latency[0] <= self.latency[1]:
            raise UsageError(f"latency must rise from a lower to a higher bound, got {self.latency}")

    @property
    def status_code(self) -> int | None:
        """The status to answer with, if this fault answers."""
        return _TOO_MANY_REQUESTS if self.status is None and self.retry_after is not None else self.status

    @property
    def ending(self) -> Ending:
        """How the request ends, if this fault decides it."""
        if self.status_code is not None:
            return "status"
        return "cut" if self.cut else "hang" if self.hang else "down" if self.down else ""

    @property
    def label(self) -> str:
        """The few words under which the ledger of requests shows it."""
        if self.ending:
            return f"status={self.status_code}" if self.ending == "status" else self.ending
        return "latency"


class Decision(msgspec.Struct, frozen=True):
    """What happens to one request. The empty decision lets it pass."""

    ending: Ending = ""
    status: int = 0
    headers: Mapping[str, str] = {}
    body: str | None = None
    delay_s: float = 0.0
    label: str = ""


PASS = Decision()


def _seconds(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return parse_duration(value)


def _latency(value: Any) -> tuple[float, float]:
    bounds = value.split("..") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not 1 <= len(bounds) <= 2:  # noqa: PLR2004 - from … to
        raise UsageError(f"expected a latency such as '50ms' or '50ms..200ms', got {value!r}")
    return _seconds(bounds[0]), _seconds(bounds[-1])


def fault_from(fields: Mapping[str, Any]) -> Fault:
    """A fault from JSON or from text that was split: durations may be numbers of seconds or `"50ms"`. Raises UsageError."""
    values = {name: value for name, value in fields.items() if value is not None}
    down = values.get("down")
    if down is not None and not isinstance(down, bool) and str(down) not in {"true", "false"}:
        values |= {"down": True, "duration": down}
    if "latency" in values:
        values["latency"] = _latency(values["latency"])
    for name in ("duration", "retry_after"):
        if name in values:
            values[name] = _seconds(values[name])
    try:
        return msgspec.convert(values, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"fault: {error}; known are {', '.join(Fault.__struct_fields__)}") from error


def parse_fault(text: str) -> Fault:
    """A fault from text such as `"status=503,rate=0.1"`. Raises UsageError."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and name not in _BARE_WORDS:
            raise UsageError(f"expected a fault such as 'status=503,rate=0.1', got {text!r}")
        if name in fields:
            raise UsageError(f"{name!r} occurs twice in {text!r}")
        fields[name] = value if equals else "true"
    return fault_from(fields)


class _Armed(msgspec.Struct):
    """A fault that was set, and what became of it."""

    fault: Fault
    until: float
    fired: int = 0


class Faults:
    """The faults that are set, in order, and the die. `clock` is monotonic, `wall` tells the time for HTTP dates."""

    def __init__(
        self,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._seed = seed
        self._clock = clock
        self._wall = wall
        self._armed: list[_Armed] = []
        self._die = random.Random(seed)  # noqa: S311 - repeatable on purpose

    def __repr__(self) -> str:
        """Name the faults that are set."""
        return f"<Faults seed {self._seed}: {', '.join(armed.fault.label for armed in self._armed) or 'none'}>"

    def add(self, *faults: Fault | str) -> None:
        """Set further faults, behind those there are; text is parsed."""
        parsed = [parse_fault(fault) if isinstance(fault, str) else fault for fault in faults]
        now = self._clock()
        self._armed += [_Armed(fault, math.inf if fault.duration is None else now + fault.duration) for fault in parsed]

    def replace(self, *faults: Fault | str) -> None:
        """Set exactly these faults; if one of them can't be read, everything stays as it was."""
        parsed = [parse_fault(fault) if isinstance(fault, str) else fault for fault in faults]
        self._armed = []
        self.add(*parsed)

    def clear(self) -> None:
        """Lift all faults."""
        self._armed = []

    def rewind(self) -> None:
        """Start the die again from its seed and give every count back, so that a run can be repeated."""
        self._die.seed(self._seed)
        for armed in self._armed:
            armed.fired = 0

    def listing(self) -> list[dict[str, Any]]:
        """The faults as JSON, each with how often it has fired and whether it still can."""
        now = self._clock()
        return [
            {**msgspec.to_builtins(armed.fault), "fired": armed.fired, "live": self._live(armed, now)}
            for armed in self._armed
        ]

    def decide(self, face: str, path: str) -> Decision:
        """What happens to a request. The die is thrown once for each fault that could fire, and again for a latency's range."""
        if not self._armed:
            return PASS
        now = self._clock()
        ending: Fault | None = None
        delay_s = 0.0
        labels: list[str] = []
        for armed in self._armed:
            fault = armed.fault
            if fault.face not in {"", face} or not path.startswith(fault.path) or not self._live(armed, now):
                continue
            if (ending is not None and fault.ending) or self._die.random() >= fault.rate:
                continue
            armed.fired += 1
            labels.append(fault.label)
            if fault.latency is not None:
                delay_s += self._die.uniform(*fault.latency)
            if fault.ending:
                ending = fault
        return self._decision(ending, delay_s, "+".join(labels))

    def _live(self, armed: _Armed, now: float) -> bool:
        return now < armed.until and (armed.fault.count is None or armed.fired < armed.fault.count)

    def _decision(self, fault: Fault | None, delay_s: float, label: str) -> Decision:
        if delay_s:
            label = f"{label} ({format_duration(delay_s)})"
        if fault is None:
            return Decision(delay_s=delay_s, label=label) if label else PASS
        headers = {} if fault.retry_after is None else {"Retry-After": self._retry_after(fault)}
        return Decision(fault.ending, fault.status_code or 0, headers, fault.body, delay_s, label)

    def _retry_after(self, fault: Fault) -> str:
        """Whole seconds or a date with whole seconds, both rounded up: a server that means two seconds never says one."""
        seconds = fault.retry_after or 0.0
        if fault.retry_after_as == "date":
            return email.utils.formatdate(math.ceil(self._wall() + seconds), usegmt=True)
        return str(math.ceil(seconds))
