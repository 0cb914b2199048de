"""A start over what a daemon left behind: in a real folder, with the real store."""

import itertools
import os
import pickle

import msgspec
import pytest
from damage_kit import LIMITS, RealHarness, gate
from spool_kit import DAY_US, Harness, seal_of

from agentd.ageing import Clocks
from agentd.errors import AlreadyRunning, ConfigError, NewerFormat, SpoolDamaged, StateError
from agentd.outcomes import Cause, State
from agentd.queued import Death, Ref
from agentd.spool import gaterows
from agentd.spool import journal as journals
from agentd.spool.checked import pack, unpack
from agentd.spool.folder import Folder
from agentd.spool.gaterows import Step
from agentd.spool.journal import Journal
from agentd.spool.recovery import open_spool
from agentd.spool.store import DiskFull, Put, Store, key_of
from agentd.spool.tables import FORMAT, Meta, Table, decode_meta, encode_meta
from agentd.testing import MemoryStore


@pytest.fixture
async def real(tmp_path, caplog):
    caplog.set_level("CRITICAL", "agentd")
    made = RealHarness(tmp_path)
    await made.open()
    yield made
    if made.spool is not None:
        await made.spool.close()


async def test_a_restart_keeps_everything(real):
    """Promises 1, 4, 8, 9: records, endings, seals, references, letters, books and journal are what they were."""
    spool = real.spool
    made = spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5))
    entries = real.records(5, kind="task", body=b'{"kind":"task"}')
    await spool.append({"cloud": entries}, puts=[Put(key_of(Table.STREAM, 3), b"s")], introduced=[made])
    seal = seal_of(entries[1:3], key="K", body=b"body")
    await spool.seal(seal)
    await spool.settle(seal_of(entries[:1]), entries[:1])
    await spool.bury(None, "cloud", entries[3:4], Death(Cause.REJECTED, "no"))
    before = spool.books.snapshot()
    again = await real.restart()
    assert await real.seen() == [2, 3, 5]
    assert [e.body for e in again.queues["cloud"].peek("run:a")] == [entries[0].body] * 3
    (back,) = again.seals.of_lane("cloud", "run:a")
    assert (back.tried, back.key, back.body, back.first, back.last, back.sha256) == (
        True,
        "K",
        b"body",
        2,
        3,
        seal.sha256,
    )
    assert again.refs.get("cloud", "run", "a").agent == "billing"
    assert again.books.snapshot() == before
    assert (again.dead_count, again.dead_bytes, again.ledger.dead_lanes["cloud", "run:a"]) == (1, spool.dead_bytes, 1)
    assert again.journal.next_number == spool.journal.next_number
    assert (again.take_row(Table.STREAM), again.take_row(Table.DEAD)) == (4, 2)
    assert again.quarantined_rows == 0


async def test_numbers_are_not_used_again_after_a_drain(real):
    """Keys and numbers of what has been delivered are never given to something else."""
    entries = await real.put(3)
    await real.spool.settle(seal_of(entries), entries)
    await real.restart()
    (record,) = await real.put(1)
    assert record.number == 4
    assert real.keys(Table.SEGMENT) == [key_of(Table.SEGMENT, 2)]


async def test_a_second_daemon_is_turned_away(real):
    """A second daemon on the same folder is told so, and the first goes on."""
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        await RealHarness(real.folder.parent).open()
    await real.put(1)


async def test_a_damaged_segment_costs_itself_alone(real):
    """Promise 8: a row that can't be read is set aside whole and counted; its neighbours are delivered."""
    for _ in range(3):
        await real.put(2)
    await real.stop()
    key = real.keys(Table.SEGMENT)[1]
    real.change(key, b"AGS\1 damaged")
    spool = await real.open()
    assert await real.seen() == [1, 2, 5, 6]
    assert spool.books.causes("cloud") == {"quarantined": {"damaged": 2}}
    assert real.balanced()
    await spool.barrier()
    assert key not in real.keys(Table.SEGMENT)
    assert real.set_aside("segments") == [f"{key:x}"]


async def test_a_segment_of_which_nothing_can_be_read_is_counted_from_the_books(real):
    """Promise 8: with row and directory damaged, the books know how many records of which kind are missing."""
    await real.put(2, kind="task")
    await real.put(1)
    await real.stop()
    key = real.keys(Table.SEGMENT)[0]
    real.change(key, b"garbage")
    real.change(key, b"garbage", "tag")
    spool = await real.open()
    assert [line[1:] for line in spool.books.lines() if line.state == "quarantined"] == [
        ("task", "quarantined", "damaged", 2)
    ]
    assert await real.seen() == [3]
    assert real.balanced()
    await spool.barrier()
    assert key not in real.keys(Table.SEGMENT)
    assert real.set_aside("segments") == [f"{key:x}"]


