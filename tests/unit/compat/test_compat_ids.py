"""Ids that are the same when the same is asked twice."""

from __future__ import annotations

from uuid import UUID

from agentd.compat.ids import REMEMBERED_US, Caller, namings

ME = Caller(1000, -1, "dest")
NOW = 1_767_225_600_000_000
MINUTE = 60 * 10**6


def spans(now_us):
    return [(now_us - REMEMBERED_US, now_us)]


def ids_at(now_us, *, caller=ME, path="/p", body=b"{}", key="", count=2):
    return [naming.record_ids(count, key) for naming in namings(caller, path, body, spans(now_us))]


def test_a_repeat_within_ten_minutes_finds_the_ids_of_the_first():
    """The first call's ids are among those of every call of the next ten minutes, and not of one after eleven."""
    first = ids_at(NOW)[0]
    for later_us in (0, 1, MINUTE, 10 * MINUTE - 1, 10 * MINUTE):
        assert first in ids_at(NOW + later_us)
    assert first not in ids_at(NOW + 11 * MINUTE)


def test_other_callers_paths_and_bodies_have_other_ids():
    """Uid, token, destination, path and body all count, and so does the record's place."""
    others = [
        ids_at(NOW),
        ids_at(NOW, caller=Caller(1001, -1, "dest")),
        ids_at(NOW, caller=Caller(1000, 0, "dest")),
        ids_at(NOW, caller=Caller(1000, -1, "other")),
        ids_at(NOW, path="/q"),
        ids_at(NOW, body=b"{ }"),
        ids_at(NOW, key="k"),
    ]
    flat = [of for found in others for of in found[0]]
    assert len(set(flat)) == len(flat) == 14


def test_words_can_not_be_shifted_from_one_part_to_the_next():
    """Parts are told apart by their lengths: no two callers come to one id by moving a character."""
    assert Caller(1, 0, "ab").id_for("c") != Caller(1, 0, "a").id_for("bc") != Caller(10, 0, "a").id_for("bc")


def test_under_a_key_time_and_body_do_not_count():
    """The SDK's own idempotency field names the call for good."""
    assert ids_at(NOW, key="k")[0] == ids_at(NOW + 10**12, key="k", body=b"[]")[0]


def test_ids_that_are_handed_out_are_uuids():
    """The same for the same word, for ever; without a word this call's own."""
    now, later = namings(ME, "/p", b"{}", spans(NOW)), namings(ME, "/p", b"{}", spans(NOW + 5 * MINUTE))
    assert str(UUID(now[0].make_id("run x"))) == now[0].make_id("run x") == later[0].make_id("run x")
    assert (
        now[0].make_id("") != later[0].make_id("") == namings(ME, "/p", b"{}", spans(NOW + 5 * MINUTE))[0].make_id("")
    )
    assert now[0].make_id("") == later[5].make_id("")
    assert UUID(now[0].make_id("")).version == 5
