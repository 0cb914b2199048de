"""References: from introduced to known or dead, whose they are, and how long they live."""

import pytest

from agentd.queued import DEAD, GATE_LANE, INTRODUCED, KNOWN, NO_GATE, Ref
from agentd.spool.refs import Refs, encode


def ref(local_id="r1", destination="cloud", number=1, kind="run", touched_us=0):
    return Ref(destination, kind, local_id, "billing", 1000, number, touched_us=touched_us)


@pytest.fixture
def refs():
    return Refs()


def test_a_platform_names_a_reference(refs):
    """A reference is introduced, then known by the platform's id, and the change is there for the next commit."""
    made = refs.introduce(ref())
    assert (made.state, refs.changed) == (INTRODUCED, {})
    assert refs.learn("cloud", "run", "r1", "P-1", 5) is made
    assert (made.state, made.platform_id, made.touched_us) == (KNOWN, "P-1", 5)
    assert refs.changed == {made.row: made}
    assert refs.learn("cloud", "run", "unknown", "P-1", 5) is None
    refs.bury("cloud", 1)
    assert made.state == KNOWN


def test_a_reference_is_found_by_what_the_platform_calls_it(refs):
    """At its destination and for its kind; two of one name are both found, and one that is gone is not."""
    one, two = refs.introduce(ref("r1")), refs.introduce(ref("r2", number=2))
    refs.learn("cloud", "run", "r1", "P-1", 5)
    refs.learn("cloud", "run", "r2", "P-1", 5)
    assert refs.named("cloud", "run", "P-1") == [one, two]
    assert refs.named("cloud", "decision", "P-1") == refs.named("other", "run", "P-1") == []
    refs.learn("cloud", "run", "r2", "P-2", 6)
    assert (refs.named("cloud", "run", "P-1"), refs.named("cloud", "run", "P-2")) == ([one], [two])
    again = Refs()
    assert again.restore(iter([(one.row, encode(one))])) == []
    assert [found.local_id for found in again.named("cloud", "run", "P-1")] == ["r1"]
    refs.forget("cloud")
    assert refs._by_name == {}


def test_whose_a_thing_is_is_known_by_either_name(refs):
    """Owners are found by the platform's id, too, but where somebody introduced that very id."""
    one = refs.introduce(ref("r1"))
    refs.learn("cloud", "run", "r1", "P-1", 5)
    assert refs.owners("run", "P-1") == [one]
    assert refs.owners("decision", "P-1") == []
    elsewhere = refs.introduce(Ref("local", "run", "P-1", "sales", 7, 2))
    assert refs.owners("run", "P-1") == [elsewhere, one]
    here = refs.introduce(Ref("cloud", "run", "P-1", "sales", 7, 3))
    assert refs.owners("run", "P-1") == [elsewhere, here]


@pytest.mark.parametrize(("uid", "agent"), [(7, "billing"), (7, ""), (1000, "sales")])
def test_what_is_anothers_at_the_platform_is_not_learned(refs, uid, agent):
    """Who guesses the key under which another began a thing gets a dead reference; the first keeps what is his."""
    one = refs.introduce(Ref("cloud", "run", "r1", "billing", 1000, 1))
    refs.learn("cloud", "run", "r1", "P-1", 5)
    thief = refs.introduce(Ref("cloud", "run", "mine", agent, uid, 2))
    assert refs.learn("cloud", "run", "mine", "P-1", 6) is thief
    assert (thief.state, thief.platform_id, thief.row in refs.changed) == (DEAD, None, True)
    assert refs.named("cloud", "run", "P-1") == [one]
    again = refs.introduce(Ref("cloud", "run", "r1 again", "", 1000, 3))
    refs.learn("cloud", "run", "r1 again", "P-1", 7)
    assert (again.state, again.platform_id) == (KNOWN, "P-1")


def test_a_repeated_introduction_changes_nothing(refs):
    """The first introduction stands; after a dead one a new introducer may try."""
    made = refs.introduce(ref())
    assert refs.introduce(ref(number=2)) is made
    refs.bury("cloud", 1)
    again = refs.introduce(ref(number=3))
    assert again is not made
    assert again.row == made.row
    assert refs.get("cloud", "run", "r1") is again
    assert refs.owners("run", "r1") == [again]


