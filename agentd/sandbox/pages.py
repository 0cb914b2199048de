"""The sandbox's pages: self-contained HTML without scripts, refreshed by the browser, light or dark as the reader's system is.

Every value on them may come from an agent, so `_cell` and `_text` are the only ways in, and both escape. Any platform's rows fit:
tables take their columns from the rows.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from agentd.units import format_size, rfc3339

if TYPE_CHECKING:
    from agentd.sandbox.books import RequestLine
    from agentd.sandbox.emulation import State

_REFRESH_S = 3
_HIDDEN = frozenset({"events", "tasks", "verbs", "with_text"})  # shown as tables of their own, and as buttons
_FIRST_FAILURE = 400

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c2362b; --good: #2c7a4b; --ink: inherit }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7ddba0 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
nav { margin-bottom: 1rem } .wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .875rem }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }
th { background: var(--soft); font-weight: 600; white-space: nowrap }
td { font-variant-numeric: tabular-nums }
code { font: .8125rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none }
.tiles li { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem }
.tiles b { display: block; font-size: 1.4rem }
form { display: inline } button { font: inherit }
.bad { color: var(--bad) } .good { color: var(--good) } .none { opacity: .6 }
"""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _cell(value: object) -> str:
    """Any JSON value, escaped; objects and arrays as JSON, nothing as a dash."""
    if value is None or value in ("", [], {}):
        return '<span class="none">–</span>'
    if isinstance(value, str | int | float):
        return _text(value)
    return f"<code>{_text(msgspec.json.encode(value).decode())}</code>"


def _page(title: str, body: Iterable[str], *, refreshed: bool = True) -> str:
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH_S}">' if refreshed else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'{refresh}<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], nothing: str) -> str:
    """A table of cells that are HTML already."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    if not lines:
        return f'<p class="none">{_text(nothing)}</p>'
    head = "".join(f"<th>{_text(column.replace('_', ' '))}</th>" for column in columns)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys of all rows in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name != "with_text"))


def _plain_table(rows: Sequence[Mapping[str, Any]], nothing: str) -> str:
    columns = _columns(rows)
    return _table(columns, ([_cell(row.get(name)) for name in columns] for row in rows), nothing)


def _fields_table(fields: Mapping[str, Any]) -> str:
    return _table(["field", "value"], ([_text(name), _cell(value)] for name, value in fields.items()), "nothing")


def _address(row: Mapping[str, Any]) -> str:
    """Where a run's page is: percent-encoded to the last character and therefore safe in an attribute."""
    return f"/_sandbox/view/{quote(str(row['face']), safe='')}/{quote(str(row['id']), safe='')}"


def _buttons(row: Mapping[str, Any], *, typing: bool = False) -> str:
    """One button for each thing that a person may do now; what takes a text is typed on the run's own page."""
    return "".join(_button(row, verb, typing=typing) for verb in row.get("verbs") or ()) or _cell(None)


def _button(row: Mapping[str, Any], verb: object, *, typing: bool) -> str:
    has_text = verb in row.get("with_text", ())
    if has_text and not typing:
        return f'<a href="{_address(row)}">{_text(verb)}…</a> '
    field = f'<input name="input" required aria-label="{_text(verb)}"> ' if has_text else ""
    address = f"{_address(row)}/{quote(str(verb), safe='')}"
    return f'<form method="post" action="{address}">{field}<button>{_text(verb)}</button></form> '


def _run_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = _columns(rows)

    def cell(row: Mapping[str, Any], name: str) -> str:
        if name == "id":
            return f'<a href="{_address(row)}">{_text(row["id"])}</a>'
        return _buttons(row) if name == "verbs" else _cell(row.get(name))

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [cell(row, name) for name in columns]

    return _table(columns, map(cells, rows), "no runs yet")


def _request_rows(requests: Sequence[RequestLine]) -> str:
    columns = ["time", "platform", "request", "status", "fault", "Idempotency-Key", "size", "sha256"]
    return _table(columns, map(_request_cells, requests), "no requests yet")


def _request_cells(line: RequestLine) -> list[str]:
    tone = "good" if 0 < line.status < _FIRST_FAILURE else "bad"
    return [
        _text(rfc3339(line.at)),
        _text(line.face),
        f"{_text(line.method)} <code>{_text(line.path)}</code>",
        f'<span class="{tone}">{line.status or "none"}</span>',
        _cell(line.fault),
        _cell(line.idempotency_key),
        _text(format_size(line.size)),
        f"<code>{_text(line.sha256[:12])}</code>",
    ]


def overview(
    state: State,
    runs: Sequence[Mapping[str, Any]],
    requests: Sequence[RequestLine],
    faults: Sequence[Mapping[str, Any]],
    switches: Mapping[str, Mapping[str, Any]],
) -> str:
    """The first page: totals, the newest runs, the latest requests, faults and switches."""
    total = sum(sum(by_status.values()) for by_status in state.requests.values())
    tiles = {
        "runs": state.runs,
        "events": state.events,
        "duplicates": state.duplicates,
        "requests": total,
        "repeated keys": state.keys["repeated"],
        "faults fired": sum(state.faults.values()),
    }
    paths = [{"path": path, **by_status} for path, by_status in state.requests.items()]
    shown_switches = [
        {"switch": f"{face}.{name}", "stands at": value}
        for face, values in switches.items()
        for name, value in values.items()
    ]
    body = [
        "<h1>agentd sandbox</h1>",
        f"<p>{_text(', '.join(state.faces))} since {_text(rfc3339(state.started_at))}, seed {state.seed}.</p>",
        '<ul class="tiles">',
        *(f"<li><b>{count:,}</b>{_text(name)}</li>" for name, count in tiles.items()),
        f"</ul><h2>Runs, the newest {len(runs)} of {state.runs:,}</h2>",
        _run_rows(runs),
        f"<h2>Requests, the latest {len(requests)}</h2>",
        _request_rows(requests),
        "<h2>Requests by path and status (0: no answer)</h2>",
        _plain_table(paths, "no requests yet"),
        "<h2>Faults</h2>",
        _plain_table(faults, "none set"),
        "<h2>Switches</h2>",
        _plain_table(shown_switches, "none"),
    ]
    return _page("agentd sandbox", body)


def run_page(run: Mapping[str, Any], offset: int, limit: int) -> str:
    """One run: what is known of it, its tasks, and `limit` of its events in sequence from `offset` on."""
    fields = {name: value for name, value in run.items() if name not in _HIDDEN}
    events, tasks = run.get("events", []), run.get("tasks", [])
    count = int(run.get("event_count", len(events)))
    links = ['<a href="/_sandbox/">all runs</a>']
    if offset > 0:
        links.append(f'<a href="?offset={max(0, offset - limit)}">earlier events</a>')
    if offset + limit < count:
        links.append(f'<a href="?offset={offset + limit}">later events</a>')
    body = [
        f"<nav>{' · '.join(links)}</nav>",
        f"<h1>Run {_text(run.get('external_run_id') or run.get('id'))}</h1>",
        _fields_table(fields),
        f"<div>{_buttons(run, typing=True)}</div>" if run.get("verbs") else "",
        "<h2>Tasks</h2>",
        _plain_table(tasks, "no tasks"),
        f"<h2>Events {min(offset + 1, count):,} to {min(offset + limit, count):,} of {count:,}</h2>",
        _plain_table(events, "no events here"),
    ]
    # A page that is typed on isn't refreshed: that would empty the field.
    return _page(f"run {run.get('id')}", body, refreshed=not run.get("with_text"))
