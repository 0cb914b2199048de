"""A host with three users, one of them hostile: what each attempt against the daemon and against the others gets.

The daemon is root's. The victim and the hostile user have each an agent of their own; both reach the socket. What the hostile one may
cost is measured at the victim: it is served all the while, and nothing of its is lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid

import pytest
from harness import AGENT, http_call, wait_for
from strangers_kit import ADMIN, HOSTILE, OTHER, VICTIM, User, ask, connect, frame, note, pushed, receive, said

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users")
FACES = ("agentos",)
MALLORY = "1a0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a22"


@pytest.fixture
def host(world):
    """Makes daemons that other users reach."""

    def make(*, start=True, rules=(), **sections):
        world.folder.chmod(0o755)
        sections = {"listen": {"mode": "0666"}, "security": {"admin_uids": [ADMIN]}, **sections}
        daemon = world.daemon(start=False, **sections)
        rules = "".join(f"[[security.peers]]\nuid = {uid}\nagent_ids = {list(names)!r}\n" for uid, names in rules)
        daemon.config.write_text(daemon.config.read_text() + rules.replace("'", '"'))
        return daemon.start() if start else daemon

    return make


class Victim:
    """Sends an event now and then, and wants each of them taken."""

    def __init__(self, world, daemon):
        self.world, self.seq, self.waits = world, 1, []
        self.link = connect(daemon.socket, VICTIM)
        self.link.sendall(frame({"hello": 1, "stream": str(uuid.uuid4())}))
        receive(self.link)
        self.take(world.ledger.start("victim"))

    def take(self, *records):
        begun = time.monotonic()
        answer = ask(self.link, self.seq, list(records))
        self.waits.append(time.monotonic() - begun)
        assert answer == {"seq": self.seq, "accepted": len(records)}
        self.seq += 1
        self.world.ledger.took(records)

    def events(self, count):
        for _ in range(count):
            self.take(self.world.ledger.event("victim"))
        return max(self.waits[-count:])

    def end(self):
        self.take(self.world.ledger.end("victim"))
        self.link.close()


def event(run, size=300, level="info"):
    return {"kind": "event", "run_id": run, "type": "t", "level": level, "payload": {"text": "x" * size}}


@contextlib.contextmanager
def flood(daemon, data, connections, *, reads=False):
    """Connections of the hostile user, each of which sends the data over and over while the block runs."""
    stop = threading.Event()
    links = [connect(daemon.socket, HOSTILE) for _ in range(connections)]

    def send(link):
        with contextlib.suppress(OSError):
            while not stop.is_set():
                link.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    link.sendall(data)

    def read(link):
        with contextlib.suppress(OSError):
            while link.recv(65536):
                pass

    threads = [threading.Thread(target=send, args=(link,)) for link in links]
    threads += [threading.Thread(target=read, args=(link,)) for link in links if reads]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for link in links:
            link.close()
        for thread in threads:
            thread.join(10)


def rss_mib(daemon):
    return daemon.status()["memory"]["rss_bytes"] / 2**20


def test_a_flood_holds_up_nobody(world, host):
    """Eight connections that send events without asking for answers: the other user's are taken all the while, none is refused."""
    daemon = host()
    victim = Victim(world, daemon)
    world.platform.down()  # what floods in is queued, and then shed: its own
    with flood(daemon, frame([event("flood")] * 50), 8):
        worst = victim.events(40)
    victim.end()
    http_call(daemon.socket, "POST", "/v1/queue/drop", b'{"destination":"agentos","reason":"test"}')
    note(
        "flood of events on 8 connections",
        f"taken; the victim's 40 events were all taken, the slowest after {worst * 1e3:.0f} ms",
    )
    assert worst < 5
    world.ledger.events.clear(), world.ledger.starts.clear(), world.ledger.ends.clear()  # dropped with the flood
    world.platform.up()


