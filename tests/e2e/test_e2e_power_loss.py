"""Power cuts: what a disk may hold of a real daemon's work at some moment, and what the next start makes of it.

The daemon runs above a layer that records every operation on its files (powerloss.c); powerloss_kit.py makes the disks and says
which model they follow. The story is the same for both settings of `spool.sync`: a first start, dead letters, an outage, lost
answers, checkpoints of the log while running, kills in the middle of a load, gates, a clean stop, another start.
"""

import random
from collections import defaultdict
from typing import NamedTuple

import pytest
from harness import Frames, Producer, audit, wait_for
from powerloss_kit import (
    COMPILER,
    STATE,
    Cuts,
    Disk,
    Entry,
    Everything,
    Fate,
    Name,
    Op,
    Photo,
    Recording,
    Request,
    Torn,
    look,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the layer under the daemon with"),
]

REFUSED = 422


@pytest.fixture(scope="module")
def full():
    """The story under `sync = "full"`."""
    yield from recorded("full")


@pytest.fixture(scope="module")
def normal():
    """The story under `sync = "normal"`."""
    yield from recorded("normal")


def recorded(sync):
    recording = Recording(sync)
    try:
        story(recording)
        recording.end()
        yield recording
    finally:
        recording.close()


def story(recording):
    daemon, ledger, platform = recording.daemon, recording.ledger, recording.world.platform
    platform.refuse("poison", REFUSED)
    recording.photograph()
    daemon.start()
    small_runs(recording)
    outage(recording)
    load(recording)
    daemon.drained()
    recording.spend(3)
    assert daemon.stop() == 0
    recording.photograph()
    daemon.start()
    recording.spend(4)
    platform.down()
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("h"), *ledger.events_of("h", 10)])
    recording.photograph()
    daemon.kill()
    platform.up()


def small_runs(recording):
    """Two runs with a bad record each, from their start to their end, and a gate."""
    ledger = recording.ledger
    with Frames(recording.daemon) as client:
        for run in "ab":
            client.deliver(ledger, [ledger.start(run)])
            for _ in range(8):
                client.deliver(ledger, ledger.events_of(run, 5, size=200))
            client.deliver(ledger, [ledger.event(run, word="poison")])
            client.deliver(ledger, [ledger.end(run)])
    recording.spend(1)
    assert recording.daemon.drained()["dead"] == 2


def outage(recording):
    """Runs that wait, then go out while answers are lost, until a kill."""
    daemon, ledger, platform = recording.daemon, recording.ledger, recording.world.platform
    platform.down()
    with Frames(daemon) as client:
        for number in range(20):
            for run in "cde":
                starts = [] if number else [ledger.start(run)]
                client.deliver(ledger, starts + ledger.events_of(run, 20, size=400))
    recording.photograph()
    platform.faults("cut,rate=0.3,path=/api/ingest/v1/events")
    before = platform.state().events
    platform.up()
    wait_for(lambda: platform.state().events > before + 300)
    recording.photograph()
    daemon.kill()


def load(recording):
    """A producer that does not stop for a kill, a gate, and the end of the runs before."""
    daemon, ledger, platform = recording.daemon.start(), recording.ledger, recording.world.platform
    events = [ledger.event("fg"[number % 2], size=600) for number in range(2400)]
    ends = [ledger.end("f"), ledger.end("g", "run.fail", error_message="no more")]
    producer = Producer(daemon, ledger, [ledger.start("f"), ledger.start("g"), *events, *ends], frame=40)
    wait_for(lambda: producer.acked > 20)
    recording.photograph()
    daemon.kill()
    daemon.start()
    recording.spend(2)
    producer.join()
    platform.faults()
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.end(run) for run in "cde"])


# -- what is owed ------------------------------------------------------------------------------------------------------


class Gone(NamedTuple):
    """What was said before a cut and is not so after it."""

    lost: list[Name]  # acknowledged, and neither kept nor at the platform
    unsealed: list[Request]  # may have reached the platform, and would go again under another key or as other bytes
    forgotten: set[float]  # gates that had left, or whose verdict was heard


