"""The bundle of a bug report: what is in it, each part scrubbed, as a tar.gz that its owner alone can read.

parts = [Part("status.json", "…", lambda: …), …]
written = collect(parts, scrubber)      # what can't be had is in there as a sentence
pack(file, written, folder, now_s)
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

from agentd.doctor.scrub import Scrubber
from agentd.errors import AgentdError

MAX_PART_BYTES = 8 * 2**20


class Part(NamedTuple):
    """One file: what it is for people, and how to get it. Of text every line is a sentence of a log; the rest is JSON."""

    name: str
    about: str
    get: Callable[[], Any]


class Written(NamedTuple):
    name: str
    about: str
    data: bytes


class Leak(AgentdError):  # noqa: N818 - what was found
    """A secret would have been in the bundle: a defect of agentd's. Nothing was written."""


def collect(parts: Iterable[Part], scrubber: Scrubber) -> list[Written]:
    """Each part as it would be written. Raises Leak."""
    written = []
    for part in parts:
        about = part.about
        try:
            value = part.get()
        except (AgentdError, OSError) as error:
            value, about = {"error": str(error)}, f"{part.about}: could not be had"
        data = _encode(part.name, value, scrubber)
        if scrubber.leaks(data):
            raise Leak(f"{part.name} would hold a secret: nothing was written; please report this")
        written.append(Written(part.name, about, data))
    return written


def _encode(name: str, value: Any, scrubber: Scrubber) -> bytes:
    if isinstance(value, str):
        text = value if name.endswith(".prom") else "\n".join(_log_line(line, scrubber) for line in value.splitlines())
        return scrubber.text(text).encode("utf-8", "replace")[:MAX_PART_BYTES] + b"\n"
    return json.dumps(scrubber.document(value), indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _log_line(line: str, scrubber: Scrubber) -> str:
    """JSON lines member by member, so that their own quotation marks stay; others as a sentence."""
    if line.startswith("{"):
        try:
            document = json.loads(line)
        except ValueError:
            return scrubber.said(line)
        if isinstance(document, dict):
            return json.dumps(_entry(document, scrubber), ensure_ascii=False)
    return scrubber.said(line)


_IDS = frozenset({"record_id", "batch", "lane", "run_id", "agent", "agent_id", "gate_id", "decision_id"})


def _entry(document: dict[str, Any], scrubber: Scrubber) -> dict[str, Any]:
    hashed = {key: scrubber.name(str(value)) if key in _IDS and value else value for key, value in document.items()}
    cleaned: dict[str, Any] = scrubber.document(hashed)
    return cleaned


def pack(file: IO[bytes], written: Iterable[Written], folder: str, now_s: float) -> None:
    """Write the archive; its members are 0600 and nobody's."""
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, _, data in written:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime, member.mode = len(data), int(now_s), 0o600
            archive.addfile(member, io.BytesIO(data))


def contents(written: Iterable[Written], *, with_names: bool) -> str:
    """What is said before it is written, and stands in it as README.txt."""
    lines = [f"{len(data):>9,} B  {name:<15} {about}" for name, about, data in written]
    names = (
        "Names of agents and ids are in it as they are (--with-names)."
        if with_names
        else "Names of agents and ids of runs and records are digests."
    )
    return "\n".join(
        [*lines, f"No records, no keys, no environment. {names} Secrets were taken out; read it before you send it."]
    )
