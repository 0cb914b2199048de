"""Two destinations of which one is full: the other goes on, the rest follows when there is room, and each has each once."""

import json
import uuid

import pytest
from harness import AGENT, Frames, Ledger, Lines, Platform, http_call, wait_for

from agentd import Client

FULL = "spool full"


class Spare:
    """A second destination on a platform of its own, which is down; its queue holds 100 KiB and is full to the last few bytes."""

    def __init__(self, world):
        self.world = world
        self.platform = Platform()
        world.on_exit(self.platform.close)
        self.platform.down()
        spare = {
            "platform": "agentos", "base_url": self.platform.url, "agent_id": AGENT, "api_key": {"env": "KEY"},
            "copy": True, "max_bytes": "100KiB",
        }  # fmt: skip
        self.daemon = world.daemon(destination={"copy": True}, **{"destinations.spare": spare})
        filling = Ledger()
        with Frames(self.daemon) as client:
            starts = [world.ledger.start("r"), world.ledger.start("q"), filling.start("filling", to="spare")]
            assert client.deliver(world.ledger, starts[:2]) == client.deliver(filling, starts[2:]) == {}
            for size in (5000, 500, 0):
                while not client.deliver(
                    filling, [filling.event("filling", level="warn", size=size) | {"to": "spare"}]
                ):
                    pass

    def refused(self, answer):
        """The places of what only the others took."""
        assert {(one["error"], *one.get("to", ())) for one in answer["rejected"]} == {(FULL, "spare")}, answer
        return [one["index"] for one in answer["rejected"]]

    def send_again(self, records):
        """The platform is back: what was refused for it is sent once more, in its order."""
        self.platform.up()
        with Frames(self.daemon) as client:
            for record in records:
                wait_for(lambda record=record: client.ask([record])["accepted"], 20, self.daemon.status)

    def check(self, run):
        """Both platforms have the same of it, each record once and in order."""
        for name in ("agentos", "spare"):
            books = self.daemon.drained(destination=name)
            assert (books["shed"], books["dead"]) == (0, 0)
        assert numbers(self.world.platform, run) == numbers(self.platform, run) == sorted(self.world.ledger.events[run])


def numbers(platform, run):
    found = platform.run(run)
    return [event["payload"]["n"] for event in found["events"]] if found else []


@pytest.fixture
def spare(world):
    return Spare(world)


def test_a_full_destination_holds_up_no_other(world, spare):
    """Promises 2 and 6: the answer names who lacks a record, the other delivers it, and sent again narrowed each has it once."""
    daemon, ledger = spare.daemon, world.ledger
    records = ledger.events_of("r", 300, level="warn", size=1000)
    with Frames(daemon) as client:
        for start in range(0, 300, 50):
            answer = client.ask(records[start : start + 50])
            assert (answer["accepted"], spare.refused(answer)) == (0, list(range(50)))
        ledger.took(records)
        daemon.drained()
        assert numbers(world.platform, "r") == list(range(300))
        answer = client.ask([records[0] | {"to": "spare"}])
        assert (answer["accepted"], answer["rejected"]) == (0, [{"index": 0, "error": FULL}])
    daemon.kill()  # a part is as durable as the whole
    daemon.start()
    spare.send_again([record | {"to": ["spare"]} for record in records])
    spare.check("r")


def test_a_record_with_an_id_may_come_again_as_it_was(world, spare):
    """Section 1: who has it is not given it again, however often it is repeated, as it was or narrowed, over kill -9."""
    daemon, ledger = spare.daemon, world.ledger
    records = [record | {"id": str(uuid.uuid4())} for record in ledger.events_of("r", 20, level="warn", size=1000)]
    ledger.took(records)
    with Frames(daemon) as client:
        for _ in range(2):
            assert spare.refused(client.ask(records)) == list(range(20))
    daemon.kill()
    daemon.start()
    with Frames(daemon) as client:
        assert spare.refused(client.ask(records)) == list(range(20))
        [other] = client.ask([records[0] | {"level": "error"}])["rejected"]
        assert "was used for other content" in other["error"]
    spare.send_again(records)
    daemon.kill()
    daemon.start()
    with Frames(daemon) as client:
        again = [*records, *(record | {"to": "spare"} for record in records)]
        assert client.ask(again) == {"seq": 1, "accepted": 40}
    spare.check("r")