def judge(recording, found, position, kept):
    """Hold what a start found against what was said before the cut, when the log was `position` long.

    What was said when it was `kept` long is owed; what is gone of the rest is given back. In any case the store is whole, the
    books balance, and what is there was sent, stands in order, and is all that came before the first thing that is not there.
    """
    assert found.errors == []
    assert found.adds_up
    present = {*found.live, *found.dead}
    assert len(found.live) + len(found.dead) == len(present)
    assert present <= recording.ledger.made.keys()
    in_order(found.live)
    requests = [request for request in recording.requests if request.position <= position]
    somewhere = present.union(*(request.names for request in requests if request.status < 300))
    acked = [one for one in recording.ledger.acked if one.position <= position]
    lost = [(one.position, name) for one in acked for name in one.names if name not in somewhere]
    assert [name for when, name in lost if when <= kept] == []
    outlived = [name for one in acked if lost and one.position > lost[0][0] for name in one.names if name in present]
    assert not outlived, f"{lost[0][1]} is lost, and of what came later not all: {outlived[:5]}"
    return Gone(
        [name for _, name in lost], unsealed(found, requests, kept), forgotten(recording, found, position, kept)
    )


def in_order(live):
    """Each run's start, events and end by number."""
    ranks = defaultdict(list)
    for kind, run, number in live:
        ranks[run].append(-1 if kind == "run.start" else number if kind == "event" else 10**9)
    for run, order in ranks.items():
        assert order == sorted(order), f"{run}: {order}"


def unsealed(found, requests, kept):
    """Promise 4: what may have reached the platform and has not ended waits under its seal, with the bytes that were sent."""
    newest = {name: request for request in requests for name in request.names}
    waiting = {newest[name] for name in found.live if name in newest}
    seals = {(seal.key, seal.sha256) for seal in found.seals.values()}
    gone = [one for one in waiting if one.status != REFUSED and (one.key, one.sha256) not in seals]
    assert [one for one in gone if one.position <= kept] == []
    return gone


def forgotten(recording, found, position, kept):
    """Section 4: what has left is on record as having left, and what the agent heard is the verdict on record."""
    gone = []
    for when, amount in recording.intents:
        gate = found.gates.get(f"spend-{amount}")
        if when <= position and (gate is None or gate.step == "asked"):
            gone.append((when, amount))
    for when, amount, answer in recording.asked:
        gate = found.gates.get(f"spend-{amount}")
        if when <= position and (gate is None or (gate.step, gate.word) != ("final", answer["verdict"])):
            gone.append((when, amount))
    assert [amount for when, amount in gone if when <= kept] == []
    return {amount for _, amount in gone}


def moments(recording, cuts, die):
    """Cuts behind the first acknowledgement: at answers, before syncs, within checkpoints, round the log's end, anywhere."""
    first = cuts.of(recording.ledger.acked[0].position)
    syncs = cuts.before(Op.SYNC, "-wal")
    edges = [*cuts.before(Op.UNLINK, "-wal"), *cuts.before(Op.OPEN, "-wal"), *cuts.before(Op.SYNC, "/spool")]
    answers = [cuts.of(one.position) for one in [*recording.ledger.acked, *recording.asked]]
    chosen = {
        *die.sample(answers, 25),
        *(cuts.of(one.position) for one in recording.asked),
        *die.sample(syncs, min(len(syncs), 15)),
        *die.sample(cuts.before(Op.WRITE, "/cache.db"), 12),
        *(cut + die.randint(0, 2) for cut in die.sample(edges, 15)),
        *die.choices(range(first, len(cuts.positions)), k=15),
    }
    return sorted(cut for cut in chosen if cut >= first)


# -- the tests -----------------------------------------------------------------------------------------------------------