def test_one_user_has_so_many_connections_and_no_more(world, host):
    """Above `intake.max_connections_per_uid` he is turned away by name; others come in, and one that goes leaves its place."""
    daemon = host(intake={"max_connections_per_uid": 20, "max_connections": 100})
    links = [connect(daemon.socket, HOSTILE) for _ in range(20)]
    for _ in range(5):
        with connect(daemon.socket, HOSTILE) as link:
            answer = said(link)
        assert b"too many connections of one user (intake.max_connections_per_uid = 20)" in answer
    victim = Victim(world, daemon)
    victim.events(3)
    links.pop().close()
    wait_for(lambda: daemon.status()["intake"]["connections"] <= 21)
    with connect(daemon.socket, HOSTILE) as link:
        assert ask(link, 1, []) == {"seq": 1, "accepted": 0}
    for link in links:
        link.close()
    victim.end()
    assert daemon.status()["intake"]["refused"]["too_many_connections"] == 5
    note(
        "1,000 connections", "`max_connections_per_uid` of them; each further one is told so and closed; others come in"
    )


def test_a_thousand_connections_are_served_and_harm_nobody(world, host):
    """As many as the default allows: the other user comes in and is served."""
    daemon = host()
    links = [connect(daemon.socket, HOSTILE) for _ in range(1000)]
    victim = Victim(world, daemon)
    worst = victim.events(10)
    for link in links:
        link.sendall(b"{")
    worst = max(worst, victim.events(10))
    grown = rss_mib(daemon)
    for link in links:
        link.close()
    victim.end()
    note(
        "1,000 silent connections, then half a line on each",
        f"the victim's slowest answer {worst * 1e3:.0f} ms, daemon at {grown:.0f} MiB",
    )
    assert worst < 5
    assert grown < 150


def test_halves_of_messages_take_bounded_memory(world, host):
    """Half frames on many connections: their user's are read up to `intake.max_pending_bytes_per_uid`, and end at `frame_timeout`."""
    daemon = host(intake={"max_pending_bytes_per_uid": "4MiB", "frame_timeout": "2s"})
    victim = Victim(world, daemon)
    before = rss_mib(daemon)
    links = [connect(daemon.socket, HOSTILE) for _ in range(48)]
    half = (4 * 2**20).to_bytes(4, "big") + b" " * (2 * 2**20)
    taken = sum(pushed(link, half, 0.05) for link in links)
    worst = victim.events(20)
    grown = rss_mib(daemon) - before
    assert grown < 30, (taken, grown)
    one = connect(
        daemon.socket, HOSTILE
    )  # who is none of the attackers and is the same user waits his turn, and has it
    for link in links:
        link.close()
    assert ask(one, 1, []) == {"seq": 1, "accepted": 0}
    one.close()
    victim.end()
    note(
        "half frames of 4 MiB on 48 connections",
        f"not read beyond `max_pending_bytes_per_uid` (4 MiB here; of {48 * 2} MiB {taken / 2**20:.0f} left the sender, kernel buffers "
        f"included; the daemon grew by {grown:.0f} MiB); the victim's slowest answer {worst * 1e3:.0f} ms",
    )


