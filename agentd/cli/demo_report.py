"""Did it come true? The demonstration's promises, each checked against what the platform holds and what the daemon counts.

Nothing here believes the daemon alone: the agents say what they emitted, the sandbox what it received, `GET /v1/status` what
became of it, and the three have to agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from agentd.cli.demo_governed import Check, asked_lines, judge
from agentd.cli.status import Status
from agentd.cli.terminal import paint, table
from agentd.sandbox import Sandbox

_WIDTH = 100
_MOST_ROWS = 16
_ANSWERS_UP_TO = 8  # runs: beyond, their answers would not fit on the last screen
_LIFECYCLE = 2  # run.start and the run's end
_TASK_POSTS = 2  # a task is created, and ended
_ADDED = "gate."  # types of the events that agentd itself adds to a run


class Outage(NamedTuple):
    """The seconds without a platform: how long, and what was accepted meanwhile; `most_queued` is over the whole time."""

    seconds: float
    accepted: int
    most_queued: int


class Sum(NamedTuple):
    """The figures of all destinations together."""

    admitted: int
    delivered: int
    queued: int
    dead: int
    other: int
    retries: int
    balanced: bool


def summed(status: Status) -> Sum:
    """Over all destinations."""
    every = status.destinations.values()

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in every)

    return Sum(
        total("admitted"),
        total("delivered"),
        total("queued"),
        total("dead"),
        total("shed") + total("purged") + total("quarantined"),
        total("retries"),
        status.balanced and all(one.balanced and one.accounted == one.admitted for one in every),
    )


class Result(NamedTuple):
    """All that is known at the end."""

    reports: list[dict[str, Any]]  # what each run told agentd
    runs: list[dict[str, Any]]  # what the platform holds of it, in the same order
    governed: dict[str, Any] | None  # what the run that asks first told agentd
    status: Status
    outage: Outage
    checks: list[Check]


def conclude(agents: dict[str, Any], status: Status, sandbox: Sandbox, outage: Outage) -> Result:
    """Compare the three accounts."""
    reports: list[dict[str, Any]] = agents["runs"]
    runs = [_held(sandbox, report["run_id"]) for report in reports]
    governed: dict[str, Any] | None = agents.get("governed")
    told = list(zip(reports, runs, strict=True))
    told += [] if governed is None else [(governed, _held(sandbox, governed["run_id"]))]
    every = summed(status)
    checks = [
        _accepted(agents, told, status),
        _delivered(status, every),
        _complete(told),
        _in_order([run for _, run in told]),
        _once(sandbox, every),
        Check(
            every.balanced,
            f"the books balance: {every.admitted} admitted = {every.delivered} delivered + {every.queued} queued"
            f" + {every.dead} dead + {every.other} else",
        ),
        Check(
            outage.accepted > 0 and outage.most_queued > 0,
            f"with the platform gone for {outage.seconds:.1f}s, {outage.accepted} more records were accepted;"
            f" at most {outage.most_queued} waited",
        ),
        *_ends(told),
        *(() if governed is None else judge(governed, sandbox)),
    ]
    return Result(reports, runs, governed, status, outage, checks)


def _held(sandbox: Sandbox, run_id: str) -> dict[str, Any]:
    try:
        return sandbox.run(run_id)
    except KeyError:
        return {"status": "missing", "events": [], "tasks": [], "terminals": [], "tokens": {}}


def emitted(report: dict[str, Any]) -> int:
    """How many records a run handed to agentd."""
    return (
        _LIFECYCLE + len(report["events"]) + _TASK_POSTS * int(report.get("tasks", 0)) + int(report.get("records", 0))
    )


def own_events(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's events without those that agentd adds: what was asked of a gate, and what it said."""
    return [event for event in run["events"] if not event["type"].startswith(_ADDED)]


def _accepted(agents: dict[str, Any], told: list[tuple[dict[str, Any], dict[str, Any]]], status: Status) -> Check:
    added = sum(len(run["events"]) - len(own_events(run)) for _, run in told)
    count, lost = sum(emitted(report) for report, _ in told) + added, agents.get("lost", 0)
    accepted, refused = status.intake.accepted, sum(status.intake.refused.values())
    what = f"every record was accepted: {accepted} of {count} emitted, {refused} refused, {lost} lost"
    return Check(accepted == count and not refused and not lost, what)


def _delivered(status: Status, every: Sum) -> Check:
    count = status.intake.accepted
    whole = every.delivered == every.admitted == count
    return Check(whole, f"every accepted record was delivered: {every.delivered} of {count}, {every.dead} dead")