def test_http_answers_202_and_says_who_lacks_it(world, spare):
    """Section 5: `POST /v1/records` is 202 for a record that was taken in part and names the rest; `emit` says so too."""
    daemon, ledger = spare.daemon, world.ledger
    records = ledger.events_of("r", 2, level="warn", size=1000)
    ledger.took(records)
    status, answer = http_call(daemon.socket, "POST", "/v1/records", json.dumps(records[0]).encode())
    assert (status, answer) == (202, {"accepted": 0, "rejected": [{"index": 0, "error": FULL, "to": ["spare"]}]})
    narrow = json.dumps(records[0] | {"to": "spare"}).encode()
    status, answer = http_call(daemon.socket, "POST", "/v1/records", narrow)
    assert (status, answer["error"]["code"]) == (503, "spool_full")
    fields = ("run_id=r", f"type={records[1]['type']}", "level=warn", f"payload:={json.dumps(records[1]['payload'])}")
    emitted = world.cli("emit", "--socket", daemon.socket, "event", *fields)
    assert (emitted.returncode, emitted.stdout) == (1, "")
    assert "spool full at spare, taken elsewhere" in emitted.stderr
    spare.send_again([record | {"to": "spare"} for record in records])
    spare.check("r")


@pytest.mark.parametrize("dialect", [Frames, Lines])
def test_a_silent_connection_waits_with_the_rest_alone(world, spare, dialect):
    """Section 1: without an answer the rest of a record waits for room, and its connection with it; the other has it at once."""
    daemon, ledger = spare.daemon, world.ledger
    records = ledger.events_of("r", 10, level="warn", size=5000)
    aside = [record | {"to": "agentos"} for record in ledger.events_of("q", 3, level="warn", size=1000)]
    ledger.took([*records, *aside])
    with dialect(daemon) as silent, dialect(daemon) as other:
        for record in records:
            silent.send(record)
        wait_for(lambda: numbers(world.platform, "r"), 10, daemon.status)
        assert numbers(world.platform, "r")[0] == 0
        for record in aside:
            other.send(record)
        other.half_close()
        assert other.is_closed()
        wait_for(lambda: numbers(world.platform, "q") == [0, 1, 2], 10, daemon.status)
        assert daemon.status()["intake"]["held"] == 1
        spare.platform.up()
        silent.half_close()
        assert silent.is_closed()
    assert daemon.status()["intake"]["held"] == 0
    spare.check("r")
    assert numbers(spare.platform, "q") == []


@pytest.mark.usefixtures("agentd_live")
def test_the_client_library_sends_the_rest_when_there_is_room(world, spare):
    """Section 8: one full destination holds up no record for another, and each record counts once when all have it."""
    daemon, ledger = spare.daemon, world.ledger
    records = ledger.events_of("c", 400, level="warn", size=1000)
    with Client(socket=daemon.socket) as client:
        with client.start_run(run_id="c") as run:
            for record in records:
                run.emit(record["type"], record["payload"], level="warn")
        ledger.took([ledger.start("c"), *records, ledger.end("c")])
        wait_for(lambda: (world.platform.run("c") or {}).get("status") == "completed", 20, daemon.status)
        assert numbers(world.platform, "c") == list(range(400))
        result = client.flush(0.2)
        assert (result.ok, result.reason) == (False, FULL)
        stats = client.stats()
        assert (stats.emitted, stats.refused, stats.lost) == (402, 0, 0)
        assert stats.accepted + stats.buffered == 402
        spare.platform.up()
        assert client.flush(30).ok
        stats = client.stats()
        assert (stats.emitted, stats.accepted, stats.buffered, client.dropped) == (402, 402, 0, 0)
    spare.check("c")
    assert spare.platform.run("c")["status"] == "completed"
