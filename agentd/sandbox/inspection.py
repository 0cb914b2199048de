"""`/_sandbox/…`: what the sandbox has seen, as JSON and as a page, and the levers for faults and switches. Pure; the server does the I/O.

    GET    /_sandbox/                         the page; /_sandbox/view/FACE/ID is one run's
    GET    /_sandbox/state                    totals
    GET    /_sandbox/runs?limit=&offset=      one row a run, newest first
    GET    /_sandbox/runs/ID?limit=&offset=   one run by the platform's id or the client's, with its events in sequence
    POST   /_sandbox/act/FACE/ID/VERB         what a person does: approve, deny, whatever the run's row offers under `verbs`;
                                              ?input=TEXT, or the same as a form's field, where `with_text` names the verb
    GET    /_sandbox/requests?limit=          the latest requests, newest first
    GET    /_sandbox/repeats?min=             per idempotency key, over all requests
    POST   /_sandbox/reset                    forget all that was received; faults and switches stay
    GET    /_sandbox/faults                   the faults that are set; PUT replaces them, POST adds, DELETE lifts all
    GET    /_sandbox/switches                 how the switches stand; PUT throws some: {"agentos.late_events": "409"}

Faults are a JSON object, a text such as "status=503,rate=0.1", or an array of these. Errors are `{"error": {code, message}}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import msgspec

from agentd.errors import UsageError
from agentd.sandbox.emulation import Emulation
from agentd.sandbox.faces import Answer
from agentd.sandbox.faults import Fault, fault_from, parse_fault
from agentd.sandbox.pages import overview, run_page

PREFIX = "/_sandbox"
_HTML = "text/html; charset=utf-8"
# Nothing but the page's own style may load or run, whatever an agent has written into its payloads.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
}
_PAGE_ROWS = 100
_FIRST_FAILURE = 400
_NUMBER = re.compile(r"[0-9]{1,15}")


class Query:
    """The query of an inspection, or a form's fields, which are written alike."""

    def __init__(self, text: str) -> None:
        self._values = parse_qs(text)

    def number(self, name: str) -> int | None:
        """A number that is 0 or more, None if it was not given. Raises UsageError."""
        given = self._values.get(name)
        if given is None:
            return None
        if _NUMBER.fullmatch(given[-1]) is None:
            raise UsageError(f"expected a whole number for {name}, got {given[-1][:20]!r}")
        return int(given[-1])

    def text(self, name: str) -> str:
        """A text, empty if it was not given."""
        return self._values.get(name, [""])[-1]


def inspect(emulation: Emulation, method: str, path: str, query: str, body: bytes) -> Answer:
    """Answer one request below `/_sandbox`; `path` is still percent-encoded."""
    place = path.removeprefix(PREFIX).strip("/")
    try:
        return (
            _page(emulation, method, place, Query(query))
            or _act(emulation, method, place, query, body)
            or _lever(emulation, method, place, query, body)
        )
    except UsageError as error:
        return _refusal(400, "BAD_REQUEST", str(error))
    except msgspec.DecodeError as error:
        return _refusal(400, "BAD_REQUEST", f"not JSON: {error}")
    except KeyError as error:
        return _refusal(404, "NOT_FOUND", str(error.args[0]))


def _json(value: Any) -> Answer:
    return Answer(200, msgspec.json.encode(value), headers={"Cache-Control": "no-store"})


def _refusal(status: int, code: str, message: str) -> Answer:
    return Answer(status, msgspec.json.encode({"error": {"code": code, "message": message}}))


def _page(emulation: Emulation, method: str, place: str, query: Query) -> Answer | None:
    if method != "GET":
        return None
    if not place:
        rows, requests = emulation.runs(_PAGE_ROWS), emulation.requests(_PAGE_ROWS)
        text = overview(emulation.state(), rows, requests, emulation.faults.listing(), emulation.switches())
        return Answer(200, text.encode(), _HTML, _PAGE_HEADERS)
    if place.startswith("view/"):
        _, _, key = place.removeprefix("view/").partition("/")
        offset = query.number("offset") or 0
        run = emulation.run(unquote(key), _PAGE_ROWS, offset)
        return Answer(200, run_page(run, offset, _PAGE_ROWS).encode(), _HTML, _PAGE_HEADERS)
    return None