def _complete(told: list[tuple[dict[str, Any], dict[str, Any]]]) -> Check:
    """Type by type, in the order in which the agent emitted them: nothing missing, nothing foreign, nothing moved."""
    wrong = [
        report["run_id"]
        for report, run in told
        if [event["type"] for event in own_events(run)] != report["events"]
        or len(run["tasks"]) != report.get("tasks", 0)
    ]
    events = sum(len(run["events"]) for _, run in told)
    what = f"the platform holds every run as its agent told it: {len(told) - len(wrong)} of {len(told)} runs, {events} events"
    return Check(not wrong, what + (f"; not {', '.join(wrong)}" if wrong else ""))


def _in_order(runs: list[dict[str, Any]]) -> Check:
    """The ids that travel with the events are UUIDv7: within a run they rise as the records were made."""
    wrong = [run.get("run_id", "?") for run in runs if not _rising(own_events(run))]
    return Check(not wrong, "order was kept within each run" + (f"; not in {', '.join(wrong)}" if wrong else ""))


def _rising(events: list[dict[str, Any]]) -> bool:
    ids = [event["payload"].get("agentd_id", "") for event in events]
    return all(ids) and all(first < second for first, second in pairwise(ids))


def _once(sandbox: Sandbox, every: Sum) -> Check:
    """Nothing stored twice. Should an answer have been lost at the moment of the outage, the repeat has to be recognisable."""
    state = sandbox.state()
    counted = state.faces["agentos"]["details"]
    again = state.duplicates + counted["duplicate_tasks"] + counted["second_terminals"]
    if not again and not state.keys["conflicting"]:
        return Check(ok=True, what=f"none was stored twice ({every.retries} requests were tried again)")
    recognisable = state.keys["repeated"] > 0 and not state.keys["conflicting"]
    return Check(recognisable, f"{again} came again after a lost answer, with the same key and the same bytes")


def _ends(told: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Check]:
    """The platform knows of each run how it ended, and of the one that failed also why."""
    failed = [run for _, run in told if run["status"] == "failed"]
    right = all(
        run["status"] == ("failed" if report.get("error") else "completed")
        and len(run["terminals"]) == 1
        and (report.get("error") or "") in run.get("error_message", "")
        for report, run in told
    )
    yield Check(right, f"each run ended as its agent did: {len(told) - len(failed)} completed, {len(failed)} failed")


def ended(exit_code: int | None) -> Check:
    """The daemon's end, after SIGTERM."""
    return Check(exit_code == 0, f"the daemon ended in order on SIGTERM: exit code {exit_code}")


# -- what is printed ----------------------------------------------------------------------------------------------------------


def document(result: Result, elapsed_s: float) -> dict[str, Any]:
    """The final report as `--json` prints it."""
    every = summed(result.status)
    return {
        "ok": all(check.ok for check in result.checks),
        "seconds": round(elapsed_s, 1),
        "accepted": result.status.intake.accepted,
        "queued": every.queued,
        "delivered": every.delivered,
        "dead": every.dead,
        "outage": result.outage._asdict(),
        "runs": [_row(report, run) for report, run in zip(result.reports, result.runs, strict=True)],
        "asked": [] if result.governed is None else result.governed["asked"],
        "checks": [check._asdict() for check in result.checks],
    }


def _row(report: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The agent's words, the platform's figures."""
    return {
        "run_id": report["run_id"],
        "question": report["question"],
        "answer": report["answer"],
        "error": report["error"],
        "status": run["status"],
        "events": len(run["events"]),
        "tasks": len(run["tasks"]),
        "tokens": sum(run["tokens"].values()),
    }


def final_screen(report: dict[str, Any]) -> list[str]:
    """At most 100 columns and 40 lines, however many runs there were."""
    runs = report["runs"][:_MOST_ROWS]
    rows = [(run["question"], run["status"], run["events"], run["tasks"], run["tokens"] or "–") for run in runs]
    head, *body = table(("run, as the platform sees it", "status", "events", "tasks", "tokens"), rows, left=2)
    lines = [head]
    for row, run in zip(body, runs, strict=True):
        lines.append(row.replace(f" {run['status']} ", f" {_coloured(run['status'])} ", 1))
        if len(report["runs"]) <= _ANSWERS_UP_TO:
            lines.append(_cut(f"    {run['answer'] or run['error']}"))
    if len(report["runs"]) > len(runs):
        lines.append(f"… and {len(report['runs']) - len(runs)} more")
    lines += asked_lines(report.get("asked", []))
    counts = "   ".join(f"{name} {report[name]}" for name in ("accepted", "delivered", "queued", "dead"))
    lines += ["", f"{counts}   in {report['seconds']}s", ""]
    for check in report["checks"]:
        word = paint("OK    ", "green") if check["ok"] else paint("FAILED", "red")
        lines.append(f"{word}  {_cut(check['what'], _WIDTH - len('FAILED  '))}")
    return lines


def _coloured(status: str) -> str:
    return paint(status, {"completed": "green", "failed": "red"}.get(status, "yellow"))


def _cut(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
