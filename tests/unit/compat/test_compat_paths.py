"""From a target to a door and back out: no spelling leads anywhere that no door names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.compat.paths import MAX_SEGMENT, MAX_TARGET, BadTarget, Doors, path_of, read_target
from agentd.standin import Does, Door

GET = Door("GET", "/api/things/{thing_id}", Does.READ)
LIST = Door("GET", "/api/things/list", Does.READ)
DECIDE = Door("POST", "/api/things/{thing_id}/decide", Does.ADMIN)
ANY = Door("POST", "/api/rpc/{method}", Does.ADMIN)
READ = Door("POST", "/api/rpc/things_list", Does.READ)
DOORS = Doors([GET, LIST, DECIDE, ANY, READ])


def find(method, target):
    segments, _ = read_target(target)
    return DOORS.find(method, segments)


@pytest.mark.parametrize(
    ("method", "target", "door", "named"),
    [
        ("GET", "/dest/api/things/t-1", GET, {"thing_id": "t-1"}),
        ("GET", "/dest/api/things/t%3A1%20x", GET, {"thing_id": "t:1 x"}),
        ("GET", "/dest/api/things/list", LIST, {}),
        ("GET", "/dest/%61pi/things/list?x=1", LIST, {}),
        ("POST", "/dest/api/things/t/decide", DECIDE, {"thing_id": "t"}),
        ("POST", "/dest/api/rpc/things_list", READ, {}),
        ("POST", "/dest/api/rpc/things_delete", ANY, {"method": "things_delete"}),
    ],
)
def test_a_call_finds_its_door(method, target, door, named):
    """Method and every segment have to fit; of two doors the one that says more counts."""
    assert find(method, target) == (door, named)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/dest/api/things/list"),
        ("GET", "/dest/api/things"),
        ("GET", "/dest/api/things/t/decide"),
        ("get", "/dest/api/things/t"),
        ("GET", "/dest/API/things/t"),
        ("POST", "/dest/api/rpc"),
        ("GET", "/dest"),
        ("GET", "/dest/api/things/t/decide/more"),
    ],
)
def test_what_no_door_names_does_not_pass(method, target):
    """What is not listed is closed."""
    assert find(method, target) is None


@pytest.mark.parametrize(
    "target",
    [
        "/dest/api/things/..",
        "/dest/api/things/../rpc/things_delete",
        "/dest/api/things/./t",
        "/dest/api/things/%2e%2e",
        "/dest/api/things/%2E%2E/x",
        "/dest/api/things/.%2e",
        "/dest/api/things/t%2fdecide",
        "/dest/api/things/t%2Fdecide",
        "/dest/api/things/t%5cdecide",
        "/dest/api/things/t\\decide",
        "/dest/api/things/%252e%252e",
        "/dest/api/things/..;x",
        "/dest/api/things/.;",
        "/dest/api/things/;x",
        "/dest/api/things/t%252fdecide",
        "/dest//api/things/t",
        "/dest/api/things/t/",
        "//other/dest/api/things/t",
        "http://other/dest/api/things/t",
        "/dest/api/things/t%00",
        "/dest/api/things/t%0d%0ahost:x",
        "/dest/api/things/t#x",
        "/dest/api/things/%ff",
        "/dest/api/things/" + "t" * (MAX_SEGMENT + 1),
        "/dest/api/things/t?" + "x" * MAX_TARGET,
        "/dest/api/things/t?x=%ff",
        "/dest/api/things/t?" + "&".join("x=1" for _ in range(101)),
        "*",
        "",
    ],
)
def test_a_path_that_climbs_or_hides_something_is_refused(target):
    """Dots, double slashes, encoded separators, other hosts, control characters: turned away before any door is looked for."""
    with pytest.raises(BadTarget):
        read_target(target)


def test_what_goes_out_is_the_doors_own_path():
    """The template with its segments quoted anew, and the query encoded anew."""
    out = path_of(GET, {"thing_id": "a/b?c=d&e f;ü"}, [("q", "x&y=z"), ("q", "")])
    assert out == "/api/things/a%2Fb%3Fc%3Dd%26e%20f%3B%C3%BC?q=x%26y%3Dz&q="


@pytest.mark.parametrize("bad", ["", ".", "..", "..;x"])
def test_an_id_that_would_climb_stays_here(bad):
    """A platform's own id is put into a path as well: it may not change where that leads."""
    with pytest.raises(BadTarget):
        path_of(GET, {"thing_id": bad}, [])


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_no_segment_leaves_its_place(text):
    """Whatever a segment says, what goes out has as many segments as the door, and none of them climbs."""
    if text.partition(";")[0] in {"", ".", ".."}:
        return
    out = path_of(DECIDE, {"thing_id": text}, [])
    parts = out.split("/")
    assert len(parts) == len(DECIDE.path.split("/"))
    assert (parts[-1], out.count("?"), out.count("#"), out.count("\\")) == ("decide", 0, 0, 0)


@given(st.text(max_size=60))
def test_any_target_is_read_or_refused(text):
    """Nothing that a request line can hold makes the reader fall."""
    try:
        segments, _ = read_target("/dest/" + text)
    except BadTarget:
        return
    assert all(segment not in {"", ".", ".."} and "/" not in segment for segment in segments)