def _act(emulation: Emulation, method: str, place: str, query: str, body: bytes) -> Answer | None:
    """A person's word, by program (`act/…`) or by a button of a page (`view/…`), which then shows what has become of it."""
    way, _, rest = place.partition("/")
    if method != "POST" or way not in {"act", "view"} or rest.count("/") != 2:  # noqa: PLR2004 - face, id and verb
        return None
    face, item_id, verb = (unquote(part) for part in rest.split("/"))
    answer = emulation.act(face, item_id, verb, _words(query, body))
    if way == "act" or answer.status >= _FIRST_FAILURE:
        return answer
    shown = "/".join(quote(part, safe="") for part in (face, item_id))
    return Answer(303, headers={"Location": f"{PREFIX}/view/{shown}"})


def _words(query: str, body: bytes) -> str:
    """What a person says along with a verb. Raises UsageError for a body that says nothing."""
    sent = Query(body.decode(errors="replace")).text("input")
    if body.strip() and not sent:
        raise UsageError("expected input=TEXT as the field of a form, or in the query")
    return sent or Query(query).text("input")


def _lever(emulation: Emulation, method: str, place: str, query_text: str, body: bytes) -> Answer:
    query = Query(query_text)
    reads: dict[str, Callable[[], Any]] = {
        "state": emulation.state,
        "runs": lambda: emulation.runs(query.number("limit"), query.number("offset") or 0),
        "requests": lambda: emulation.requests(query.number("limit")),
        "repeats": lambda: emulation.repeats(query.number("min") or 1),
        "faults": emulation.faults.listing,
        "switches": emulation.switches,
    }
    if method == "GET" and place in reads:
        return _json(reads[place]())
    if method == "GET" and place.startswith("runs/"):
        key = unquote(place.removeprefix("runs/"))
        return _json(emulation.run(key, query.number("limit"), query.number("offset") or 0))
    writes: dict[tuple[str, str], Callable[[], Any]] = {
        ("POST", "reset"): emulation.reset,
        ("PUT", "faults"): lambda: emulation.faults.replace(*_faults(body)),
        ("POST", "faults"): lambda: emulation.faults.add(*_faults(body)),
        ("DELETE", "faults"): emulation.faults.clear,
        ("PUT", "switches"): lambda: _throw(emulation, body),
    }
    if (method, place) not in writes:
        raise KeyError(f"no {method} {PREFIX}/{place}")
    writes[method, place]()
    return _json(reads[place]() if place in reads else emulation.state())


def _faults(body: bytes) -> list[Fault]:
    sent = msgspec.json.decode(body)
    faults: list[Fault] = []
    for fault in sent if isinstance(sent, list) else [sent]:
        if not isinstance(fault, str | dict):
            raise UsageError(f"expected a fault as an object or a text, got {fault!r}")
        faults.append(parse_fault(fault) if isinstance(fault, str) else fault_from(fault))
    return faults


def _throw(emulation: Emulation, body: bytes) -> None:
    """Throw `{"agentos.late_events": "409"}` and `{"agentos": {"late_events": "409"}}` alike; all or none."""
    sent = msgspec.json.decode(body)
    if not isinstance(sent, dict):
        raise UsageError('expected switches such as {"agentos.late_events": "409"}')
    before = {name: face.switches for name, face in emulation.faces.items()}
    try:
        for name, value in sent.items():
            face, _, switch = name.partition(".")
            for each, way in value.items() if isinstance(value, dict) else [(switch, value)]:
                emulation.throw_one(face, each, way)
    except UsageError:
        for name, switches in before.items():
            emulation.faces[name].switches = switches
        raise
