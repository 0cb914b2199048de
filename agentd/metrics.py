"""Prometheus metrics by the official client library.

Counters are read from the status when they are scraped: the books count once, and every view of them agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, disable_created_metrics, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agentd import __version__
from agentd.tallies import LATENCY_S, RECORDS, Tally, Tell, Told

disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside every counter that nobody reads


class Metrics:
    """The registry; `status` and `books` are read at each scrape."""

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        books: Callable[[], Iterator[tuple[str, str, str, str, int]]],
        gates: Callable[[], Iterator[tuple[str, str, str, int]]] = lambda: iter(()),
        tallies: Tell = lambda: iter(()),
    ) -> None:
        """`gates` gives (destination, gate, verdict, count), `tallies` histograms that others keep."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests: dict[tuple[str, ...], Tally] = {}
        self._batches: dict[tuple[str, ...], Tally] = {}
        self._gates: dict[tuple[str, ...], Tally] = {}
        self._registry.register(_FromStatus(status, books, gates))
        self._registry.register(_Tallied(self._observed))
        self._registry.register(_Tallied(tallies))

    def observe(self, destination: str, verdict: str, seconds: float, records: int) -> None:
        """One request has been answered, or not."""
        _at(self._requests, (destination, verdict), LATENCY_S).add(seconds)
        _at(self._batches, (destination,), RECORDS).add(records)

    def observe_gate(self, destination: str, gate: str, seconds: float) -> None:
        """A gate has its first verdict."""
        _at(self._gates, (destination, gate), LATENCY_S).add(seconds)

    def _observed(self) -> Iterator[Told]:
        yield Told(
            "agentd_request_seconds", "Time of a request to a platform, by what its answer meant.",
            ("destination", "verdict"), self._requests,
        )  # fmt: skip
        yield Told("agentd_request_records", "Records in a request to a platform.", ("destination",), self._batches)
        yield Told(
            "agentd_gate_seconds", "Time from a question to its first verdict.", ("destination", "gate"), self._gates
        )

    def text(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_LATEST


def _at(tallies: dict[tuple[str, ...], Tally], labels: tuple[str, ...], bounds: Sequence[float]) -> Tally:
    tally = tallies.get(labels)
    if tally is None:
        tally = tallies[labels] = Tally(bounds)
    return tally


class _FromStatus(Collector):
    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        books: Callable[[], Iterator[tuple[str, str, str, str, int]]],
        gates: Callable[[], Iterator[tuple[str, str, str, int]]],
    ) -> None:
        self._status = status
        self._books = books
        self._gates = gates

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield InfoMetricFamily("agentd_build", "The running agentd.", value={"version": __version__})
        yield _gauge("agentd_uptime_seconds", "Time since the daemon started.", status["uptime_s"])
        yield from _intake(status["intake"])
        yield from _redaction(status.get("redaction", {}))
        yield from _reloads(status.get("reloads", {}))
        yield from _spool(status["spool"], status["dead_letters"])
        yield self._records()
        yield self._verdicts()
        yield from _destinations(status["destinations"])
        yield _gauge("agentd_books_balanced", "1 while books and queues agree.", float(status.get("balanced", True)))
        yield _gauge("agentd_memory_bytes", "Resident memory.", status.get("memory", {}).get("rss_bytes", 0))

    def _records(self) -> Metric:
        family = CounterMetricFamily(
            "agentd_records", "Records by what became of them (admitted = all others + queued).",
            labels=("destination", "kind", "state", "cause"),
        )  # fmt: skip
        for destination, kind, state, cause, count in self._books():
            family.add_metric((destination, kind, state, cause), count)
        return family

    def _verdicts(self) -> Metric:
        family = CounterMetricFamily(
            "agentd_gates", "Verdicts of gates since the start.", labels=("destination", "gate", "verdict")
        )
        for destination, gate, verdict, count in self._gates():
            family.add_metric((destination, gate, verdict), count)
        return family


