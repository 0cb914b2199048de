"""Faults: how they are written, and how the seeded die decides."""

from __future__ import annotations

import pytest

from agentd.errors import UsageError
from agentd.sandbox.faults import PASS, Fault, Faults, fault_from, parse_fault


class FakeClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("status=503", Fault(status=503)),
        ("status=503,rate=0.1", Fault(status=503, rate=0.1)),
        (" status = 503 , count = 2 ", Fault(status=503, count=2)),
        ("status=429,retry_after=2s", Fault(status=429, retry_after=2.0)),
        ("retry_after=1.5,retry_after_as=date", Fault(retry_after=1.5, retry_after_as="date")),
        ("latency=50ms", Fault(latency=(0.05, 0.05))),
        ("latency=0.05", Fault(latency=(0.05, 0.05))),
        ("latency=50ms..2s,path=/api/x", Fault(latency=(0.05, 2.0), path="/api/x")),
        ("latency=1s,status=500", Fault(latency=(1.0, 1.0), status=500)),
        ("cut", Fault(cut=True)),
        ("cut=true,face=agentos", Fault(cut=True, face="agentos")),
        ("hang", Fault(hang=True)),
        ("down", Fault(down=True)),
        ("down=5s", Fault(down=True, duration=5.0)),
        ("status=500,duration=1m", Fault(status=500, duration=60.0)),
        ("status=502,body=<h1>Bad Gateway</h1>", Fault(status=502, body="<h1>Bad Gateway</h1>")),
    ],
)
def test_text(text, fault):
    """A fault is written as comma-separated names and values, durations with or without a unit."""
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a fault"),
        ("rate=0.5", "needs an effect"),
        ("status=503,cut", "one ending"),
        ("hang,down", "one ending"),
        ("retry_after=1,cut", "one ending"),
        ("status=99", "between 200 and 599"),
        ("status=600", "between 200 and 599"),
        ("status=soon", "status"),
        ("status=503,rate=1.01", "between 0 and 1"),
        ("status=503,count=0", "1 or more"),
        ("status=503,status=504", "twice"),
        ("latency=2s..1s", "rise"),
        ("latency=1s..2s..3s", "latency"),
        ("latency=quick", "500ms"),
        ("sttaus=503", "known are"),
        ("status", "expected a fault"),
    ],
)
def test_wrong_text(text, named):
    """A fault that could never fire, or would be two things at once, is refused with what is wrong."""
    with pytest.raises(UsageError, match=named):
        parse_fault(text)


def test_json():
    """The same names as JSON, with numbers of seconds or texts with a unit."""
    assert fault_from({"status": 503, "rate": 0.1}) == Fault(status=503, rate=0.1)
    assert fault_from({"latency": [0.05, "2s"]}) == Fault(latency=(0.05, 2.0))
    assert fault_from({"latency": 1}) == Fault(latency=(1.0, 1.0))
    assert fault_from({"down": 2}) == fault_from({"down": True, "duration": "2s"})
    assert fault_from({"cut": True, "hang": False, "status": None}) == Fault(cut=True)


def test_no_fault_lets_pass():
    """Without a fault every request passes."""
    assert Faults().decide("agentos", "/x") is PASS


def test_status_with_retry_after_in_seconds():
    """Retry-After in seconds is a whole number, rounded up: a server that means 1.2 s never says 1."""
    faults = Faults()
    faults.add("status=429,retry_after=1.2")
    decision = faults.decide("agentos", "/x")
    assert (decision.ending, decision.status, decision.label) == ("status", 429, "status=429")
    assert decision.headers == {"Retry-After": "2"}


def test_status_with_retry_after_as_date():
    """Retry-After may be an HTTP date, in GMT and never earlier than meant."""
    faults = Faults(wall=lambda: 1_700_000_000.5)
    faults.add("status=503,retry_after=10,retry_after_as=date")
    assert faults.decide("agentos", "/x").headers == {"Retry-After": "Tue, 14 Nov 2023 22:13:31 GMT"}


def test_rate_is_repeatable():
    """The same seed and the same requests in the same order give the same faults; another seed gives others."""

    def fired(seed):
        faults = Faults(seed)
        faults.add("status=503,rate=0.3")
        return [faults.decide("agentos", "/x").ending == "status" for _ in range(1000)]

    assert fired(1) == fired(1)
    assert fired(1) != fired(2)
    assert 250 < sum(fired(1)) < 350


def test_rewind():
    """Rewinding starts the die and the counts again."""
    faults = Faults(7)
    faults.add("status=503,rate=0.5", "cut,rate=0.5,count=3")
    first = [faults.decide("agentos", "/x").ending for _ in range(50)]
    faults.rewind()
    assert [faults.decide("agentos", "/x").ending for _ in range(50)] == first


def test_count():
    """A fault with a count fires so often and then lets pass."""
    faults = Faults()
    faults.add("cut,count=2")
    assert [faults.decide("agentos", "/x").ending for _ in range(4)] == ["cut", "cut", "", ""]
    assert faults.listing() == [{"cut": True, "count": 2, "fired": 2, "live": False}]


def test_path_and_face():
    """A fault with a path or a face hits nothing else, and nothing else uses up its count."""
    faults = Faults()
    faults.add("status=503,path=/api/events,face=agentos,count=1")
    assert faults.decide("agentos", "/api/run/start") is PASS
    assert faults.decide("other", "/api/events") is PASS
    assert faults.decide("agentos", "/api/events/x").status == 503


def test_duration():
    """A fault with a duration lapses by itself."""
    clock = FakeClock()
    faults = Faults(clock=clock)
    faults.add("down=5s")
    clock.now = 104.9
    assert faults.decide("agentos", "/x").ending == "down"
    clock.now = 105.0
    assert faults.decide("agentos", "/x") is PASS


def test_first_ending_decides_and_latencies_add_up():
    """Of several faults the first whose ending fires decides; latencies add up beside it."""
    faults = Faults()
    faults.add("latency=1s", "cut", "status=503", "latency=2s")
    decision = faults.decide("agentos", "/x")
    assert (decision.ending, decision.delay_s, decision.label) == ("cut", 3.0, "latency+cut+latency (3s)")
    assert [fault["fired"] for fault in faults.listing()] == [1, 1, 0, 1]


def test_latency_range():
    """A latency with a range lies within it."""
    faults = Faults()
    faults.add("latency=50ms..200ms")
    delays = [faults.decide("agentos", "/x").delay_s for _ in range(200)]
    assert all(0.05 <= delay <= 0.2 for delay in delays)
    assert len(set(delays)) > 100


def test_replace_is_all_or_nothing():
    """If one of the new faults can't be read, the old ones stay."""
    faults = Faults()
    faults.add("cut")
    with pytest.raises(UsageError):
        faults.replace("hang", "nonsense=1")
    assert faults.decide("agentos", "/x").ending == "cut"
    faults.replace("hang")
    assert faults.decide("agentos", "/x").ending == "hang"
    faults.clear()
    assert faults.decide("agentos", "/x") is PASS


def test_repr():
    """A Faults says in a debugger what is set."""
    faults = Faults(3)
    assert repr(faults) == "<Faults seed 3: none>"
    faults.add("cut", "retry_after=1", "latency=1s")
    assert repr(faults) == "<Faults seed 3: cut, status=429, latency>"
