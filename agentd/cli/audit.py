"""`agentd audit`: what every record became, recomputed from the disk, and whether books, journal and records say the same.

Reads the state folder itself, as of one moment, whether a daemon runs or not, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentd.cli.options import config_option, json_option, load_config
from agentd.cli.terminal import complain, echo_lines, paint, print_json, table

if TYPE_CHECKING:
    from agentd.spool.audit import Audit

_SILENT_S = 2.0  # what takes no longer says nothing of how far it is
_ENDS = ("delivered", "queued", "dead", "purged", "shed", "quarantined")
_INTAKE = "(intake)"  # in place of a destination: what was refused before it had one


@click.command()
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="A state folder, else the configuration's.",
)
@config_option
@json_option
def audit(directory: Path | None, *, as_json: bool) -> None:
    """Count again what became of every record, and say whether the books balance. Exit status 1 if they don't."""
    from agentd.control.at_rest import lost_before_intake
    from agentd.spool import audit as audits
    from agentd.spool.look import open_rows, running_pid

    folder = directory or Path(load_config().config.spool.directory)
    with open_rows(folder) as store:
        found = audits.audit(store, _slowly(complain))
        lost = lost_before_intake(store)
    document = _document(found, folder, running_pid(folder), lost)
    if as_json:
        print_json(document)
    else:
        echo_lines(lines(document))
    if not found.balanced:
        click.get_current_context().exit(1)


def _slowly(tell: Callable[[str], None]) -> Callable[[str], None]:
    begun = time.monotonic()
    return lambda text: tell(text) if time.monotonic() - begun > _SILENT_S else None


def _document(found: Audit, folder: Path, pid: int | None, lost: dict[str, int]) -> dict[str, Any]:
    from agentd.units import rfc3339

    journal = found.journal
    return {
        "directory": str(folder),
        "pid": pid,
        "commits": found.commits,
        "balanced": found.balanced,
        "books": [
            {name: getattr(count, name) for name in ("destination", "kind", "admitted", *_ENDS)}
            for count in found.counts
        ],
        "causes": found.causes,
        "gates": found.gates,
        "journal": {
            "first": journal.first,
            "last": journal.last,
            "entries": journal.entries,
            "rows": journal.rows,
            "bytes": journal.size,
            "since": rfc3339(journal.since_us / 1e6) if journal.rows else None,
            "digest": journal.head.hex() or None,
        },
        "lost_before_intake": lost,
        "findings": [
            {"severity": finding.severity.value, "where": finding.where, "what": finding.what}
            for finding in found.findings
        ],
    }


def lines(document: dict[str, Any]) -> list[str]:
    """The document for people."""
    running = "" if document["pid"] is None else f", which the daemon with pid {document['pid']} uses"
    return [
        f"{document['directory']}{running}; as of commit {document['commits']}",
        *_books(document),
        *_journal(document["journal"]),
        *([f"gates on record: {document['gates']}"] if document["gates"] else []),
        *_clients(document["lost_before_intake"]),
        *_verdict(document),
    ]


def _books(document: dict[str, Any]) -> list[str]:
    if not document["books"]:
        return ["nothing was ever admitted"]
    rows = [
        (count["destination"] or _INTAKE, count["kind"], count["admitted"], *(count[end] for end in _ENDS))
        for count in document["books"]
    ]
    causes = [
        f"  {name or _INTAKE}: {state}: " + ", ".join(f"{cause} {number}" for cause, number in by_cause.items())
        for name, states in document["causes"].items()
        for state, by_cause in states.items()
    ]
    return [*table(("destination", "kind", "admitted", *_ENDS), rows, left=2), *causes]


def _journal(journal: dict[str, Any]) -> list[str]:
    from agentd.units import format_size

    if not journal["rows"]:
        return ["journal: no entries"]
    size = format_size(journal["bytes"])
    return [
        f"journal: entries {journal['first']} to {journal['last']} since {journal['since'][:19]}Z, {size}",
        f"  newest digest sha256 {journal['digest']}",
    ]


def _clients(lost: dict[str, int]) -> list[str]:
    if not lost:
        return []
    return ["clients lost before intake: " + ", ".join(f"{cause} {count}" for cause, count in sorted(lost.items()))]


def _verdict(document: dict[str, Any]) -> list[str]:
    told = [
        f"{paint(finding['severity'], 'red' if finding['severity'] == 'error' else 'yellow')}: {finding['where']}: "
        f"{finding['what']}"
        for finding in document["findings"]
    ]
    if document["balanced"]:
        return [*told, paint("the books balance", "green")]
    return [*told, paint("the books do NOT balance", "red")]
