"""What gates share where they read a question: fields by name, and a sentence for each that is wrong.

Every error is Unencodable and begins with the field's place, `$.request.amount: …`. A null is a field left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Raw

from agentd.exchange import Context, Unencodable
from agentd.gating import Question

# Under which name an asking's own id goes along where the platform has room: by it a person finds what a lost answer made.
GATE_ID = "agentd_gate_id"
_MAX_NAME = 64  # of a name from outside that an error quotes


class Kind(NamedTuple):
    """What a field may be: the type that it is checked against, and the words for it."""

    type: Any
    words: str


TEXT = Kind(Annotated[str, Meta(pattern=r"\S")], "expected a string that is not blank")
OBJECT = Kind(dict[str, Raw], "expected an object")


def wrong(name: str, words: str) -> Unencodable:
    """What is wrong with one field of the request."""
    return Unencodable(f"$.request.{name[:_MAX_NAME]}: {words}")


def given(question: Question, id_field: str) -> dict[str, Raw]:
    """The fields that hold a value, without the name that the client gives what it asks for. Raises Unencodable."""
    fields = {}
    for name, value in question.request.items():
        if name == id_field or bytes(value).strip() in (b"", b"null"):
            continue
        try:
            bytes(value).decode()
        except UnicodeDecodeError as error:
            raise wrong(name, "expected UTF-8") from error
        fields[name] = value
    return fields


def read(fields: Mapping[str, Raw], name: str, kind: Kind) -> Any:
    """A field's value, None where it is left out. Raises Unencodable."""
    value = fields.get(name)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind.type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(name, kind.words) from error


def check(fields: Mapping[str, Raw], kinds: Mapping[str, Kind], required: Iterable[str]) -> None:
    """Whether all required fields are there, and each that is known is what it may be. Raises Unencodable."""
    for name in required:
        if name not in fields:
            raise wrong(name, f"required; {kinds[name].words}")
    for name, kind in kinds.items():
        read(fields, name, kind)


def check_names(fields: Mapping[str, Raw], known: Iterable[str]) -> None:
    """Whether each field is one of these. Raises Unencodable with the nearest name."""
    names = sorted(known)
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(name[:_MAX_NAME], names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise wrong(name, f"unknown field; {hint}")


def members(fields: Mapping[str, Raw], name: str) -> dict[str, Raw]:
    """The members of an object, none where it is left out. Raises Unencodable."""
    found: dict[str, Raw] | None = read(fields, name, OBJECT)
    return found or {}


def with_gate_id(objects: Mapping[str, Raw], question: Question) -> dict[str, Any]:
    """An object with the asking's id in it; a member that the client gave that name stays."""
    return {GATE_ID: question.gate_id} | dict(objects)


def agent_of(fields: Mapping[str, Raw], question: Question, context: Context) -> tuple[str, str]:
    """The agent that is asked for, by its local name and by the platform's. Raises Unencodable.

    A request may name it where nobody else has, and repeat it by either name; it can't speak for another one than it was let
    in for.
    """
    named: str | None = read(fields, "agent_id", TEXT)
    agent = context.agent(question.agent)
    if named is None or named in (question.agent, agent):
        local = question.agent
    elif question.agent:
        raise wrong("agent_id", f"expected {question.agent[:_MAX_NAME]!r}, the agent that asks, or to be left out")
    else:
        local, agent = named, context.agent(named)
    if not agent:
        raise wrong("agent_id", "required; neither the request nor the destination names an agent")
    return local or agent, agent
