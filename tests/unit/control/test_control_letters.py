"""Dead letters as they are shown: the facts for everybody, the contents for who may see them, and what is no JSON as text."""

from __future__ import annotations

import json
from hashlib import sha256
from uuid import UUID

import msgspec
import pytest

from agentd.control.letters import LetterControl, document, wanted_by
from agentd.intake import Grant, Peer
from agentd.intake.letters import Selection
from agentd.outcomes import Cause
from agentd.queued import Death, Entry, Source, Try
from agentd.records import LossClass
from agentd.spool.dead import Replayed
from agentd.spool.letters import Wanted, encode, letter_of
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table
from agentd.testing import MemoryStore

OWNER = Peer(1000, 1000, 1)
STRANGER = Peer(1001, 1001, 2)
OTHERS = Source("billing", 1002, 9, "frames")
CARRIED = Death(Cause.INTRODUCER_DEAD, "run r was refused for good")
HIDDEN = {"id", "agent", "lane", "sha256", "reason", "uid", "pid", "origin", "key", "history", "answer", "record"}


def letter(uid=1000, cause=Cause.REJECTED, body=b'{"kind":"event", "payload":1.50}', destination="cloud", kind="event"):
    entry = Entry(5, UUID(int=5).bytes, "run:r", kind, LossClass.INFO, Source("billing", uid, 9, "frames"), 10**6, body)
    death = Death(
        cause, "400 no", 2, 400, "words", "key", (Try(1_500_000, None, "no connection"), Try(2 * 10**6, 400, "400 no"))
    )
    return letter_of(destination, entry, death, 3 * 10**6)


class FakeLetters:
    """As much of the dead letters as is moved."""

    def __init__(self):
        self.asked = []

    async def replay(self, wanted, by, *, force):
        self.asked.append((wanted, by, force))
        done = Replayed(3)
        done.left["outcome_unknown"] = 2
        return done

    async def purge(self, wanted, by, reason):
        self.asked.append((wanted, by, reason))
        return 7


def stored(*found, store=None):
    """A store with these letters, and four that are dead because of run r."""
    store = store or MemoryStore()
    carried = letter_of(
        "cloud", Entry(6, bytes(16), "run:r", "event", LossClass.INFO, OTHERS, 1, b"{}"), CARRIED, 10**6
    )
    rows = enumerate([*found, *[carried] * 4], 17)
    store.commit([Put(key_of(Table.DEAD, row), *encode(one)) for row, one in rows], [])
    return store


def control_of(store, letters=None):
    async def read(job):
        return job(store, lambda: False)

    return LetterControl(letters or FakeLetters(), read, lambda: 10**9)


async def listed(store, viewer=OWNER, *, admin=False, grant=Grant(), chosen=Selection(), limit=1, after=16):  # noqa: B008 - frozen
    return await control_of(store).listing(chosen, viewer, limit=limit, after=after, admin=admin, grant=grant)


async def look(found, *arguments, **options):
    (seen,) = await listed(stored(found), *arguments, **options)
    return seen


