"""The sandbox without its sockets: faces, faults, books and keys put together. Every method is synchronous and does no I/O.

`server.Sandbox` feeds it requests; `inspection` reads it. Whatever a request changes, it changes within one call of `answer`,
so that a connection cut afterwards has lost the answer and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from agentd.errors import UsageError
from agentd.sandbox.books import NO_ANSWER, Books, Repeat, RequestLine, digest
from agentd.sandbox.faces import Answer, Call, Face, Hearing, Keyless, load_face
from agentd.sandbox.faults import Decision, Faults
from agentd.sandbox.switches import parse_switch, with_switch

_UNAUTHENTICATED = 401


class State(msgspec.Struct, frozen=True):
    """The totals since the last reset."""

    requests: dict[str, dict[str, int]]  # path → status → count; status "0" got no answer at all
    faults: dict[str, int]  # ending → count
    keys: dict[str, int]  # idempotency keys: keys, repeated, conflicting
    runs: int
    events: int
    duplicates: int  # events stored again under an `agentd_id` seen before
    faces: dict[str, dict[str, Any]]  # each face's own totals
    seed: int
    started_at: float


class Emulation:
    """Some platforms behind one address.

    A path belongs to the face whose name is its first segment (`/agentos/api/…`), else to the face that claims it by a
    prefix, else to the first face. `api_keys`: None accepts every key that is not empty.
    """

    def __init__(  # the options of Sandbox, which documents them
        self,
        faces: Iterable[str] = ("agentos",),
        *,
        api_keys: Iterable[str] | None = None,
        switches: Iterable[str | msgspec.Struct] = (),
        seed: int = 0,
        keep_requests: int = 1000,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(faces, str) or isinstance(api_keys, str):
            raise UsageError("faces and api_keys are lists of names, not one string")
        self.faces: dict[str, Face] = {name: load_face(name) for name in faces}
        if not self.faces:
            raise UsageError("a sandbox needs at least one platform")
        self.faults = Faults(seed, wall=wall)
        self.seed = seed
        self.wall = wall
        self._keys = None if api_keys is None else frozenset(api_keys)
        self._keep_requests = keep_requests
        self._books = Books(keep_requests)
        self._started_at = wall()
        for switch in switches:
            self.throw(switch)

    # -- requests ---------------------------------------------------------------------------------------------------------

    def route(self, path: str) -> tuple[Face, str]:
        """The face that a path belongs to, and the path as that face knows it."""
        first, _, rest = path.removeprefix("/").partition("/")
        if first in self.faces:
            return self.faces[first], f"/{rest}"
        for face in self.faces.values():
            if path.startswith(face.prefixes):
                return face, path
        return next(iter(self.faces.values())), path

    def answer(self, face: Face, call: Call, decision: Decision) -> Answer:
        """Judge a request whose body is there, commit it, and write it down. A fault with a status keeps it from the face.

        A held answer is not written down yet: whoever holds it knows in the end what was said, and calls `note`.
        """
        if decision.ending == "status":
            answer = self._injected(face, decision)
        elif not self._admitted(face, call):
            answer = face.refuse(_UNAUTHENTICATED, "missing or unknown API key")
        else:
            answer = face.answer(call)
        if answer.held is None:
            self.note(face, call, answer.status, decision, body_digest=digest(call.body))
        return answer

    def note(self, face: Face, call: Call, status: int, decision: Decision, *, body_digest: str = "") -> None:
        """Write a request into the books; without a digest its body was not read and its key doesn't count as seen."""
        line = RequestLine(
            at=call.now,
            face=face.name,
            method=call.method,
            path=call.path,
            status=status,
            idempotency_key=face.idempotency_key(call),
            sha256=body_digest,
            size=len(call.body),
            fault=decision.label,
        )
        self._books.note(line, decision.ending)

    def unanswered(self, face: Face, call: Call, decision: Decision) -> None:
        """Write down a request that hangs or whose connection is reset before the platform sees it."""
        body_digest = digest(call.body) if decision.ending == "hang" else ""
        self.note(face, call, NO_ANSWER, decision, body_digest=body_digest)

    def _admitted(self, face: Face, call: Call) -> bool:
        key = face.presented_key(call.headers)
        if key and (self._keys is None or key in self._keys):
            return True
        return isinstance(face, Keyless) and face.opens(call)

    def _injected(self, face: Face, decision: Decision) -> Answer:
        if decision.body is not None:
            return Answer(decision.status, decision.body.encode(), "text/html; charset=utf-8", decision.headers)
        refusal = face.refuse(decision.status, "injected by the sandbox")
        return msgspec.structs.replace(refusal, headers={**refusal.headers, **decision.headers})

    # -- switches ---------------------------------------------------------------------------------------------------------

    def throw(self, switch: str | msgspec.Struct) -> None:
        """Throw a switch given as text (`"agentos.late_events=409"`), or all of a face's given as its Struct."""
        if isinstance(switch, str):
            self.throw_one(*parse_switch(switch))
            return
        for face in self.faces.values():
            if type(face.switches) is type(switch):
                face.switches = switch
                return
        raise UsageError(f"no platform in this sandbox has switches of type {type(switch).__name__}")

    def throw_one(self, face_name: str, name: str, value: object) -> None:
        """Throw one switch of one face. Raises UsageError if there is no such thing."""
        face = self.faces.get(face_name)
        if face is None:
            raise UsageError(f"no platform {face_name!r} in this sandbox; there are {', '.join(self.faces)}")
        face.switches = with_switch(face.switches, name, value)

    def switches(self) -> dict[str, dict[str, Any]]:
        """How all switches stand."""
        return {name: msgspec.to_builtins(face.switches) for name, face in self.faces.items()}

    # -- inspection -------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The totals since the last reset."""
        requests, faults = self._books.totals()
        totals = {name: face.totals() for name, face in self.faces.items()}
        return State(
            requests=requests,
            faults=faults,
            keys=self._books.key_totals(),
            runs=sum(total.runs for total in totals.values()),
            events=sum(total.events for total in totals.values()),
            duplicates=sum(total.duplicates for total in totals.values()),
            faces={name: msgspec.to_builtins(total) for name, total in totals.items()},
            seed=self.seed,
            started_at=self._started_at,
        )

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a run, newest first, face after face; each names its face."""
        rows: list[dict[str, Any]] = []
        for name, face in self.faces.items():
            wanted = None if limit is None else limit + offset
            rows += [{"face": name, **row} for row in face.runs(wanted)]
        return rows[offset:] if limit is None else rows[offset : offset + limit]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any]:
        """Everything about a run, by the platform's id or the client's. Raises KeyError."""
        for name, face in self.faces.items():
            found = face.run(key, limit, offset)
            if found is not None:
                return {"face": name, **found}
        raise KeyError(f"no run {key!r} in the sandbox")

    def act(self, face_name: str, item_id: str, verb: str, text: str = "") -> Answer:
        """Let a person approve, deny, answer with a text or whatever else the face offers.

        Raises KeyError if there is no such face, UsageError if there is a text and the face takes none.
        """
        face = self.faces.get(face_name)
        if face is None:
            raise KeyError(f"no platform {face_name!r} in this sandbox")
        if not text:
            return face.act(item_id, verb)
        if not isinstance(face, Hearing):
            raise UsageError(f"{face_name} takes no input with {verb!r}")
        return face.hear(item_id, verb, text)

    def requests(self, limit: int | None = None) -> list[RequestLine]:
        """The latest requests, newest first."""
        newest_first = list(reversed(self._books.ledger))
        return newest_first if limit is None else newest_first[:limit]

    def repeats(self, at_least: int = 1) -> dict[str, Repeat]:
        """Per idempotency key over all requests: how often it came, and whether always with the same bytes."""
        return self._books.repeats(at_least)

    def reset(self) -> None:
        """Forget runs, requests and keys and rewind the faults' die; faults and switches stay as they are."""
        for face in self.faces.values():
            face.reset()
        self._books = Books(self._keep_requests)
        self.faults.rewind()
