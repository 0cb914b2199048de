"""Reading a database that SQLite refuses: all that is whole and live, nothing that was deleted, whatever the damage."""

import sqlite3
from contextlib import closing
from itertools import count

import pytest
from damage_kit import (
    PAGE,
    RealHarness,
    database,
    overwrite,
    pickled,
    root_of,
    rubbish,
    sql,
    told_beforehand,
    wal,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.errors import NewerFormat
from agentd.spool import pagefile, salvage, segments
from agentd.spool import pages as fmt
from agentd.spool.checked import pack
from agentd.spool.rebuild import Rebuilt, is_ours, needed_bytes, rebuild, salvage_of
from agentd.spool.salvage import Row, Salvage
from agentd.spool.store import Put, Store, key_of
from agentd.spool.tables import FORMAT, Meta, Table, encode_meta
from agentd.testing import MemoryStore


def test_a_row_that_says_it_is_huge_needs_no_more_than_there_is(tmp_path):
    """A start that is short of room is refused: what a planted row says of its own length must not bring that about."""
    record = b"\x0d\x00\x06\x09\x07\x00\x07\x00\x00\x00\x09\x00\x0e" + key_of(Table.STREAM, 1).to_bytes(8, "big")
    size = 489 + 4092 * 2**30  # of which 489 bytes lie on the page
    length = bytes(size >> 7 * place & 0x7F | (0x80 if place else 0) for place in range(6, -1, -1))
    cell, at = length + b"\x01" + record, PAGE - 2000
    page = b"\x0d\0\0\0\x01" + at.to_bytes(2, "big") + b"\0" + at.to_bytes(2, "big")
    database(tmp_path).write_bytes(bytes(PAGE) + page.ljust(at, b"\0") + cell.ljust(2000, b"x"))
    with salvage_of(tmp_path, synced=True) as source:
        assert source.survey().stray == 1
        assert needed_bytes(source) < 2**20


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """What a kill and what a stop leave behind."""
    return {killed: told_beforehand(tmp_path_factory.mktemp("story"), killed=killed) for killed in (True, False)}


@pytest.fixture(params=[True, False], ids=["killed", "stopped"])
def story(request, stories, tmp_path):
    return stories[request.param].copy(tmp_path / "state").folder / "spool"


def read(folder):
    """(what was found, key → (value, tag) of the best version of every row)."""
    with Salvage(folder, is_ours) as source:
        found = source.survey()
        rows = {key: next(versions) for key, versions in source.rows()}
    return found, {key: (row.value, row.tag) for key, row in rows.items()}


def as_sqlite_reads(folder, tmp_path):
    """The same rows by SQL, from a copy."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with closing(sqlite3.connect(database(copy))) as connection:
        return {key: (value, tag) for key, value, tag in connection.execute("SELECT key, value, tag FROM Cache")}


# -- what is whole --------------------------------------------------------------------------------------------------------


def test_a_whole_database_gives_what_sqlite_gives(story, tmp_path):
    """Every row with its bytes, log included, and nothing of what was deleted, which lies in free space beside it."""
    expected = as_sqlite_reads(story, tmp_path)
    found, rows = read(story)
    assert rows == expected
    assert (found.live, found.stray, found.foreign, found.broken) == (len(expected), 0, 0, 0)
    assert found.exact
    assert list(found.missing) == []
    deleted = database(story).read_bytes() + (wal(story).read_bytes() if wal(story).exists() else b"")
    assert deleted.count(b"AGS\1") > sum(key >> 48 == Table.SEGMENT for key in rows)  # there was something to leave out


@pytest.mark.parametrize("damage", ["table", "index", "header", "schema", "both"])
def test_a_lost_root_loses_nothing(stories, damage, tmp_path):
    """Without its root, its index's or the file's header the table is found page by page; what was deleted is told apart by the other."""
    folder = stories[False].copy(tmp_path / "state").folder / "spool"
    expected = as_sqlite_reads(folder, tmp_path)
    roots = {"table": ["Cache"], "index": ["Cache_key_raw"], "both": ["Cache", "Cache_key_raw"]}.get(damage, [])
    for number in [root_of(folder, name) for name in roots]:
        overwrite(database(folder), (number - 1) * PAGE, bytes(PAGE))
    if damage in ("header", "schema"):
        overwrite(database(folder), 0 if damage == "header" else 100, bytes(100 if damage == "header" else PAGE - 100))
    found, rows = read(folder)
    assert rows.items() >= expected.items()
    assert damage == "both" or rows == expected
    assert found.stray == (0 if damage in ("index", "header", "schema") else found.live + found.stray)


def test_free_pages_are_not_taken_for_rows(stories, tmp_path):
    """Pages of rows that were deleted long ago keep their content: the freelist or the pointer map says what they are."""
    folder = stories[False].copy(tmp_path / "state").folder / "spool"
    expected = as_sqlite_reads(folder, tmp_path)
    for name in ("Cache", "Cache_key_raw"):
        overwrite(database(folder), (root_of(folder, name) - 1) * PAGE, bytes(PAGE))
    _, by_both = read(folder)
    overwrite(database(folder), 32, bytes(8))  # the header's freelist
    _, by_map = read(folder)
    assert by_map == by_both
    assert by_both.items() >= expected.items()
    overwrite(database(folder), PAGE, bytes(PAGE))  # the pointer map
    _, by_nothing = read(folder)
    assert by_nothing.items() >= expected.items()
    assert len(by_nothing) > len(by_both)


class Pages:
    """A store of ours that is written and looked at page by page: thirty rows to begin with, four on a page."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.now = 1000.0
        monkeypatch.setattr("diskcache.core.time.time", lambda: self.now)
        self.write(dict.fromkeys(range(30), b"first"))

    def write(self, values, deleted=()):
        """Values are filled up so that four rows fill a page."""
        with closing(Store(self.folder, "full")) as store:
            puts = [Put(key_of(Table.REF, n), value + bytes(900)) for n, value in values.items()]
            store.commit(puts, [key_of(Table.REF, n) for n in deleted])

    def leaf_of(self, number):
        """(page, its content) of the leaf that holds a row."""
        with Salvage(self.folder, is_ours) as source:
            source.survey()
            page = source._page[list(source._keys).index(key_of(Table.REF, number))]
            return page, source.pages[page]

    def put(self, page, content):
        overwrite(database(self.folder), (page - 1) * PAGE, content)

    def append(self, content):
        """A page more at the end of the file, of which nothing says what it is for."""
        overwrite(database(self.folder), database(self.folder).stat().st_size, content)

    def zero(self, *names):
        for name in names:
            self.put(root_of(self.folder, name), bytes(PAGE))

    def values(self):
        with Salvage(self.folder, is_ours) as source:
            source.survey()
            return {key & 0xFFFF: [row.value.rstrip(b"\0") for row in rows] for key, rows in source.rows()}


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    return Pages(tmp_path / "spool", monkeypatch)


def test_of_two_strays_the_one_that_was_stored_last_wins(leaves):
    """Where nothing tells which of two versions is the live one, the newer is the first; the older one comes after it."""
    _, old = leaves.leaf_of(5)
    leaves.now += 10
    leaves.write({5: b"second"})
    leaves.append(old)
    leaves.zero("Cache", "Cache_key_raw")
    assert leaves.values()[5] == [b"second", b"first"]


def test_a_live_row_wins_over_a_stray_of_a_later_time(leaves):
    """The clock may have been set back: what the tree leads to is what was written last."""
    leaves.now += 10
    leaves.write({5: b"of a clock that was ahead"})
    _, old = leaves.leaf_of(5)
    leaves.now -= 9
    leaves.write({5: b"live"})
    leaves.append(old)
    leaves.zero("Cache_key_raw")
    leaves.put(leaves.leaf_of(25)[0], bytes(PAGE))
    assert leaves.values()[5] == [b"live", b"of a clock that was ahead"]


def test_deleted_rows_on_a_page_that_nothing_knows_are_told_by_the_index(leaves):
    """A leaf outside of the tree, and no word of whether it is free: rows that the unique index does not have were deleted."""
    _, old = leaves.leaf_of(5)
    leaves.write({}, deleted=[5])
    leaves.append(old)
    leaves.zero("Cache")
    found = leaves.values()
    assert 5 not in found
    assert len(found) == 29
    leaves.zero("Cache_key_raw")
    assert leaves.values()[5] == [b"first"]  # rather twice than never


def test_a_page_in_the_place_of_another_is_not_believed(leaves):
    """A leaf whose rows can't be where the tree leads to it is an old one: what was deleted does not come back with it."""
    _, old = leaves.leaf_of(5)
    leaves.write({}, deleted=range(4, 9))
    page, _ = leaves.leaf_of(25)
    assert leaves.leaf_of(12)[0] != page
    leaves.put(page, old)
    found = leaves.values()
    assert 5 not in found
    assert found.keys() >= {*range(4), *range(12, 20)}


def test_what_somebody_else_wrote_is_counted_and_not_read(stories, tmp_path):
    """Pickles, file names, text, expiry, keys of other types and tables: never a row of ours, whatever is damaged."""
    folder = stories[False].copy(tmp_path / "state").folder / "spool"
    expected = as_sqlite_reads(folder, tmp_path)
    trap = pickled(tmp_path / "executed")
    key = key_of(Table.SEGMENT, 900)
    planted = [
        (key, 1, 4, trap, None, None, None),
        (trap, 0, 1, b"x", None, None, None),
        (key + 1, 1, 2, None, "../../secret", None, None),
        (key + 2, 1, 1, "text", None, None, None),
        (key + 3, 1, 1, b"x", None, 1.0, None),
        (key + 4, 1, 1, b"x", None, None, "tag"),
        (key + 5, 1, 1, None, None, None, None),
        (key + 6.5, 1, 1, b"x", None, None, None),
        ("text", 1, 1, b"x", None, None, None),
        (-key, 1, 1, b"x", None, None, None),
        (key_of(200, 1), 1, 1, b"x", None, None, None),
        (key + 7, None, 1, b"x", None, None, None),
        (key + 8, 1, None, b"x", None, None, None),
    ]
    statement = (
        "INSERT INTO Cache (key, raw, mode, value, filename, expire_time, tag, size, store_time) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)"
    )
    sql(folder, *[(statement, *row) for row in planted])
    overwrite(database(folder), 0, bytes(100))
    found, rows = read(folder)
    assert rows == expected
    assert found.foreign == len(planted)
    assert not (tmp_path / "executed").exists()


def test_a_row_that_claims_to_be_endless_is_not_followed(tmp_path, monkeypatch):
    """Beyond what a row of ours can take it is damaged: its value is not gathered in memory."""
    store = Store(tmp_path / "spool", "full")
    store.commit([Put(key_of(Table.SEAL, 1), bytes(50_000)), Put(key_of(Table.SEAL, 2), bytes(40_000))], [])
    store.close()
    monkeypatch.setattr(salvage, "MAX_ROW_BYTES", 45_000)
    _, rows = read(tmp_path / "spool")
    assert rows == {key_of(Table.SEAL, 1): (None, None), key_of(Table.SEAL, 2): (bytes(40_000), None)}


def test_a_page_size_of_its_own(tmp_path):
    """A database whose pages have another size is read by its header, and without one by what makes sense."""
    folder = tmp_path / "spool"
    Store(folder, "full").close()
    with closing(sqlite3.connect(database(folder), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 16384")
        connection.execute("VACUUM")
    with closing(Store(folder, "full")) as store:
        store.commit([Put(key_of(Table.SEAL, n), bytes([n]) * 3000) for n in range(90)], [])
    expected = {key_of(Table.SEAL, n): (bytes([n]) * 3000, None) for n in range(90)}
    assert read(folder)[1] == expected
    overwrite(database(folder), 0, bytes(100))
    assert read(folder)[1] == expected


def test_a_file_is_never_read_whole(story, monkeypatch):
    """Memory does not grow with the database: it is read a page, or a frame of the log, at a time."""
    lengths = []
    real = pagefile.os.pread

    def pread(descriptor, length, offset):
        lengths.append(length)
        return real(descriptor, length, offset)

    monkeypatch.setattr(pagefile.os, "pread", pread)
    overwrite(database(story), 0, bytes(100))
    _, rows = read(story)
    assert rows
    assert max(lengths) <= 65536  # the largest page that there is


def test_nothing_there_is_nothing_found(tmp_path):
    """An empty folder and an empty file hold no rows."""
    (tmp_path / "spool").mkdir()
    assert read(tmp_path / "spool")[1] == {}
    database(tmp_path / "spool").write_bytes(b"")
    assert read(tmp_path / "spool")[1] == {}


def test_links_are_not_followed(tmp_path):
    """What would lead out of the folder is not read."""
    (tmp_path / "secret").write_bytes(b"SQLite format 3\0")
    (tmp_path / "spool").mkdir()
    database(tmp_path / "spool").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        Salvage(tmp_path / "spool", is_ours)


# -- what is put into a new store --------------------------------------------------------------------------------------


def rebuilt(folder):
    store, made = MemoryStore(), Rebuilt()
    with salvage_of(folder, synced=True) as source:
        source.survey()
        rebuild(source, store, made)
    return store, made


def test_a_new_store_holds_what_the_old_one_held(story, tmp_path):
    """Rows, tags and nothing else, in commits of a bounded size."""
    expected = as_sqlite_reads(story, tmp_path)
    store, made = rebuilt(story)
    assert {key: (value, tag) for key, (value, tag) in store._rows.items()} == expected
    assert (sum(made.taken.values()), made.lost, made.stray, made.counted) == (len(expected), [], 0, True)


def test_a_row_that_fails_its_checksum_is_left_out(stories, tmp_path):
    """It is lost and says which records it held; its neighbours are taken."""
    folder = stories[False].copy(tmp_path / "state").folder / "spool"
    key = key_of(Table.SEGMENT, 18)
    ((value,),) = RealHarness.sql(_At(folder), "SELECT value FROM Cache WHERE key = ?", key)
    sql(folder, ("UPDATE Cache SET value = ? WHERE key = ?", value[:-1] + bytes([value[-1] ^ 1]), key))
    store, made = rebuilt(folder)
    (lost,) = made.lost
    assert (lost.key, lost.directory.first, lost.directory.last) == (key, 35, 36)
    assert made.numbers == {"cloud": [(35, 36)]}
    assert store.read(key) is None
    assert "1 segment lost" in str(made)


class _At:
    def __init__(self, folder):
        self.database = database(folder)


@pytest.mark.parametrize(
    ("table", "taken"), [(Table.SEAL, b"old"), (Table.GATE, None), (Table.REF, None), (Table.META, None)]
)
def test_an_older_version_is_taken_only_where_it_can_not_lie(table, taken, tmp_path, monkeypatch):
    """A row that is never changed may come from an older page; a gate, a reference or the meta row that is older than it says may not."""

    class Source:
        found = salvage.Found(missing=None)
        pages = type("Pages", (), {"log": type("Log", (), {"lost": 0})})

        def rows(self):
            key = key_of(table, 1)
            yield key, iter([Row(key, None, b"\xc1damaged", False), Row(key, None, pack(b"old"), True)])

    store, made = MemoryStore(), Rebuilt()
    rebuild(Source(), store, made)
    found = store.read(key_of(table, 1))
    assert found == (None if taken is None else pack(taken))
    assert len(made.lost) == (taken is None)


def test_the_spool_of_a_newer_agentd_is_not_rebuilt(tmp_path):
    """Damaged or not, it is the newer one's to look after."""
    store = Store(tmp_path / "spool", "full")
    store.commit([Put(key_of(Table.META, 0), encode_meta(Meta(format=FORMAT + 1)))], [])
    store.close()
    with pytest.raises(NewerFormat):
        rebuilt(tmp_path / "spool")


# -- whatever the damage -------------------------------------------------------------------------------------------------

NUMBERS = count()
CUTS = st.tuples(st.sampled_from(["db", "wal", "shm"]), st.just("cut"), st.integers(0, 10**6), st.just(0))
SPOTS = st.tuples(
    st.sampled_from(["db", "db", "wal", "shm"]),
    st.sampled_from(["rubbish", "zeros", "flip", "copy"]),
    st.integers(0, 10**6),
    st.sampled_from([1, 4, 60, 4096, 9000, 70_000]),
)
DAMAGE = st.lists(st.one_of(SPOTS, SPOTS, CUTS), min_size=1, max_size=5)
FILES = {"db": "cache.db", "wal": "cache.db-wal", "shm": "cache.db-shm"}


def hurt(content, how, at, size):
    at %= max(1, len(content))
    if how == "cut":
        del content[at:]
    elif how == "copy":  # one place over another: pages that are whole and in the wrong place
        end = min(len(content), at + size)
        content[at:end] = (content[-size:] + bytes(size))[: end - at]
    else:
        end = min(len(content), at + size)
        fill = {"rubbish": rubbish(end - at, at), "zeros": bytes(end - at)}
        content[at:end] = fill[how] if how in fill else bytes(byte ^ 1 for byte in content[at:end])


def damaged(story, folder, steps):
    folder.mkdir()
    contents = {}
    for name, file in FILES.items():
        path = story.folder / "spool" / file
        if path.exists():
            contents[name] = bytearray(path.read_bytes())
    for name, how, at, size in steps:
        if name in contents:
            hurt(contents[name], how, at, size)
    for name, content in contents.items():
        (folder / FILES[name]).write_bytes(content)
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(killed=st.booleans(), steps=DAMAGE)
def test_no_damage_gets_a_wrong_row_into_the_queue(stories, tmp_path, killed, steps):
    """Promise 1: scrambled, zeroed, shifted, cut off: nothing raises, and every segment that comes out is one that went in."""
    story = stories[killed]
    folder = damaged(story, tmp_path / f"example-{next(NUMBERS)}", steps)
    store, _ = rebuilt(folder)
    for key, (value, _tag) in store._rows.items():
        if key >> 48 == Table.SEGMENT:
            _, entries = segments.decode(key, value)
            assert all(story.bodies.get(e.number, e.body) == e.body for e in entries)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pages=st.sets(st.integers(8, 400), max_size=12), zeros=st.booleans(), seed=st.integers(0, 2**32))
def test_what_no_damage_has_touched_is_found(stories, tmp_path, pages, zeros, seed):
    """Promise 1: as long as the tree leads to it, every segment whose own pages are whole is taken, whatever lies beside it."""
    story = stories[False]
    folder = damaged(story, tmp_path / f"example-{next(NUMBERS)}", [])
    with salvage_of(folder, synced=True) as source:
        source.survey()
        own = {key: _pages_of(source, place) for place, key in enumerate(source._keys)}
        hurtable = {n for n in pages if n <= source.pages.count and source.pages.kind(n) != 5}
    for number in hurtable:
        overwrite(database(folder), (number - 1) * PAGE, bytes(PAGE) if zeros else rubbish(PAGE, seed + number))
    store, made = rebuilt(folder)
    whole = {key for key, used in own.items() if not used & hurtable}
    assert whole <= store._rows.keys()
    if made.counted:
        assert {lost.key for lost in made.lost} == own.keys() - store._rows.keys()


def _pages_of(source, place):
    """The pages that hold a row: its leaf's and its chain's."""
    used = {source._page[place]}
    cell = fmt.leaf_cell(source.pages[source._page[place]], source._at[place])
    left, following = cell.size - len(cell.local), cell.overflow
    while left > 0:
        used.add(following)
        left -= PAGE - 4
        following = int.from_bytes(source.pages[following][:4], "big")
    return used