def test_a_letter_tells_what_is_known_of_it():
    """Record as it was stored, the platform's answer, each try with its time, and whose it was; it is JSON."""
    text = msgspec.json.encode(document(17, letter(), whole=True, carries=4))
    assert b'"record":{"kind":"event", "payload":1.50}' in text  # byte for byte: megabytes are not decoded for it
    assert json.loads(text) == {
        "letter": 17, "id": str(UUID(int=5)), "destination": "cloud", "kind": "event", "agent": "billing", "lane": "run:r",
        "cause": "rejected", "admitted_at": "1970-01-01T00:00:01.000000Z", "died_at": "1970-01-01T00:00:03.000000Z",
        "tries": 2, "status": 400, "bytes": 32, "reason": "400 no", "uid": 1000, "pid": 9, "origin": "frames", "key": "key",
        "sha256": sha256(letter().body).hexdigest(),
        "history": [
            {"at": "1970-01-01T00:00:01.500000Z", "status": None, "reason": "no connection"},
            {"at": "1970-01-01T00:00:02.000000Z", "status": 400, "reason": "400 no"},
        ],
        "answer": "words", "carries": 4, "record": {"kind": "event", "payload": 1.5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("viewer", "admin", "grant", "whole"),
    [
        (OWNER, False, Grant(), True),
        (STRANGER, False, Grant(), False),
        (STRANGER, True, Grant(), True),
        (OWNER, False, Grant(("billing",), frozenset({"cloud"})), True),
        (OWNER, False, Grant(("sales",)), False),
        (OWNER, False, Grant(None, frozenset({"other"})), False),
        (STRANGER, True, Grant(("sales",)), False),
    ],
)
async def test_contents_are_shown_to_those_who_may_see_them(viewer, admin, grant, whole):
    """Admins and the uid that sent it, within what they may do; others see that there is one, not which and not what was said of it."""
    seen = await look(letter(), viewer, admin=admin, grant=grant)
    assert HIDDEN & set(seen) == (HIDDEN if whole else set())
    assert (seen["cause"], seen["bytes"], seen["destination"]) == ("rejected", 32, "cloud")


@pytest.mark.parametrize("chosen", [Selection(frozenset([UUID(int=5).bytes])), Selection(run="r")])
async def test_nobody_finds_anothers_by_its_name(chosen):
    """Who names a record or a run sees of his own whether there is such a one."""
    store = stored(letter())
    assert (
        len(await listed(store, OWNER, chosen=chosen))
        == len(await listed(store, STRANGER, admin=True, chosen=chosen))
        == 1
    )
    assert await listed(store, STRANGER, chosen=chosen) == []
    assert await listed(store, Peer(-1, -1, 0, token=0), chosen=chosen) == []


async def test_whom_the_kernel_does_not_name_is_nobodys_owner():
    """Two peers whose uid is not known are not one user: neither sees what the other has sent."""
    assert "record" not in await look(letter(uid=-1), Peer(-1, -1, 0, token=0))


async def test_what_a_letter_carries_is_counted_for_one_that_is_asked_for():
    """Not for each of a list: that would be a search through all of them, again and again."""
    one = Selection(frozenset([UUID(int=5).bytes]))
    start = letter(kind="run.start", body=b'{"kind":"run.start","run_id":"r"}')
    assert (await look(start, chosen=one))["carries"] == 4
    assert "carries" not in await look(start)
    assert "carries" not in await look(start, STRANGER, admin=True, grant=Grant(("sales",)), chosen=one)


async def test_what_several_letters_carry_is_counted_in_one_search():
    """Two hundred ids fit one question, and a room may hold hundreds of thousands of letters."""

    class Counting(MemoryStore):
        searches = 0

        def tags(self, table, after=-1):
            self.searches += 1
            return super().tags(table, after)

    start = letter(kind="run.start", body=b'{"kind":"run.start","run_id":"r"}')
    store = stored(*[start] * 20, store=Counting())
    found = await listed(store, chosen=Selection(frozenset([UUID(int=5).bytes])), limit=100)
    assert [one["carries"] for one in found] == [4] * 20
    assert store.searches == 2


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"kind":"decision","contxt":"c"}', {"record": {"kind": "decision", "contxt": "c"}}),
        (b'{"kind":"decision","context":"cut of', {"record": None, "text": '{"kind":"decision","context":"cut of'}),
        (b'{"context":"\xff"}', {"record": None, "text": '{"context":"\ufffd"}'}),
        (b'{"context":"\\ud800"}', {"record": None, "text": '{"context":"\\ud800"}'}),
        (b"[" * 500 + b"]" * 500, {"record": None, "text": "[" * 500 + "]" * 500}),
        (b"[" * 100_000 + b"]" * 100_000, {"record": None, "text": "[" * 100_000 + "]" * 100_000}),
    ],
)
def test_what_was_refused_is_shown_as_it_was_sent(body, shown):
    """As JSON where it is some that readers can read, else as text: a bad record must not spoil the answer about the others."""
    facts = document(17, letter(cause=Cause.INVALID, body=body, destination=""), whole=True)
    seen = json.loads(msgspec.json.encode(facts))
    assert {name: seen[name] for name in ("record", "text") if name in seen} == shown
    assert seen["destination"] is None


async def test_what_is_asked_goes_on_as_it_was_asked():
    """Choice, limit and place; a replay's force and a purge's reason, with the uid of who decides."""
    letters = FakeLetters()
    control = control_of(MemoryStore(), letters)
    chosen = Selection(frozenset([b"i" * 16]), "cloud", "r", "rejected", 60.0)
    wanted = Wanted(frozenset([b"i" * 16]), "cloud", "r", "rejected", 10**9 - 60 * 10**6)
    assert wanted_by(chosen, 10**9) == wanted
    assert await control.listing(chosen, OWNER, limit=5, after=3, admin=True, grant=Grant()) == []
    assert await control.replay(chosen, OWNER, force=True) == {"replayed": 3, "left": {"outcome_unknown": 2}}
    assert await control.purge(Selection(), OWNER, "why") == {"purged": 7}
    assert letters.asked == [(wanted, 1000, True), (Wanted(), 1000, "why")]