def test_the_layer_misses_nothing(full):
    """The recorded operations alone make the real folder again, byte for byte; only SQLite's -shm is written without a call."""
    cuts = Cuts(full)
    cuts.advance(len(cuts.entries))
    shared = f"{STATE}/spool/cache.db-shm"
    assert cuts.disk.mapped() == {shared}
    with cuts.rebuilt(Everything()) as made:
        assert files(made, shared) == files(full.root, shared)
    assert len(cuts.before(Op.UNLINK, "-wal")) > 3  # logs that were ended in order
    headers = [e for e in cuts.entries if e.path.endswith("-wal") and e.op is Op.WRITE and e.offset == 0]
    assert len(headers) > len({(e.pid, e.fd) for e in headers})  # and one that was begun anew while the daemon ran
    assert full.daemon.faults_in_log() == []


def files(root, but):
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items() if name != but}


def test_the_disk_forgets_what_was_not_synced(tmp_path):
    """The model: bytes last by their file's sync, names by their folder's, and of the rest any sector may be left."""
    disk = Disk()
    for step in (
        (Op.OPEN, 3, 0o102, 0, 0, "a", b""),
        (Op.WRITE, 3, 0, 0, 1024, "", b"1" * 1024),
        (Op.SYNC, 3, 0, 0, 0, "", b""),
        (Op.WRITE, 3, 0, 0, 1024, "", b"2" * 1024),
        (Op.OPEN, 4, 0o102, 0, 0, "b", b""),
        (Op.OPEN, 5, 0, 0, 0, "", b""),
    ):
        disk.apply(made(*step))
    disk.rebuild(tmp_path / "early", Fate())
    assert files(tmp_path / "early", "") == {}
    disk.apply(made(Op.SYNC, 5, 0, 0, 0, "", b""))
    disk.apply(made(Op.UNLINK, -1, 0, 0, 0, "b", b""))
    disk.rebuild(tmp_path / "none", Fate())
    assert files(tmp_path / "none", "") == {"a": b"1" * 1024, "b": b""}
    disk.rebuild(tmp_path / "all", Everything())
    assert files(tmp_path / "all", "") == {"a": b"2" * 1024}
    left = set()
    for seed in range(300):
        disk.rebuild(tmp_path / f"{seed}", Torn(seed))
        found = files(tmp_path / f"{seed}", "")
        left.add((found["a"][:512], found["a"][512:], "b" in found))
    assert left == {(x * 512, y * 512, b) for x in (b"1", b"2") for y in (b"1", b"2") for b in (True, False)}


def made(op, fd, flags, offset, size, path, data):
    return Entry(op, 1, fd, flags, offset, size, path, data, 0)


def test_full_keeps_what_was_acknowledged(full):
    """Promises 1, 2, 4, 8: whatever the disk has left of what was not synced, nothing that anybody was told is lost or changed."""
    cuts, die = Cuts(full), random.Random(20)
    chosen = moments(full, cuts, die)
    assert len(chosen) >= 70
    for number, cut in enumerate(chosen):
        cuts.advance(cut)
        position = cuts.positions[cut]
        for fate in (Fate(), Torn(die.getrandbits(32)), *([] if number % 4 else [Everything()])):
            with cuts.rebuilt(fate) as disk:
                found = look(disk / STATE, "full")
                assert judge(full, found, position, position) == ([], [], set()), f"cut {cut}, {fate}"


def test_a_cut_within_the_first_start_leaves_a_spool_that_opens(full):
    """Before the first answer there is nothing to lose: whatever is left opens, or is set aside and begun anew."""
    cuts, die = Cuts(full), random.Random(21)
    first = cuts.of(full.ledger.acked[0].position)
    for cut in sorted({*range(60), *die.sample(range(first), 40)}):
        cuts.advance(cut)
        for fate in (Everything(), Torn(die.getrandbits(32))):
            with cuts.rebuilt(fate) as disk:
                found = look(disk / STATE, "full")
                assert set(found.live) <= full.ledger.made.keys()
                assert found.adds_up
                assert not found.errors or (disk / STATE / "quarantine").exists(), found.errors