class _Tallied(Collector):
    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def collect(self) -> Iterator[Metric]:
        for told in self._tell():
            family = HistogramMetricFamily(told.name, told.text, labels=told.labels)
            for labels, tally in told.parts.items():
                family.add_metric(labels, list(tally.cumulative()), tally.total)
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _intake(intake: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge("agentd_connections", "Open connections on the socket.", intake["connections"])
    yield CounterMetricFamily("agentd_messages", "Messages taken from the socket.", value=intake["messages"])
    yield CounterMetricFamily("agentd_accepted_records", "Records accepted, before routing.", value=intake["accepted"])
    refused = CounterMetricFamily(
        "agentd_refused_records", "Records and messages refused, by cause.", labels=("cause",)
    )
    for cause, count in sorted(intake["refused"].items()):
        refused.add_metric((cause,), count)
    yield refused
    lost = CounterMetricFamily(
        "agentd_lost_before_intake_records",
        "Records that clients lost before intake, as they said in their hellos, by cause and kind.",
        labels=("cause", "kind"),
    )
    for name, count in sorted(intake["lost_before_intake"].items()):
        cause, _, kind = name.partition(":")
        lost.add_metric((cause, kind), count)
    yield lost


def _redaction(redaction: dict[str, Any]) -> Iterator[Metric]:
    hits = CounterMetricFamily(
        "agentd_redactions", "Secrets taken out before they were stored, by rule.", labels=("rule",)
    )
    for rule, count in redaction.get("hits", {}).items():
        hits.add_metric((rule,), count)
    yield hits
    ids = CounterMetricFamily(
        "agentd_redaction_ids_left", "Ids that look like secrets and were left, by field.", labels=("field",)
    )
    for name, count in redaction.get("ids", {}).items():
        ids.add_metric((name,), count)
    yield ids


def _reloads(reloads: dict[str, Any]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "agentd_reloads", "Configurations that were read again, by result.", labels=("result",)
    )
    family.add_metric(("done",), reloads.get("done", 0))
    family.add_metric(("refused",), reloads.get("failed", 0))
    yield family
    yield _gauge(
        "agentd_reload_successful", "1 unless the last reload was refused.", float(reloads.get("last_error") is None)
    )


def _spool(spool: dict[str, Any], dead: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge("agentd_spool_bytes", "Queued bytes on disk.", spool["bytes"])
    yield _gauge("agentd_spool_max_bytes", "What the spool may take.", spool["max_bytes"])
    yield _gauge("agentd_spool_full", "1 while records are refused for want of disk.", float(spool["full"]))
    yield _gauge(
        "agentd_disk_free_bytes", "Free bytes of the file system that holds the spool.", spool["disk_free_bytes"]
    )
    yield CounterMetricFamily("agentd_commits", "Transactions on disk.", value=spool["commits"])
    yield _gauge("agentd_quarantined_rows", "Damaged rows that were set aside.", spool.get("quarantined_rows", 0))
    yield _gauge("agentd_dead_letters", "Dead letters that are kept.", dead["records"])
    yield _gauge("agentd_dead_letter_bytes", "Bytes of the dead letters.", dead["bytes"])
    yield _gauge("agentd_dead_letter_max_bytes", "What the dead letters may take.", dead.get("max_bytes", 0))


_BY_DESTINATION = (
    ("agentd_queue_records", "Records that wait.", "queued"),
    ("agentd_queue_bytes", "Bytes on disk of the records that wait.", "queued_bytes"),
    ("agentd_queue_max_bytes", "The destination's quota.", "max_bytes"),
    ("agentd_in_flight_requests", "Requests under way.", "in_flight"),
    (
        "agentd_concurrency_limit",
        "Requests that may be under way: halved when the platform has too much to do.",
        "concurrency",
    ),
)


def _destinations(destinations: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    for metric, text, key in _BY_DESTINATION:
        family = GaugeMetricFamily(metric, text, labels=("destination",))
        for name, facts in destinations.items():
            family.add_metric((name,), facts[key])
        yield family
    ages = GaugeMetricFamily(
        "agentd_oldest_record_age_seconds", "Age of the oldest record that waits.", labels=("destination",)
    )
    states = GaugeMetricFamily(
        "agentd_destination_state", "1 for the state that the destination is in.", labels=("destination", "state")
    )
    retries = CounterMetricFamily("agentd_retries", "Requests that have to be repeated.", labels=("destination",))
    for name, facts in destinations.items():
        ages.add_metric((name,), facts["oldest_age_s"] or 0.0)
        retries.add_metric((name,), facts["retries"])
        for state in ("ok", "waiting", "paused"):
            states.add_metric((name, state), float(facts["state"] == state))
    yield ages
    yield states
    yield retries
    yield from _quotas(destinations)


def _quotas(destinations: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    """Of platforms that tell something of a cap."""
    left = GaugeMetricFamily(
        "agentd_quota_left", "What is left of the month's cap, where it is known.", labels=("destination",)
    )
    reached = GaugeMetricFamily(
        "agentd_quota_reached", "1 while the platform's cap is used up.", labels=("destination",)
    )
    for name, facts in destinations.items():
        quota = facts.get("quota")
        if quota is None:
            continue
        reached.add_metric((name,), float(quota["reached"]))
        if quota["left"] is not None:
            left.add_metric((name,), quota["left"])
    yield left
    yield reached
