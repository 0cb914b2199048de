"""The row format: what goes in comes out, and what was changed on the way is never guessed at."""

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spool_kit import entry

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.spool import segments

VALUE, TAG, DIRECTORY = segments.encode(
    "cloud", [entry(3, "run:a"), entry(5, "run:b", body=b'{"x":1}'), entry(9, "run:a")]
)

entries_of_one_class = st.lists(
    st.builds(
        Entry,
        number=st.integers(1, 2**63),
        record_id=st.binary(min_size=16, max_size=16),
        lane=st.text(max_size=20).map(lambda text: "run:" + text),
        kind=st.sampled_from(["event", "span", "run.start"]),
        loss=st.just(LossClass.INFO),
        source=st.builds(Source, st.text(max_size=5), st.integers(0, 2**32), st.integers(0, 2**22), st.just("lines")),
        admitted_us=st.integers(0, 2**62),
        body=st.binary(max_size=50),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda e: e.number,
).map(lambda made: sorted(made, key=lambda e: e.number))


@given(made=entries_of_one_class)
def test_a_segment_gives_back_what_was_put_in(made):
    """Promise 1: every column of every record survives the way to the disk and back, and the directory tells the truth."""
    value, tag, directory = segments.encode("cloud", made)
    name, found = segments.decode(7, value)
    assert name == "cloud"
    for index, each in enumerate(made):
        each.segment, each.index = 7, index
    assert found == made
    assert segments.decode_directory(7, tag) == directory
    assert (directory.first, directory.last, directory.count) == (made[0].number, made[-1].number, len(made))
    assert directory.admitted_us == min(e.admitted_us for e in made)
    assert sum(directory.kinds.values()) == len(made)
    assert list(directory.lane_hashes()) == sorted({segments.lane_hash(e.lane) for e in made})


@given(place=st.integers(0, len(VALUE) - 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_found(place, bit):
    """A row with any bit changed raises SpoolDamaged; nothing of it is believed."""
    damaged = bytearray(VALUE)
    damaged[place] ^= 1 << bit
    with pytest.raises(SpoolDamaged, match="segment 0x7"):
        segments.decode(7, bytes(damaged))


@given(place=st.integers(0, len(TAG) - 1), bit=st.integers(0, 7))
def test_a_changed_bit_of_a_directory_is_found(place, bit):
    """A directory with any bit changed raises SpoolDamaged: a wrong count or lane would lose records unseen."""
    damaged = bytearray(TAG)
    damaged[place] ^= 1 << bit
    with pytest.raises(SpoolDamaged, match="directory"):
        segments.decode_directory(7, bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 7, 8, len(VALUE) // 2, len(VALUE) - 1])
def test_a_truncated_row_is_found(length):
    """A row that was cut short, down to nothing, raises SpoolDamaged."""
    with pytest.raises(SpoolDamaged):
        segments.decode(7, VALUE[:length])


def test_another_version_is_named():
    """A row of a later format says which format it has."""
    with pytest.raises(SpoolDamaged, match="format 2, this agentd knows 1"):
        segments.decode(7, VALUE[:3] + b"\2" + VALUE[4:])


@pytest.mark.parametrize("tag", [None, b"", b"abc", zlib.crc32(b"\x90").to_bytes(4, "little") + b"\x90"])
def test_a_tag_that_is_no_directory_is_found(tag):
    """A missing, short or foreign tag raises SpoolDamaged, also one with a right checksum."""
    with pytest.raises(SpoolDamaged, match="directory"):
        segments.decode_directory(7, tag)


def rewritten(**changes):
    """The row with other columns and a right checksum, as a defect of ours would write it."""
    fields = msgspec.msgpack.decode(VALUE[8:])
    for place, change in changes.items():
        fields[int(place[1:])] = change
    body = msgspec.msgpack.encode(fields)
    return VALUE[:4] + zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "changes",
    [{"_3": b"x" * 32}, {"_11": b"\0\0\0"}, {"_5": b"\xff" * 12}, {"_12": b"longer than it was"}, {"_2": b""}],
    ids=["ids too short", "no whole number of lengths", "a lane that is not there", "bodies too long", "no numbers"],
)
def test_columns_that_disagree_are_found(changes):
    """Columns of different lengths or that point nowhere raise SpoolDamaged, whatever the checksum says."""
    with pytest.raises(SpoolDamaged):
        segments.decode(7, rewritten(**changes))


def test_segments_are_cut_at_512_kib():
    """Records are cut into segments of at most 512 KiB, in order and none left out."""
    made = [entry(number, body=bytes(100 * 1024)) for number in range(1, 13)]
    parts = list(segments.split(made))
    assert [[e.number for e in part] for part in parts] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    exact = [entry(1, body=bytes(512 * 1024 - 10)), entry(2, body=bytes(10)), entry(3, body=b"x")]
    assert [len(part) for part in segments.split(exact)] == [2, 1]
    assert list(segments.split([])) == []


def test_a_larger_record_stands_alone():
    """A record above 512 KiB has a segment of its own; its neighbours are not dragged along."""
    made = [entry(1, body=b"x"), entry(2, body=bytes(600 * 1024)), entry(3, body=b"x")]
    assert [[e.number for e in part] for part in segments.split(made)] == [[1], [2], [3]]


def test_a_lane_hash_is_the_same_in_every_process():
    """Lane hashes are on disk, so they may not hang on PYTHONHASHSEED or the machine."""
    assert segments.lane_hash("run:a") == 0xD406F35BD93AAFA9