def test_large_messages_of_one_user_all_get_through(world, host):
    """More of them at once than he may have in memory: one after the other, whole, and none is given up."""
    daemon = host(intake={"max_pending_bytes_per_uid": "1MiB"})
    links = [connect(daemon.socket, VICTIM) for _ in range(6)]
    records = [[world.ledger.event(f"large-{n}", size=100_000) for _ in range(20)] for n in range(len(links))]
    starts = [world.ledger.start(f"large-{n}") for n in range(len(links))]
    answers = {}

    def send(n):
        answers[n] = ask(links[n], 1, [starts[n], *records[n]])

    threads = [threading.Thread(target=send, args=(n,)) for n in range(len(links))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {n: {"seq": 1, "accepted": 21} for n in range(len(links))}
    for n, link in enumerate(links):
        world.ledger.took([starts[n], *records[n]])
        end = world.ledger.end(f"large-{n}")
        assert ask(link, 2, [end])["accepted"] == 1
        world.ledger.took([end])
        link.close()


@pytest.mark.parametrize("begins", [b"\x00\x00\x10\x00{", b'{"kind":', b"[" * 10], ids=["frame", "line", "array"])
def test_a_slow_loris_is_ended(world, host, begins):
    """A message that comes a byte at a time has `intake.frame_timeout` as a whole."""
    daemon = host(intake={"frame_timeout": "500ms"})
    victim = Victim(world, daemon)
    begun = time.monotonic()
    with connect(daemon.socket, HOSTILE) as link:
        link.sendall(begins)
        with contextlib.suppress(OSError):
            while time.monotonic() - begun < 10:
                link.sendall(b" ")
                victim.events(1)
        answer = said(link, 1)
    lasted = time.monotonic() - begun
    assert lasted < 5
    assert b"did not come within intake.frame_timeout" in answer or answer == b""
    assert daemon.status()["intake"]["refused"]["half_message"] == 1
    victim.end()
    note(
        f"slow loris, {begins[:1]!r} and a byte at a time",
        f"ended after {lasted:.1f} s (`frame_timeout` 0.5 s), counted as half_message",
    )


@pytest.mark.parametrize(
    ("attempt", "data", "cause"),
    [
        ("a frame that says it has 16 MiB where 1 MiB is allowed", b"\x00\xff\xff\xff", "oversized"),
        ("a line of 20 MiB", b"{" + b" " * (20 * 2**20), "oversized"),
        ("10,000 lines of garbage", b"{nonsense}\n" * 10_000, "malformed"),
        ("a first byte that is none", b"\xff" * 1000, "no_dialect"),
        ("a frame of JSON 100,000 deep", frame(b"[" * 100_000), "malformed"),
    ],
)
def test_garbage_is_answered_and_counted(world, host, attempt, data, cause):
    """Whatever it is: a line of error, a count by its cause, the end of the connection where nothing can follow, and nobody waits."""
    daemon = host(intake={"max_frame_bytes": 2**20})
    victim = Victim(world, daemon)
    with connect(daemon.socket, HOSTILE) as link:
        pushed(link, data, 5)
        worst = victim.events(5)
        link.setblocking(True)
        answer = said(link, 1)
    victim.end()
    refused = daemon.status()["intake"]["refused"]
    assert refused.get(cause, 0) >= 1, refused
    assert b'"error"' in answer or cause == "oversized"
    note(attempt, f"refused as {cause} ({refused[cause]}); the victim's slowest answer {worst * 1e3:.0f} ms")


def test_who_sends_too_fast_is_not_read_and_loses_nothing(world, host):
    """Above the rate a connection is not read for a while; over HTTP it is 429 with Retry-After; others have rates of their own."""
    daemon = host(intake={"max_records_per_second_per_uid": 200})
    hostile = connect(daemon.socket, HOSTILE)
    begun = time.monotonic()
    records = [world.ledger.start("fast"), *world.ledger.events_of("fast", 598), world.ledger.end("fast")]
    for seq in range(12):
        hostile.sendall(frame({"seq": seq + 1, "records": records[50 * seq : 50 * seq + 50]}))
    victim = Victim(world, daemon)
    worst = victim.events(10)
    user = User(daemon.socket, HOSTILE)
    status, body, headers = user("POST", "/v1/records", [event("fast")])
    assert (status, int(headers["Retry-After"]) >= 1) == (429, True), body
    assert b"max_records_per_second_per_uid" in body
    assert user("GET", "/v1/status")[0] == 200
    assert [receive(hostile)["accepted"] for _ in range(12)] == [50] * 12
    lasted = time.monotonic() - begun
    world.ledger.took(records)
    assert 1.5 < lasted < 20
    hostile.close()
    victim.end()
    note(
        "600 records at once where 200/s are allowed",
        f"not read in between: all taken after {lasted:.1f} s; over HTTP 429 with Retry-After; the victim's slowest answer {worst * 1e3:.0f} ms",
    )


def test_nobody_fills_a_queue_for_the_others(world, host):
    """A user who fills a destination's queue with what is never shed leaves room for another's; what is shed is his own."""
    daemon = host(
        spool={"max_bytes": "8MiB"}, rules=[(VICTIM, ["*"]), (HOSTILE, ["*"])], destination={"timeout": "200ms"}
    )
    world.platform.down()
    victim = Victim(world, daemon)
    victim.events(20)
    with connect(daemon.socket, HOSTILE) as link:
        start = world.ledger.start("flood")
        assert ask(link, 1, [start])["accepted"] == 1
        world.ledger.took([start])
    taken = seq = 0
    with connect(daemon.socket, HOSTILE) as link:
        for level in ["info"] * 60 + ["warn"] * 60:
            events = world.ledger.events_of("flood", 4, size=50_000, level=level)
            answer = ask(link, seq := seq + 1, events)
            refused = {rejected["index"] for rejected in answer.get("rejected", [])}
            world.ledger.took(one for index, one in enumerate(events) if index not in refused)
            taken += answer["accepted"]
        assert answer["rejected"][0]["error"] == "spool full"
    victim.events(50)
    victim.end()
    books = daemon.status()["destinations"]["agentos"]
    assert books["shed"] > 0  # his own info events
    world.platform.up()
    daemon.drained(60)
    wait_for(lambda: (world.platform.run("victim") or {"terminals": []})["terminals"], 20)
    assert sum(e["type"] != "agentd.lost" for e in world.platform.run("victim")["events"]) == 70
    note(
        "filling the queue with events that are never shed",
        f"`spool full` at three quarters of the quota ({taken} taken, {books['shed']} of his own shed); the victim's 70 events all arrived",
    )


def test_a_flood_of_ids_makes_nobody_forgotten(world, host):
    """Another user's ids don't push one's own out of the dedupe window, in memory nor on disk."""
    daemon = host(intake={"dedupe_window": 500})
    victim = Victim(world, daemon)
    record = world.ledger.event("victim") | {"id": str(uuid.uuid4())}
    victim.take(record)
    with connect(daemon.socket, HOSTILE) as link:
        for seq in range(1, 11):
            flood = [event("flood") | {"id": str(uuid.uuid4())} for _ in range(200)]
            assert ask(link, seq, flood)["accepted"] == 200
        ask(link, 11, [{"kind": "run.start", "run_id": "flood"}, {"kind": "run.cancel", "run_id": "flood"}])
    with connect(daemon.socket, VICTIM) as link:
        assert ask(link, 1, [record])["accepted"] == 1
    victim.end()
    assert daemon.stop() == 0
    daemon.start()
    with connect(daemon.socket, VICTIM) as link:
        assert ask(link, 1, [record])["accepted"] == 1
    daemon.drained()
    assert [e["payload"].get("agentd_id") for e in world.platform.run("victim")["events"]].count(record["id"]) == 1
    note(
        "2,000 ids where 500 are remembered",
        "his own are forgotten; the victim's repeat was stored once, also after a restart",
    )


def test_another_users_stream_is_his_own(world, host):
    """The same stream name of two users: two streams; nobody learns or changes what the other's last seq was."""
    daemon = host()
    victim, name = Victim(world, daemon), str(uuid.uuid4())
    with connect(daemon.socket, VICTIM) as link, connect(daemon.socket, HOSTILE) as spy:
        link.sendall(frame({"hello": 1, "stream": name}))
        assert receive(link)["last_seq"] == 0
        record = world.ledger.event("victim")
        assert ask(link, 1, [record])["accepted"] == 1
        world.ledger.took([record])
        spy.sendall(frame({"hello": 1, "stream": name}))
        assert receive(spy)["last_seq"] == 0
        assert ask(spy, 1, [{"kind": "event"}])["accepted"] == 0
    with connect(daemon.socket, VICTIM) as link:
        link.sendall(frame({"hello": 1, "stream": name}))
        assert receive(link)["last_seq"] == 1
        assert ask(link, 1, [record]) == {"seq": 1, "accepted": 1}
    victim.end()
    note("hello under the victim's stream name", "a stream of his own: `last_seq` 0; the victim's goes on at 1")


def test_nobody_is_somebody_else(world, host):
    """Another's agent, another's run, another's run as one's own by `owns_runs`, a pid of one's choice: refused or without effect."""
    daemon = host(
        rules=[(HOSTILE, ["mallory"]), (VICTIM, ["billing"])],
        runs={"orphan_grace": "300ms"},
        destination={"agents": {"billing": AGENT, "mallory": MALLORY}},
    )
    victim = Victim(world, daemon)
    with connect(daemon.socket, HOSTILE) as link:
        spoofed = ask(link, 1, [event("x") | {"agent_id": "billing"}])
        assert "not among the agents that you may speak for" in spoofed["rejected"][0]["error"]
        foreign = ask(link, 2, [event("victim"), {"kind": "run.fail", "run_id": "victim", "error_message": "mine now"}])
        assert foreign["accepted"] == 0
    with connect(daemon.socket, HOSTILE) as link:
        link.sendall(frame({"hello": 1, "owns_runs": True, "pid": os.getpid(), "uid": VICTIM}))
        receive(link)
        assert ask(link, 1, [event("victim")]).get("accepted", 0) == 0
    time.sleep(0.5)
    victim.events(2)
    victim.end()
    daemon.drained()
    assert world.platform.run("victim")["terminals"] == ["complete"]
    note("events under the victim's agent", f"refused: {spoofed['rejected'][0]['error']}")
    note("events and an end for the victim's run", f"refused: {foreign['rejected'][0]['error']}")
    note(
        "`owns_runs` with the victim's pid and uid, then gone",
        "the kernel says whose it is: the victim's run went on and ended as its own",
    )


@pytest.mark.parametrize("uid", [HOSTILE, OTHER])
@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/flush?until=delivered", None),
        ("/v1/dead-letters/purge", {"all": True, "reason": "mine"}),
        ("/v1/dead-letters/replay", {"all": True}),
        ("/v1/queue/drop", {"destination": "agentos", "reason": "mine"}),
        ("/-/reload", None),
    ],
)
def test_admin_calls_are_for_admins(admin_stage, uid, target, body):
    """A stranger is answered 403, an admin uid and root are not."""
    path = admin_stage
    status, document = User(path, uid).document("POST", target, body)
    assert (status, document["error"]["code"]) == (403, "forbidden")
    if uid == HOSTILE:
        note(f"POST {target.partition('?')[0]}", f"403: {document['error']['message']}")
    assert User(path, ADMIN)("POST", target, body)[0] in (200, 404)