async def test_a_damaged_directory_is_made_anew(real):
    """Promise 1: a segment whose directory alone is damaged loses nothing."""
    entries = await real.put(3)
    await real.spool.settle(seal_of(entries[:1]), entries[:1])
    await real.stop()
    (key,) = real.keys(Table.SEGMENT)
    (tag,) = real.sql("SELECT tag FROM Cache WHERE key = ?", key)[0]
    real.change(key, bytes([tag[0] ^ 1]) + tag[1:], "tag")
    spool = await real.open()
    assert await real.seen() == [2, 3]
    assert spool.quarantined_rows == 0
    assert real.balanced()


async def test_damaged_endings_bring_records_back_and_lose_none(real):
    """Promise 1: rather twice than never: without its bitmap all of a segment is live, and the books say so."""
    entries = await real.put(3)
    await real.spool.settle(seal_of(entries[:1]), entries[:1])
    await real.stop()
    (key,) = real.keys(Table.ENDED)
    real.change(key, b"\xc1")
    spool = await real.open()
    assert await real.seen() == [1, 2, 3]
    assert real.balanced()
    await spool.barrier()
    assert real.keys(Table.ENDED) == []
    assert real.set_aside("endings") == [f"{key:x}"]


async def test_endings_without_their_segment_are_dropped(real):
    """A bitmap whose segment is gone holds nothing."""
    await real.stop()
    store = Store(real.folder / "spool", "full")
    store.commit([Put(key_of(Table.ENDED, 9), b"x")], [])
    store.close()
    await (await real.open()).barrier()
    assert real.keys(Table.ENDED) == []


async def test_a_lost_meta_row_is_rebuilt(real):
    """Promises 1, 8, 9: without the row that sums everything up nothing is lost and no number is given twice."""
    entries = await real.put(3, kind="task")
    await real.spool.seal(seal_of(entries))
    await real.stop()
    real.change(key_of(Table.META, 0), b"\xc1")
    spool = await real.open()
    assert await real.seen() == [1, 2, 3]
    assert len(spool.seals.all()) == 1
    assert spool.number("cloud") == 4
    assert spool.journal.next_number == 4
    assert real.balanced()
    await real.put(1, kind="task")
    rows = await spool.run_in_thread(lambda store: list(store.rows(Table.JOURNAL)))
    assert [note.number for _, value in rows for note in journals.decode(value)] == [1, 2, 3, 4]
    assert real.set_aside("meta")


async def test_numbers_of_a_lost_meta_row_are_those_of_seals_and_references_too(real):
    """Promise 4: a number that a reference remembers is not given to another record."""
    made = real.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 40, touched_us=5))
    real.spool.meta.next_number["cloud"] = 50
    entries = await real.put(1)
    await real.spool.append({}, introduced=[made])
    await real.spool.settle(seal_of(entries), entries)
    await real.stop()
    real.sql("DELETE FROM Cache WHERE key = ?", key_of(Table.META, 0))
    assert (await real.open()).number("cloud") == 41


async def test_foreign_rows_are_set_aside_unread(real, tmp_path):
    """A row that agentd did not write is copied to the quarantine, taken out and never interpreted."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    await real.put(1)
    await real.stop()
    for key, mode, value, name in [
        (key_of(Table.SEGMENT, 90), 4, pickle.dumps(Trap()), None),
        (key_of(Table.META, 0), 4, pickle.dumps(Trap()), None),
        (key_of(Table.DEAD, 3), 2, None, "../../secret"),
    ]:
        real.sql(
            "INSERT OR REPLACE INTO Cache (key, raw, mode, value, filename, size, store_time) VALUES (?, 1, ?, ?, ?, 0, 0)",
            key, mode, value, name,
        )  # fmt: skip
    spool = await real.open()
    assert await real.seen() == [1]
    assert spool.quarantined_rows == 3
    assert len(real.set_aside("foreign-rows")) == 3
    assert not (tmp_path / "executed").exists()
    assert real.sql("SELECT count(*) FROM Cache WHERE mode != 1") == [(0,)]


@pytest.mark.parametrize("damage", ["empty", "garbage"])
async def test_a_database_of_which_nothing_can_be_read_is_set_aside_whole(real, damage):
    """The daemon starts with a new spool, and the old one lies in the quarantine as it was."""
    await real.put(1)
    await real.stop()
    content = b"" if damage == "empty" else b"garbage " * 999
    real.database.write_bytes(content)
    spool = await real.open()
    assert spool.queues["cloud"].live == 0
    (kept,) = (real.folder / "quarantine").glob("*/spool/cache.db")
    assert kept.read_bytes() == content
    await real.put(1)


async def test_a_database_with_foreign_settings_is_set_aside_and_its_records_are_kept(real):
    """Promise 1: what can't be opened safely is read without being opened: nothing of it is lost."""
    await real.put(2)
    await real.stop()
    real.sql("INSERT INTO Settings VALUES ('_directory', '/elsewhere')")
    await real.open()
    assert await real.seen() == [1, 2]
    assert len(list((real.folder / "quarantine").glob("*/spool/cache.db"))) == 1


