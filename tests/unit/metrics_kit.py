"""A status as the metrics read it."""

from __future__ import annotations

STATUS = {
    "uptime_s": 12.5,
    "intake": {"connections": 2, "messages": 30, "accepted": 90, "refused": {"invalid": 3, "spool_full": 1},
               "lost_before_intake": {"no_daemon:event": 4, "closed": 1}},
    "spool": {"bytes": 4096, "max_bytes": 2**30, "full": True, "disk_free_bytes": 10**9, "commits": 17, "quarantined_rows": 3},
    "dead_letters": {"records": 2, "bytes": 300, "max_bytes": 4000},
    "reloads": {"done": 4, "failed": 1, "last_error": "x"},
    "redaction": {"hits": {"jwt": 2}, "ids": {"run_id": 1}},
    "memory": {"rss_bytes": 50_000_000},
    "balanced": True,
    "destinations": {
        "cloud": {
            "queued": 5, "queued_bytes": 500, "max_bytes": 2**29, "in_flight": 1, "concurrency": 8, "quota": {"reached": False, "left": 3}, "oldest_age_s": None, "state": "paused", "retries": 4,
        },
    },
}  # fmt: skip
