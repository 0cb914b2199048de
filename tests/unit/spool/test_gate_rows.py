"""Gates on disk: rows that come back, references and journal with them in one commit, damage, full disks."""

import asyncio

import msgspec
import pytest
from msgspec import structs

from agentd.errors import SpoolDamaged, SpoolFull
from agentd.gating import Word
from agentd.outcomes import State
from agentd.queued import DEAD, INTRODUCED, KNOWN, Ref, Source
from agentd.spool import gaterows
from agentd.spool import journal as journals
from agentd.spool.gaterows import GateRow, Step, brief_of
from agentd.spool.gates import GateShelf
from agentd.spool.store import key_of
from agentd.spool.tables import Table

GATE_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def gate(row=1, **facts):
    return GateRow(
        GATE_ID, "action", "cloud", Source("billing", 1000, 42, "http"), -1, "k", b"d" * 32, "action", "mine", "r", None,
        b'{"what":"x"}', "platform-key", 5, 5.0, row=row, **facts,
    )  # fmt: skip


async def opened(harness, **changes):
    return GateShelf(await harness.open(**changes))


async def crashed(harness):
    return GateShelf(await harness.crash())


def notes(harness):
    rows = harness.store.rows(Table.JOURNAL)
    return [note for _, value in rows for note in journals.decode(value)]


async def test_a_gate_comes_back_as_it_was(harness):
    """Every field, under its row's number; the next row gets a higher one."""
    shelf = await opened(harness)
    row = shelf.new_row()
    made = gate(
        row, step=Step.PENDING, word=Word.REVIEW, platform_id="p", response=b"{}", tries=2, note="n", acted=True
    )
    await shelf.save(made, ["asked"])
    shelf = await crashed(harness)
    (stored,) = shelf.stored()
    assert (stored.brief, stored.row) == (brief_of(made), row)
    assert await shelf.load(stored) == made
    assert shelf.new_row() > row


async def test_a_later_state_replaces_the_earlier(harness):
    """One row for each gate; dropped it is gone."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"])
    await shelf.save(gate(step=Step.FINAL, word=Word.DENY), ["deny"])
    shelf = await crashed(harness)
    (stored,) = shelf.stored()
    assert (stored.brief.step, stored.brief.word) == (Step.FINAL, Word.DENY)
    shelf.drop([stored.row])
    await harness.spool.barrier()
    assert (await crashed(harness)).stored() == []


async def test_row_reference_and_journal_are_one_commit(harness):
    """§4, on the record: after a crash there are all of them or none."""
    shelf = await opened(harness)
    before = len(harness.store.commits)
    await shelf.save(gate(), ["asked", "sending"], shelf.introduce(gate()))
    assert len(harness.store.commits) == before + 1
    keys = {key >> 48 for key in harness.store.commits[-1].puts}
    assert keys == {Table.GATE, Table.REF, Table.JOURNAL, Table.META}
    made = notes(harness)
    assert [(n.state, n.cause, n.kind, n.lane, n.uid, n.agent, n.key) for n in made] == [
        (State.QUEUED, "asked", "gate.action", f"gate:{GATE_ID}", 1000, "billing", "platform-key"),
        (State.QUEUED, "sending", "gate.action", f"gate:{GATE_ID}", 1000, "billing", "platform-key"),
    ]
    assert [n.number for n in made] == [1, 2]


async def test_the_journal_tells_a_verdict_from_none(harness):
    """Promise 9: delivered with the platform's word and id, dead where it gave none."""
    shelf = await opened(harness)
    await shelf.save(gate(platform_id="p"), ["allow"])
    await shelf.save(gate(), ["pending"])
    await shelf.save(gate(), ["unavailable"])
    assert [(n.state, n.cause, n.platform_id) for n in notes(harness)] == [
        (State.DELIVERED, "allow", "p"), (State.QUEUED, "pending", ""), (State.DEAD, "unavailable", ""),
    ]  # fmt: skip


