"""A daemon that dies between any two of its steps: at each numbered crash point, under load, and at random times.

The harness's audit at the end is the judge: all that was acknowledged is at the platform or accounted for, each run in order,
no batch regrouped or repeated with other bytes, and the books add up.
"""

import contextlib
import json
import random
import signal
import time

import pytest
from disk_kit import fill, mount, release
from harness import AGENT, Frames, Producer, deal, http_call, wait_for

from agentd.crashpoints import VARIABLE, Point

FACES = ("agentos", "aegis")
DELIVERY = [point for point in Point if 10 < point.number < 70 and point not in (Point.SPLIT_MADE, Point.SPLIT_STORED)]
REFUSALS = [Point.SPLIT_MADE, Point.SPLIT_STORED, Point.BURY_BEGUN, Point.BURY_STORED]
STARTS = [Point.RECOVERY_LOCKED, Point.RECOVERY_OPENED, Point.RECOVERY_SURVEYED, Point.RECOVERY_STARTED]
ENDS = [Point.SHUTDOWN_BEGUN, Point.SHUTDOWN_DRAINED, Point.SHUTDOWN_COMMITTED, Point.SHUTDOWN_CLOSED]
GATES = [Point.GATE_SENDING, Point.GATE_ANSWERED, Point.GATE_SETTLED]
SHEDDING = [Point.SHED_TAKEN, Point.SHED_BOOKED]
REWRITING = [Point.REWRITE_WRITTEN, Point.REWRITE_TAKEN_OVER]
LETTERS = [Point.REPLAY_BEGUN, Point.REPLAY_STORED, Point.PURGE_BEGUN]
OTHERS = [*SHEDDING, *REWRITING, *LETTERS, Point.FULL_REFUSED]
SPEND = {"amount": 5, "currency": "USD", "reason": "paper"}
ROUNDS = (1, 4, 11)  # the how-manieth time that the point is reached
RARE = {Point.LEARN_STORED: (1, 1)}  # a run is named once, eight of them perhaps in one commit


def name_of(point):
    return point.label


def every(points):
    return pytest.mark.parametrize("point", points, ids=name_of)


def die_at(daemon, point, times=1):
    """Start it, armed, and wait for its death."""
    daemon.environment = {VARIABLE: f"{point.label}:{times}"}
    daemon.spawn()
    try:
        dead_at(daemon, point)
    finally:
        daemon.environment = {}


def dead_at(daemon, point):
    daemon.kills += 1
    assert daemon.wait(20) == -signal.SIGKILL, f"{point.label} was not reached:\n{daemon.tail()}"


def load(world, daemon, events=2_000, runs=24):
    """A load that outlasts some deaths: 20 records a frame, 5 ms between two."""
    return Producer(daemon, world.ledger, deal(world.ledger, events, runs, size=60), frame=20, pause_s=0.005)


def whole(daemon, producer, dead=0):
    """What was acknowledged is all there."""
    daemon.start()
    producer.join(40)
    books = daemon.drained(40)
    assert books["dead"] == dead
    return books


@every(DELIVERY)
def test_a_death_on_the_way_costs_nothing(world, point):
    """Promises 1, 2, 4 and 8: killed at any step from intake to delivery, under load, three times: nothing is lost or out of order."""
    world.platform.faults("status=503,rate=0.1", "latency=1ms..5ms")
    daemon = world.daemon(start=False)
    producer = load(world, daemon)
    for times in RARE.get(point, ROUNDS):
        die_at(daemon, point, times)
    whole(daemon, producer)


@every(REFUSALS)
def test_a_death_while_bad_records_are_singled_out_costs_nothing(world, point):
    """Promises 4, 5 and 8: killed while a refused batch is cut up or a record is buried: the bad ones are dead, once, and no others."""
    world.platform.refuse("poison", 400)
    daemon = world.daemon(start=False)
    ledger = world.ledger
    records = []
    for number in range(40):
        run = f"r{number % 4}"
        records += [ledger.start(run)] if number < 4 else []
        records += ledger.events_of(run, 20, size=60)
        records += [ledger.event(run, poison=number)] if number % 8 == 7 else []
    records += [ledger.end(f"r{number}") for number in range(4)]
    producer = Producer(daemon, ledger, records, frame=20, pause_s=0.002)
    for times in (1, 1, 1):
        die_at(daemon, point, times)
    books = whole(daemon, producer, dead=5)
    assert books["causes"]["dead"] == {"rejected": 5}