async def test_a_newer_format_is_refused_and_left_alone(real):
    """A spool of a newer agentd is whole: an older one does not touch it, and says which one to start."""
    await real.put(1)
    await real.stop()
    fields = msgspec.to_builtins(Meta(format=FORMAT + 1))
    real.change(key_of(Table.META, 0), msgspec.msgpack.encode([*fields, "something new"]))
    rows = real.sql("SELECT key, value, tag FROM Cache ORDER BY key")
    with pytest.raises(StateError, match=f"format {FORMAT + 1}") as caught:
        await real.open()
    assert not isinstance(caught.value, SpoolDamaged)
    assert real.sql("SELECT key, value, tag FROM Cache ORDER BY key") == rows
    assert not (real.folder / "quarantine").exists()
    Folder(real.folder).open()


async def test_another_platform_is_refused_while_records_wait(real):
    """Queue, references and seals belong to a destination's identity: changing it needs an empty queue."""
    await real.put(2)
    await real.stop()
    with pytest.raises(ConfigError, match=r"\[destinations\.cloud\].*2 records wait.*agentos at one"):
        await real.open(cloud="agentos at two")
    spool = await real.open()
    assert spool.queues["cloud"].live == 2


async def test_another_platform_starts_without_the_old_ones_ids(real):
    """After a drain the identity may change; what the old platform called things, and its seals, are forgotten."""
    made = real.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5))
    entries = real.records(1)
    await real.spool.append({"cloud": entries}, introduced=[made])
    seal = seal_of(entries)
    ghost = seal_of(entries)
    ghost.destination = "cloud"
    real.spool.seal(ghost)
    await real.spool.seal(seal)
    await real.spool.settle(seal, entries)
    spool = await real.restart(cloud="agentos at two")
    assert len(spool.refs) == 0
    assert spool.seals.all() == []
    await spool.barrier()
    assert real.keys(Table.REF) == []
    assert real.keys(Table.SEAL) == []


async def test_a_removed_destination_keeps_its_queue(real):
    """A destination that is not configured any more still holds its records."""
    await real.put(1)
    spool = await real.restart()
    await real.stop()
    spool = await open_spool(
        real.folder, sync="full", limits=LIMITS, identities={"other": "x"}, journal=Journal(1, 1), now_us=lambda: 1
    )
    real.spool = spool
    spool.start()
    assert (spool.queues["cloud"].live, spool.queues["other"].live) == (1, 0)
    await spool.close()
    real.spool = None


@pytest.mark.parametrize("table", [Table.SEAL, Table.REF, Table.DEAD])
async def test_other_damaged_rows_cost_themselves_alone(real, table):
    """A seal, a reference or a letter that can't be read is kept as a copy and taken out; the daemon starts."""
    entries = await real.put(3)
    made = real.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5))
    await real.spool.append({}, introduced=[made])
    await real.spool.seal(seal_of(entries[:2]))
    await real.spool.bury(None, "cloud", entries[2:], Death(Cause.REJECTED, "no"))
    await real.stop()
    (key,) = real.keys(table)
    real.change(key, b"\xc1")
    if table is Table.DEAD:  # its tag alone would be made anew from the letter
        real.change(key, b"\xc1", "tag")
    spool = await real.open()
    assert await real.seen() == [1, 2]
    assert spool.quarantined_rows == 1
    await spool.barrier()
    assert real.keys(table) == []
    assert len(list((real.folder / "quarantine").iterdir())) == 1
    assert real.balanced()
    ends = {state: spool.books.total("cloud", state) for state in ("dead", "quarantined")}
    assert ends == ({"dead": 0, "quarantined": 1} if table is Table.DEAD else {"dead": 1, "quarantined": 0})


def spoiled(value):
    """The row with a text in it that is none, under a right checksum."""
    inner = unpack(value)
    assert b"cloud" in inner
    return pack(inner.replace(b"cloud", b"\xff" * 5))


async def everything(real):
    """A queue of two, a letter, a reference, a seal and a gate."""
    entries = await real.put(3, kind="task")
    made = real.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5))
    await real.spool.append({}, introduced=[made], puts=[gaterows.encode(gate(1, Step.FINAL))])
    await real.spool.seal(seal_of(entries[:2]))
    await real.spool.bury(None, "cloud", entries[2:], Death(Cause.REJECTED, "no"))
    await real.stop()