async def test_names_are_learned_with_the_row(harness):
    """§4: the client's id and the platform's own lead to the platform's, also after a crash."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"], shelf.introduce(gate()))
    assert shelf.reference("cloud", "action", "mine").state == INTRODUCED
    known = gate(platform_id="p")
    shelf.learn(known)
    await shelf.save(known, ["allow"])
    shelf = await crashed(harness)
    for name in ("mine", "p"):
        ref = shelf.reference("cloud", "action", name)
        assert (ref.state, ref.platform_id, ref.agent, ref.uid, ref.lane) == (
            KNOWN,
            "p",
            "billing",
            1000,
            f"gate:{GATE_ID}",
        )


async def test_who_waits_for_a_name_hears_of_it(harness):
    """A gate that waits for its run goes on when the run is named, and when it is refused for good."""
    shelf = await opened(harness)
    for change in (lambda: shelf.learn(gate(platform_id="p")), lambda: shelf.bury(gate())):
        waiting = asyncio.create_task(shelf.wait_for_names())
        await asyncio.sleep(0)
        harness.spool.refs.forget("cloud")
        change()
        await waiting


async def test_a_gate_that_no_platform_knows_is_dead(harness):
    """§4: what names it is a dead letter; a name that the platform knows stays known."""
    shelf = await opened(harness)
    shelf.bury(gate())
    await harness.spool.barrier()
    shelf = await crashed(harness)
    assert shelf.reference("cloud", "action", "mine").state == DEAD
    shelf.learn(gate(platform_id="p"))
    shelf.bury(gate())
    assert shelf.reference("cloud", "action", "mine").state == KNOWN


async def test_names_without_a_gate_are_ended(harness):
    """A gate whose row is lost for good would be waited for without end."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"], shelf.introduce(gate()))
    harness.spool.refs.put(Ref("cloud", "run", "r", "", 1000, 1, lane="run:r"))
    assert shelf.bury_strays([GATE_ID]) == 0
    assert shelf.bury_strays([]) == 1
    assert shelf.reference("cloud", "action", "mine").state == DEAD
    assert shelf.reference("cloud", "run", "r").state == INTRODUCED


# -- no room -----------------------------------------------------------------------------------------------------------


async def test_a_gate_that_finds_no_room_is_refused_and_leaves_nothing(harness):
    """§4: nothing is sent of what is not on disk, and the journal knows nothing of it."""
    shelf = await opened(harness)
    harness.store.full = 1
    with pytest.raises(SpoolFull):
        await shelf.save(gate(), ["asked"], shelf.introduce(gate()))
    assert shelf.full
    assert shelf.reference("cloud", "action", "mine") is None
    await harness.spool.barrier()
    assert notes(harness) == []
    shelf = await crashed(harness)
    assert shelf.stored() == []
    assert shelf.reference("cloud", "action", "mine") is None


async def test_those_that_wait_behind_a_full_disk_are_refused_too(harness):
    """Nobody hangs until the disk has room: what somebody waits for is refused with the commit that failed."""
    shelf = await opened(harness, start=False)
    harness.store.full = 10**6
    seal = harness.spool.barrier()
    first = shelf.save(gate(), ["asked"])
    harness.spool.start()
    await asyncio.sleep(0)
    second = shelf.save(gate(2), ["asked"])
    for future in (first, second):
        with pytest.raises(SpoolFull):
            await asyncio.wait_for(future, 5)
    harness.store.full = 0
    await seal