@pytest.fixture(scope="module")
def admin_stage():
    from harness import World

    world = World(FACES)
    world.folder.chmod(0o755)
    daemon = world.daemon(listen={"mode": "0666"}, security={"admin_uids": [ADMIN]})
    with contextlib.closing(world):
        yield daemon.socket


def test_spam_that_is_refused_leaves_room_for_others_evidence(world, host):
    """Decisions that are refused as invalid are kept in a room of their own; one user fills three quarters of it at most."""
    daemon = host(dead_letters={"max_bytes": "1MiB"})
    bad = {"kind": "run.start", "run_id": 1}
    with connect(daemon.socket, HOSTILE) as link:
        for seq in range(1, 60):
            ask(link, seq, [bad | {"note": f"{seq}-{n}" + "x" * 400} for n in range(10)])
    held = daemon.status()["dead_letters"]["invalid"]
    victim = Victim(world, daemon)
    answer = ask(victim.link, victim.seq, [bad | {"note": "the victim's"}])
    victim.seq += 1
    assert answer["accepted"] == 0
    victim.end()
    letters = [letter for letter in daemon.dead_letters() if letter["cause"] == "invalid"]
    assert [letter["uid"] for letter in letters].count(VICTIM) == 1
    assert len(letters) == held + 1 < 590
    note(
        "590 invalid run starts",
        f"{held} kept (three quarters of their room), the rest counted; the victim's one was kept",
    )