@pytest.mark.parametrize("table", [Table.META, Table.SEAL, Table.REF, Table.DEAD, Table.JOURNAL, Table.GATE])
async def test_a_text_that_is_none_costs_its_row_alone(real, table):
    """Bytes that are no UTF-8, planted or in a row without a checksum: msgspec has another error for these."""
    await everything(real)
    for key in real.keys(table):
        ((value, tag),) = real.sql("SELECT value, tag FROM Cache WHERE key = ?", key)
        if table is Table.META:
            number, inner = msgspec.msgpack.decode(value)
            value = msgspec.msgpack.encode([number, spoiled(inner)])
        elif table is Table.GATE:
            value, tag = (spoiled(pack(part[4:]))[1:] for part in (value, tag))
            real.change(key, tag, "tag")
        elif table is Table.DEAD:
            value, tag = spoiled(value), spoiled(tag)
            real.change(key, tag, "tag")
        else:
            value = spoiled(value)
        real.change(key, value)
    await real.open()
    assert await real.seen() == [1, 2]
    assert real.balanced()


@pytest.mark.parametrize("planted", [b"\x91" * 5000, b"\xd9\x02\xff\xfe"], ids=["no end", "no text"])
async def test_a_meta_row_that_nobody_can_decode_is_rebuilt(real, planted):
    """What is nested without end, and a text that is none, are damage like any other: the start goes on."""
    await everything(real)
    real.change(key_of(Table.META, 0), planted)
    spool = await real.open()
    assert await real.seen() == [1, 2]
    assert spool.number("cloud") == 4
    assert real.set_aside("meta")


async def test_a_foreign_text_that_is_none_is_set_aside(real):
    """Python reads no text that is no UTF-8, and calls that an operational error: it is a foreign row like any other."""
    await everything(real)
    for key in (key_of(Table.META, 0), *real.keys(Table.SEAL)):
        real.sql("UPDATE Cache SET filename = CAST(x'fffe' AS TEXT) WHERE key = ?", key)
    spool = await real.open()
    assert await real.seen() == [1, 2]
    assert spool.seals.all() == []
    assert len(real.set_aside("foreign-rows")) == 2


async def test_a_full_disk_at_the_start_gets_the_ballast(tmp_path, caplog):
    """Promise 1: a daemon starts on a full disk: the ballast is given back, once."""
    caplog.set_level("CRITICAL", "agentd")
    harness, failures = Harness(tmp_path), [DiskFull("full")]

    def opener(*_):
        if failures:
            raise failures.pop()
        return MemoryStore()

    facts = {"sync": "full", "limits": LIMITS, "identities": {}, "journal": Journal(1, 1), "now_us": lambda: 1}
    spool = await open_spool(harness.folder, opener=opener, **facts)
    assert not (harness.folder / "ballast").exists()
    spool.start()
    await spool.close()
    failures += [DiskFull("full")] * 2
    with pytest.raises(StateError, match="full"):
        await open_spool(harness.folder, opener=opener, **facts)
    Folder(harness.folder).open()


async def test_what_a_start_deletes_goes_with_the_first_commit(harness):
    """A start on a full disk writes nothing that it could fail at."""
    await harness.open()
    await harness.put(1)
    harness.store.change(key_of(Table.SEGMENT, 1), b"x", b"x")
    harness.store.full = 10**6
    spool = await harness.crash()
    assert harness.store.commits == []
    assert spool.books.total("cloud", State.QUARANTINED) == 1
    await spool.barrier()
    assert list(harness.store.rows(Table.SEGMENT)) == []


@pytest.mark.parametrize("shift_us", [-3 * DAY_US, 5000 * DAY_US], ids=["behind", "right again"])
async def test_a_clock_that_was_moved_lets_no_evidence_go_early(real, shift_us):
    """Promise 9: rows of a time that has not come yet are no older for it, whether the clock is behind now or was ahead then."""
    ahead = shift_us > 0  # then
    real.clock = itertools.count(20_000 * DAY_US + (shift_us if ahead else 0))
    await real.restart()
    for _ in range(3):
        await real.put(1, kind="task")
    await real.stop()
    back = next(real.clock) - abs(shift_us)
    real.clock = itertools.count(back)
    journal = (await real.open()).journal
    assert journal.expired(Clocks(lambda: back, lambda: 0.0).ages()) == []
    await real.put(1, kind="task")
    await real.restart()
    journal = real.spool.journal
    assert journal.expired(Clocks(lambda: back, lambda: 0.0).ages()) == []
    assert len(journal.expired(Clocks(lambda: back + 201 * DAY_US, lambda: 0.0).ages())) == 4


def test_a_meta_row_is_read_back():
    """What says how to read the others is itself checked."""
    assert decode_meta(encode_meta(Meta(commits=7))).commits == 7
    with pytest.raises(SpoolDamaged):
        decode_meta(b"\x05")
    with pytest.raises(NewerFormat, match="start the newer agentd"):
        decode_meta(encode_meta(Meta(format=FORMAT + 1)))