async def test_a_verdict_that_is_kept_goes_to_disk_when_there_is_room(harness):
    """What the platform said is not given up while the daemon lives."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"])
    harness.store.full = 5
    await shelf.keep(gate(step=Step.FINAL, word=Word.ALLOW), ["allow"])
    assert harness.store.full == 0
    assert (await crashed(harness)).stored()[0].brief.word is Word.ALLOW


# -- damage ------------------------------------------------------------------------------------------------------------


def spoil(harness, *, value=False, tag=False):
    """Flip a byte of the row, or of its tag."""
    key = key_of(Table.GATE, 1)
    old_value, old_tag = harness.store._rows[key]
    flip = lambda data: data[:-1] + bytes([data[-1] ^ 1])  # noqa: E731
    harness.store.change(key, flip(old_value) if value else old_value, flip(old_tag) if tag else None)


def quarantined(harness):
    return sorted(path.parent.name for path in (harness.folder / "quarantine").rglob("*") if path.is_file())


async def test_a_damaged_tag_is_made_anew_from_the_row(harness):
    """Nothing is lost."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"])
    spoil(harness, tag=True)
    shelf = await crashed(harness)
    (stored,) = shelf.stored()
    assert (stored.brief, stored.damaged) == (brief_of(gate()), False)


@pytest.mark.parametrize("step", [Step.SENDING, Step.FINAL])
async def test_a_damaged_row_keeps_its_key_and_may_have_acted(harness, step):
    """Its key must not be free again: what can't be read may have acted. The bytes are set aside."""
    shelf = await opened(harness)
    await shelf.save(gate(step=step, word=Word.ALLOW, proceed=True), ["asked"])
    spoil(harness, value=True)
    shelf = await crashed(harness)
    (stored,) = shelf.stored()
    found = await shelf.load(stored)
    assert (found.key, found.word, found.proceed, found.acted, found.step) == (
        "k",
        Word.UNAVAILABLE,
        False,
        True,
        Step.FINAL,
    )
    assert "damaged" in found.reason
    assert quarantined(harness) == ["gates"]
    assert (await shelf.load(stored)).acted
    assert quarantined(harness) == ["gates"]  # once


async def test_a_row_of_which_nothing_can_be_read_is_set_aside(harness):
    """The daemon starts all the same."""
    shelf = await opened(harness)
    await shelf.save(gate(), ["asked"])
    spoil(harness, value=True, tag=True)
    shelf = await crashed(harness)
    assert shelf.stored() == []
    assert harness.spool.quarantined_rows == 1
    assert quarantined(harness) == ["gates"]


async def test_rows_that_are_no_gates_are_damaged():
    """A checksum that fits makes no gate of other bytes."""
    put = gaterows.encode(gate())
    for value in (b"", b"1234", put.value[:-1], put.tag):
        with pytest.raises(SpoolDamaged):
            gaterows.decode(1, value)
    with pytest.raises(SpoolDamaged):
        gaterows.decode_brief(1, None)


async def test_a_newer_agentds_fields_are_no_damage():
    """Rows are arrays: what is added at the end is passed over by an older agentd, and has a default in a newer one."""
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(gate()))
    for body in (msgspec.msgpack.encode([*fields, "more"]), msgspec.msgpack.encode(fields[:15])):
        read = gaterows.decode(1, gaterows._sum(body) + body)
        assert structs.replace(read, row=1).request == gate().request


async def test_rows_from_before_sdks_were_owed_anything_are_read(harness):
    """An upgrade finds the gates of the version before, tag and row."""
    new = gaterows.encode(gate(owed=b"d" * 32, status=201))
    old = [msgspec.msgpack.decode(data[4:]) for data in (new.value, new.tag)]
    before = [kind.__struct_fields__.index("owed") for kind in (GateRow, gaterows.Brief)]
    value, tag = (msgspec.msgpack.encode(fields[:count]) for fields, count in zip(old, before, strict=True))
    assert (gaterows.decode(1, new.value).status, gaterows.decode_brief(1, new.tag).owed) == (201, b"d" * 32)
    read = gaterows.decode(1, gaterows._sum(value) + value)
    assert (read, gaterows.decode_brief(1, gaterows._sum(tag) + tag)) == (gate(), brief_of(gate()))
