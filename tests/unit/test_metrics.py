"""Metrics: every number is the status's own, and the text is what Prometheus reads."""

from __future__ import annotations

import pytest
from metrics_kit import STATUS
from prometheus_client.parser import text_string_to_metric_families

from agentd.metrics import Metrics

BOOKS = [
    ("cloud", "event", "admitted", "", 90),
    ("cloud", "event", "delivered", "", 83),
    ("cloud", "event", "dead", "rejected", 2),
]


@pytest.fixture
def samples():
    metrics = Metrics(lambda: STATUS, lambda: iter(BOOKS))
    metrics.observe("cloud", "delivered", 0.02, 50)
    metrics.observe("cloud", "retry", 40.0, 2000)
    text, content_type = metrics.text()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("agentd_uptime_seconds", {}, 12.5), ("agentd_connections", {}, 2), ("agentd_messages_total", {}, 30), ("agentd_accepted_records_total", {}, 90),
        ("agentd_refused_records_total", {"cause": "invalid"}, 3), ("agentd_refused_records_total", {"cause": "spool_full"}, 1),
        ("agentd_lost_before_intake_records_total", {"cause": "no_daemon", "kind": "event"}, 4),
        ("agentd_lost_before_intake_records_total", {"cause": "closed", "kind": ""}, 1),
        ("agentd_spool_bytes", {}, 4096), ("agentd_spool_full", {}, 1), ("agentd_commits_total", {}, 17), ("agentd_dead_letters", {}, 2),
        ("agentd_queue_records", {"destination": "cloud"}, 5), ("agentd_oldest_record_age_seconds", {"destination": "cloud"}, 0),
        ("agentd_destination_state", {"destination": "cloud", "state": "paused"}, 1), ("agentd_destination_state", {"destination": "cloud", "state": "ok"}, 0),
        ("agentd_retries_total", {"destination": "cloud"}, 4), ("agentd_quarantined_rows", {}, 3), ("agentd_dead_letter_max_bytes", {}, 4000),
        ("agentd_reloads_total", {"result": "refused"}, 1), ("agentd_reload_successful", {}, 0), ("agentd_books_balanced", {}, 1),
        ("agentd_memory_bytes", {}, 50_000_000), ("agentd_request_seconds_bucket", {"destination": "cloud", "verdict": "delivered", "le": "0.025"}, 1),
        ("agentd_request_seconds_bucket", {"destination": "cloud", "verdict": "delivered", "le": "0.01"}, 0), ("agentd_request_seconds_count", {"destination": "cloud", "verdict": "delivered"}, 1),
        ("agentd_request_records_sum", {"destination": "cloud"}, 2050),
        ("agentd_records_total", {"destination": "cloud", "kind": "event", "state": "dead", "cause": "rejected"}, 2),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_status(samples, name, labels, value):
    """Promise 8: status and metrics agree, since both read the same books; each refusal and each end has its cause."""
    assert samples[name, tuple(sorted(labels.items()))] == value


def test_names_say_whose_they_are(samples):
    """Every metric begins with agentd_, and no gauge of creation times stands beside the counters."""
    assert all(name.startswith("agentd_") for name, _ in samples)
    assert not any(name.endswith("_created") for name, _ in samples)


def test_two_daemons_in_one_process_share_nothing():
    """The registry is one's own: a second one does not collide with it."""
    Metrics(lambda: STATUS, lambda: iter(BOOKS)).text()
    assert b"agentd_build" in Metrics(lambda: STATUS, lambda: iter(())).text()[0]