def test_the_introducer_is_found_by_its_number(refs):
    """What a refused record introduced is dead whatever lane it was in: a decision of a run does not bury the run."""
    run = refs.introduce(ref())
    decision = refs.introduce(ref("d1", number=2, kind="decision"))
    refs.bury("cloud", 2)
    refs.bury("cloud", 77)
    assert (run.state, decision.state) == (INTRODUCED, DEAD)


def test_a_withdrawn_reference_leaves_nothing(refs):
    """Records that were refused for want of room leave no reference behind."""
    made = refs.introduce(ref())
    refs.changed[made.row] = made
    refs.withdraw(made)
    assert (len(refs), refs.owners("run", "r1"), refs.changed, refs.removed) == (0, [], {}, [made.row])
    refs.withdraw(made)
    refs.bury("cloud", 1)
    assert refs.changed == {}


def test_references_are_apart_by_destination(refs):
    """The same id may be known to one platform and not to the other; owners are found at both."""
    refs.introduce(ref())
    refs.introduce(ref(destination="local"))
    refs.learn("cloud", "run", "r1", "P-1", 5)
    assert refs.get("local", "run", "r1").platform_id is None
    assert {r.destination for r in refs.owners("run", "r1")} == {"cloud", "local"}


def test_counts_are_written_now_and_then(refs):
    """What of a run was delivered reaches the disk with the next tick, and says that the run is in use."""
    made = refs.introduce(ref())
    refs.count("cloud", "run:r1", 7, 99)
    refs.count("cloud", "run:unknown", 7, 99)
    assert refs.changed == {}
    assert refs.write_counts()
    assert not refs.write_counts()
    assert (made.delivered, made.touched_us, refs.changed) == (7, 99, {made.row: made})


def test_references_outlive_their_run_and_whatever_needs_them(refs):
    """References go after `runs.keep`, but not while a dead letter of their lane may be replayed."""
    refs.introduce(ref("old", touched_us=1))
    refs.introduce(ref("dead", touched_us=1))
    refs.introduce(ref("new", touched_us=10))
    assert refs.prune(lambda at: at < 10, {("cloud", "run:dead"): 1}) == 1
    assert sorted(r.local_id for r in refs) == ["dead", "new"]
    assert refs.prune(lambda at: at < 10) == 1


def test_an_ended_run_is_marked_once(refs):
    """The end of a run is kept, so that what comes after it can be told apart."""
    made = refs.introduce(ref())
    refs.close("cloud", "run", "r1")
    refs.close("cloud", "run", "unknown")
    assert made.ended
    refs.changed.clear()
    refs.close("cloud", "run", "r1")
    assert refs.changed == {}


def test_references_come_back(refs):
    """After a restart references are what they were, those that can't be read are named, and rows are not used twice."""
    made = refs.introduce(ref())
    refs.learn("cloud", "run", "r1", "P-1", 5)
    restored = Refs()
    assert restored.restore(iter([(4, encode(made)), (5, b"\xc1")])) == [5]
    again = restored.get("cloud", "run", "r1")
    assert (again.platform_id, again.state, again.row) == ("P-1", KNOWN, 4)
    assert restored.introduce(ref("r2")).row == 5


def test_what_no_agentd_gave_is_dead(refs):
    """§4: an id that a client made up for a gate without agentd is no platform's; somebody who introduces it all the same may."""
    found = refs.find("cloud", "action", f"{NO_GATE}1")
    assert (found.state, found.lane) == (DEAD, GATE_LANE)
    assert refs.find("cloud", "action", "act_1") is refs.get("cloud", "action", f"{NO_GATE}1") is None
    made = refs.introduce(ref(f"{NO_GATE}1", kind="action"))
    assert refs.find("cloud", "action", f"{NO_GATE}1") is made


def test_a_destination_can_be_forgotten(refs):
    """Another platform under the same name knows nothing of what the old one called things."""
    refs.introduce(ref())
    refs.introduce(ref(destination="local"))
    assert refs.forget("cloud") == 1
    assert [r.destination for r in refs] == ["local"]