def test_a_daemon_begins_where_a_first_start_was_cut(full):
    """The real daemon takes and delivers records where the power went within its predecessor's first start."""
    cuts = Cuts(full)
    [create, *_] = cuts.before(Op.WRITE, "/cache.db")  # it has a name and no byte
    cuts.advance(create)
    with cuts.rebuilt(Everything(), full.world.folder) as disk:
        assert (disk / STATE / "spool" / "cache.db").read_bytes() == b""
        daemon = full.restart(Photo(cuts.positions[create], full.photos[0].platforms), disk)
        daemon.expected.add("quarantine")
        ledger = full.world.ledger
        with Frames(daemon) as client:
            assert client.deliver(ledger, ledger.whole_run("new", 10)) == {}
        settle(full, daemon)


def test_a_daemon_delivers_after_a_power_cut(full):
    """Promises 1, 2, 4, 7, 8: the real daemon, started on what is left, delivers all that was acknowledged, once and in order."""
    cuts, die = Cuts(full), random.Random(22)
    for number, photo in enumerate(full.photos[1:]):
        cuts.advance(cuts.of(photo.position))
        with cuts.rebuilt(Fate() if number % 2 else Torn(die.getrandbits(32)), full.world.folder) as disk:
            daemon = full.restart(photo, disk)
            assert daemon.balanced()
            asked_again(full, daemon, photo)
            settle(full, daemon)


def asked_again(recording, daemon, photo):
    """Section 4: a gate whose verdict was heard is not asked again."""
    before = len(recording.treasury.noted)
    for when, amount, heard in recording.asked:
        if when <= photo.position:
            answer = recording.ask(daemon, amount)
            assert answer == {**heard, "repeated": True}
    assert len(recording.treasury.noted) == before


def settle(recording, daemon):
    """All is delivered, the platform holds what was acknowledged, and the daemon ends well."""
    assert daemon.drained()["shed"] == 0
    audit(recording.world.ledger, recording.world.platform, daemon.dead_letters(), 0)
    assert daemon.stop() == 0
    assert daemon.faults_in_log() == []


def test_normal_loses_the_newest_commits_and_nothing_else(normal):
    """`sync = "normal"`: lost is what was acknowledged since the log's last sync, from some commit on; what is left is whole."""
    cuts, die = Cuts(normal), random.Random(23)
    risks = []
    for number, cut in enumerate(moments(normal, cuts, die)[::2]):
        cuts.advance(cut)
        kept = synced(cuts, cut)
        for fate in (Torn(die.getrandbits(32)), Fate() if number % 4 else Everything()):
            with cuts.rebuilt(fate) as disk:
                gone = judge(normal, look(disk / STATE, "normal"), cuts.positions[cut], kept)
            if type(fate) is Everything:
                assert gone == ([], [], set())
            risks.append(gone)
    assert any(gone.lost for gone in risks)
    assert any(gone.unsealed for gone in risks)
    assert any(gone.forgotten for gone in risks)


def synced(cuts, cut):
    """How long the recording was when SQLite's log was last synced."""
    behind = [before + 1 for before in cuts.before(Op.SYNC, "-wal") if before < cut]
    return cuts.positions[max(behind, default=0)]


def test_a_daemon_goes_on_after_normal_lost_its_newest(normal):
    """`sync = "normal"`: the real daemon starts on what is left and delivers it in order; its books balance."""
    cuts = Cuts(normal)
    outage, load = normal.photos[1], normal.photos[3]
    for photo in (outage, load):
        cut = cuts.of(photo.position)
        cuts.advance(cut)
        kept = normal.ledger.at(synced(cuts, cut))
        with cuts.rebuilt(Fate(), normal.world.folder) as disk:
            daemon = normal.restart(photo, disk)
            daemon.drained()
            dead = {letter["record"]["payload"]["n"] for letter in daemon.dead_letters()}
            for run in kept.runs:
                numbers = list(dict.fromkeys(e["payload"]["n"] for e in normal.world.platform.run(run)["events"]))
                assert numbers == sorted(numbers)
                assert kept.events[run] <= {*numbers, *dead}
            assert daemon.stop() == 0
            assert daemon.faults_in_log() == []
