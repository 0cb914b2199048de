"""Documents of daemons that are well, in trouble or stopped, and the screens that are drawn of them."""

from pathlib import Path

SCREENS = Path(__file__).parents[2] / "data" / "screens"  # as they are meant to look


def drawn(name):
    """A screen as it is kept."""
    return (SCREENS / f"{name}.txt").read_text()


LEAST = {"agentd": "0.1.0", "pid": 1, "state": "running", "uptime_s": 5.0}
CALM = LEAST | {
    "pid": 19024, "uptime_s": 6.2, "socket": "/tmp/tour.sock", "stuck": None,
    "spool": {"directory": "/tmp/tour-state", "sync": "full", "bytes": 0, "max_bytes": 2**30, "disk_free_bytes": 79 * 2**30},
    "intake": {"connections": 1, "accepted": 12, "refused": {"invalid": 1}, "lost_before_intake": {}},
    "memory": {"rss_bytes": 45 * 2**20, "window_bytes": 0, "budget_bytes": 2**26},
    "destinations": {
        "agentos": {
            "state": "ok", "admitted": 12, "delivered": 11, "dead": 1, "max_bytes": 2**30, "causes": {"dead": {"rejected": 1}},
            "admitted_per_s": 2.0, "delivered_per_s": 1.8, "drain": "empty", "eta_s": 0.0, "requests": 5, "retries": 0,
        }
    },
}  # fmt: skip
TROUBLED = CALM | {
    "config": "/etc/agentd/agentd.toml",
    "listen": {"socket": "/tmp/tour.sock", "http": "http://127.0.0.1:4319"},
    "stuck": "12 commits failed in a row",
    "spool": CALM["spool"] | {"full": True, "disk_free_bytes": 0, "quarantined_rows": 2, "bytes": 10 * 2**20},
    "intake": CALM["intake"] | {"held": 40, "lost_before_intake": {"buffer_full:event": 2}},
    "redaction": {"version": 1, "mode": "mask", "keys": 6, "patterns": 40, "hits": {"jwt": 3, "card": 1}},
    "reloads": {"done": 2, "failed": 1, "last_at": "2026-11-22T07:01:02.123456Z", "last_error": "[retry] max: expected a duration"},
    "dead_letters": {"records": 3, "bytes": 120 * 2**20, "max_bytes": 2**27, "invalid": 1},
    "journal": {"entries": 1200, "rows": 40, "bytes": 99_999, "max_bytes": 2**28},
    "destinations": {
        "agentos": {
            "state": "waiting", "reason": "no connection to 127.0.0.1:4400: Connect call failed ('127.0.0.1', 4400)",
            "retry_in_s": 31.7, "admitted": 12_619, "queued": 12_517, "delivered": 101, "dead": 1, "queued_bytes": 240 * 2**20,
            "max_bytes": 2**28, "oldest_age_s": 45.8, "admitted_per_s": 38.8, "delivered_per_s": 0.0, "drain": "not draining",
            "causes": {"dead": {"rejected": 1}}, "requests": 100, "retries": 3,
        },
        "decidefyi": {
            "state": "waiting", "reason": "429 monthly cap", "retry_in_s": 700_000.0, "admitted": 5, "queued": 5, "queued_bytes": 900,
            "max_bytes": 2**28, "oldest_age_s": 3600.0, "drain": "not draining",
            "quota": {"reached": True}, "forecast": "decide.fyi's monthly cap is used up; it is fresh again on the 1st of December",
            "gates": {"open": 1, "allow": 3, "circuit": "open", "reason": "5 in a row"},
        },
        "old": {"state": "removed", "reason": "not in the configuration; its queue is kept", "admitted": 1, "queued": 1},
    },
}  # fmt: skip
AT_REST = {
    "agentd": "0.1.0", "pid": None, "state": "stopped", "socket": "/tmp/tour.sock", "config": None,
    "spool": {"directory": "/tmp/tour-state", "sync": "full", "bytes": 300, "max_bytes": 2**30, "disk_free_bytes": 2**30},
    "intake": {"lost_before_intake": {"buffer_full:event": 3}},
    "destinations": {"cloud": {"state": "stopped", "admitted": 3, "queued": 3, "queued_bytes": 300, "max_bytes": 1000, "oldest_age_s": 9.0}},
}  # fmt: skip


def histogram(**counts):
    """`under_5ms=3` and so on; nothing else was counted."""
    bounds = [0.001, 0.005, 0.01, 0.1, 1.0]
    names = ["under_1ms", "under_5ms", "under_10ms", "under_100ms", "under_1s", "above"]
    return {"bounds": bounds, "counts": [counts.get(name, 0) for name in names]}


def look(status, **more):
    """An answer of `GET /v1/top`."""
    return {"status": status, "lanes": [], "lanes_known": 0, "lanes_looked_at": 0, "latency": {}, **more}


LANES = [
    {
        "destination": "agentos", "lane": "run:invoice-17", "agent": "billing", "records": 12_000, "bytes": 9 * 2**20,
        "oldest_age_s": 45.8, "waits_for": "backoff", "reason": "503 INTERNAL_ERROR: injected", "next_try_in_s": 2.5, "failures": 3,
    },
    {
        "destination": "decidefyi", "lane": "decision:01a2022d-5c2c-72c3-bfa7-6d9c70360a0e", "agent": "billing", "records": 1,
        "bytes": 416, "oldest_age_s": 3600.0, "waits_for": "destination", "reason": "waiting: 429 monthly cap", "next_try_in_s": 700_000.0,
    },
    {"destination": "agentos", "lane": "run:\x1b[2J", "records": 1, "bytes": 30, "oldest_age_s": 0.1, "waits_for": "turn"},
]  # fmt: skip
BUSY = look(
    TROUBLED, lanes=LANES, lanes_known=6000, lanes_looked_at=5000,
    latency={
        "ack": histogram(under_1ms=50, under_5ms=45, under_100ms=5), "commit": histogram(under_1ms=100),
        "delivery": {"agentos": histogram(under_100ms=90, under_1s=9, above=1)},
    },
)  # fmt: skip