@every(STARTS)
def test_a_death_at_the_start_costs_nothing(world, point):
    """Promise 1: killed while it recovers, again and again: what an earlier life left is there."""
    world.platform.down()
    daemon = world.daemon()
    with Frames(daemon) as client:
        client.deliver(world.ledger, deal(world.ledger, 500, 4))
    daemon.kill()
    for _ in ROUNDS:
        die_at(daemon, point)
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 508


@every(ENDS)
def test_a_death_at_the_end_costs_nothing(world, point):
    """Promises 1 and 7: killed while it stops under load: what was acknowledged is there at the next start."""
    world.platform.faults("latency=5ms..20ms")
    daemon = world.daemon(start=False)
    producer = load(world, daemon)
    for number in range(3):
        daemon.environment = {VARIABLE: point.label}
        daemon.start()
        wait_for(lambda goal=20 * (number + 1): producer.acked >= goal or producer.done, 20, "nothing is acknowledged")
        daemon.signal(signal.SIGTERM)
        dead_at(daemon, point)
    daemon.environment = {}
    whole(daemon, producer)


@every(SHEDDING)
def test_a_death_while_a_full_queue_sheds_costs_no_more(world, point):
    """Promises 6 and 8: killed in the middle of shedding: what was shed is counted, what was not is delivered."""
    daemon = world.daemon(start=False, destination={"max_bytes": "200KiB"})
    world.platform.down()
    ledger = world.ledger
    for round_ in range(3):
        daemon.environment = {VARIABLE: point.label}
        daemon.start()
        with Frames(daemon) as client, contextlib.suppress(OSError, AssertionError):
            client.deliver(ledger, [ledger.start(f"r{round_}")])
            while True:
                records = ledger.events_of(f"r{round_}", 10, level="debug", size=1000)
                try:
                    client.deliver(ledger, records)
                except (OSError, AssertionError):
                    ledger.maybe(records)
                    raise
        dead_at(daemon, point)
    daemon.environment = {}
    world.platform.up()
    daemon.start()
    assert daemon.drained()["shed"] == sum(daemon.books()["causes"].get("shed", {}).values())


@every([Point.FULL_REFUSED])
def test_a_death_on_a_full_disk_costs_nothing(world, point):
    """Promises 1 and 8: killed when a commit finds the disk full: what was acknowledged before is there once there is room."""
    place = mount(world, "tmpfs")
    daemon = world.daemon(start=False, spool={"directory": str(place / "state"), "max_bytes": "64MiB"})
    daemon.state = place / "state"
    daemon.expected |= {"disk_full", "commit_failed"}
    world.platform.down()
    daemon.environment = {VARIABLE: point.label}
    daemon.start()
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r")])
        while _fill_up(daemon, client, world.ledger, place):
            pass
    dead_at(daemon, point)
    release(place)
    daemon.environment = {}
    world.platform.up()
    daemon.start()
    daemon.drained()


def _fill_up(daemon, client, ledger, place):
    """Have a commit find the disk full. True if the daemon was quicker: it looks once a second, and refuses without trying."""
    fill(place, 300_000)
    refused = {}
    while not refused:
        records = ledger.events_of("r", 10, level="error", size=1000)
        try:
            refused = client.deliver(ledger, records)
        except (OSError, AssertionError):  # it has died, perhaps within an answer
            ledger.maybe(records)
            return False
    release(place)
    wait_for(lambda: not daemon.status()["spool"]["full"], 10, daemon.status)
    return True


@every(REWRITING)
def test_a_death_while_segments_are_rewritten_costs_nothing(world, point):
    """Promises 1 and 2: killed when the emptiest segments are rewritten: each record is in one of them, and in its order."""
    world.platform.refuse("blocked", 403)
    daemon = world.daemon(start=False)
    daemon.expected |= {"paused"}
    ledger = world.ledger
    daemon.environment = {VARIABLE: point.label}
    daemon.start()
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("stays", input={"x": "blocked"}), ledger.start("goes")])
        for _ in range(60):
            records = [*ledger.events_of("stays", 5, size=500), *ledger.events_of("goes", 45, size=1000)]
            try:
                client.deliver(ledger, records)
            except (OSError, AssertionError):  # it has died, perhaps within an answer
                ledger.maybe(records)
                break
    dead_at(daemon, point)
    daemon.environment = {}
    daemon.start()
    world.platform.forgive()
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.end("stays"), ledger.end("goes")])
    daemon.drained()


@every(GATES)
def test_a_death_in_the_middle_of_a_question_never_asks_twice(world, point):
    """§4: killed around a question that must not be repeated: at most one request went out, and its key says what is known."""
    there = {
        "platform": "aegis",
        "base_url": f"{world.platform.url}/aegis",
        "agent_id": AGENT,
        "api_key": {"env": "KEY"},
    }
    daemon = world.daemon(
        start=False,
        destination={"base_url": f"{world.platform.url}/agentos"},
        **{"destinations.aegis": there},
    )
    daemon.environment = {VARIABLE: point.label}
    daemon.start()
    body = json.dumps({"gate": "intent", "request": SPEND, "key": "k"}).encode()
    with contextlib.suppress(OSError):
        http_call(daemon.socket, "POST", "/v1/gate", body)
    dead_at(daemon, point)
    daemon.environment = {}
    daemon.start()
    status, heard = http_call(daemon.socket, "POST", "/v1/gate", body)
    sent = [line for line in world.platform.requests() if line.method == "POST" and "/v1/intents" in line.path]
    assert (status, len(sent)) == (200, 0 if point is Point.GATE_SENDING else 1)
    known = point is Point.GATE_SETTLED
    assert heard["verdict"] == ("allow" if known else "unavailable"), heard
    assert heard["proceed"] is known


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(20, marks=pytest.mark.timeout(120)),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
)
def test_deaths_at_random_times_cost_nothing(world, kills):
    """Promises 1, 2, 4 and 8: kill -9 at random times of a load with failures, restarts that are killed while they recover included."""
    world.platform.refuse("poison", 400)
    world.platform.faults("status=503,rate=0.2", "latency=1ms..5ms")
    daemon = world.daemon(start=False)
    ledger = world.ledger
    events = deal(ledger, 250 * kills, 20, size=60)
    for place in range(len(events) // 2, 20, -400):
        events.insert(place, ledger.event(f"run-{place % 20}", poison=place))
    rng = random.Random(kills)
    producer = Producer(daemon, ledger, events, frame=20, pause_s=0.005)
    for _ in range(kills):
        daemon.spawn()
        time.sleep(rng.uniform(0.2, 1.2))  # from within the start to well into the load
        daemon.kill()
    daemon.start()
    producer.join(100)
    daemon.drained(60)


@every(LETTERS)
def test_a_death_among_the_dead_letters_leaves_each_in_one_place(world, point):
    """Promises 1 and 8: killed while letters are replayed or purged: each is a letter or a record or purged, and the books say which."""
    world.platform.refuse("poison", 400)
    daemon = world.daemon()
    ledger = world.ledger
    poison = [ledger.event("r", poison=number) for number in range(6)]
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("r"), *poison])
    wait_for(lambda: daemon.books()["dead"] == 6, 10, daemon.books)
    world.platform.forgive()
    assert daemon.stop() == 0
    verb = "purge" if point is Point.PURGE_BEGUN else "replay"
    body = json.dumps({"all": True, **({"reason": "a test"} if verb == "purge" else {})}).encode()
    daemon.environment = {VARIABLE: point.label}
    daemon.start()
    with contextlib.suppress(OSError):
        http_call(daemon.socket, "POST", f"/v1/dead-letters/{verb}", body)
    dead_at(daemon, point)
    daemon.environment = {}
    daemon.start()
    left = len(daemon.dead_letters())
    assert left == (0 if point is Point.REPLAY_STORED else 6)
    status, answer = http_call(daemon.socket, "POST", f"/v1/dead-letters/{verb}", body)
    assert (status, answer["purged" if verb == "purge" else "replayed"]) == (200, left)
    books = daemon.drained()
    assert (books["dead"], books["purged"]) == (0, 6 if verb == "purge" else 0)
    if verb == "purge":
        ledger.events["r"].clear()


def test_every_crash_point_is_met():
    """A point that no test arms is a promise that nobody keeps."""
    met = {*DELIVERY, *REFUSALS, *STARTS, *ENDS, *GATES, *OTHERS}
    assert {point.label for point in set(Point) - met} == set()
