"""Promises 3 and 5: when batches go out, and what each way of failing means."""

import pytest
from harness import Frames, wait_for

EVENTS = "/api/ingest/v1/events"


def _reason(daemon):
    return daemon.books()["reason"] or ""


def test_batches_go_out_when_they_are_full_or_due(world):
    """Promise 3: at max_events at once, at max_interval otherwise; a run's end takes along what is before it; `flush` what there is."""
    daemon = world.daemon(batch={"max_events": 10, "max_interval": "1h"})
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 25)]) == {}
        wait_for(lambda: daemon.books()["delivered"] == 1 + 20, 10, daemon.books)
        assert daemon.balanced()["queued"] == 5
        requests = world.platform.requests()
        assert sum(request.path == EVENTS for request in requests) == 2
        assert client.deliver(ledger, ledger.events_of("r", 3)) == {}
        flushed = world.cli("--config", str(daemon.config), "flush", "--timeout", "10s")
        assert flushed.returncode == 0, flushed.stderr
        assert daemon.books()["queued"] == 0
        assert client.deliver(ledger, [*ledger.events_of("r", 3), ledger.end("r")]) == {}
    assert daemon.drained()["delivered"] == 33


def test_an_interval_ends_the_waiting(world):
    """Promise 3: a batch that does not fill goes out after max_interval."""
    daemon = world.daemon(batch={"max_interval": "300ms"})
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r"), *world.ledger.events_of("r", 3)]) == {}
    wait_for(lambda: daemon.books()["delivered"] == 4, 3, daemon.books)


@pytest.mark.parametrize("status", [401, 402])
def test_a_key_that_is_refused_pauses_and_keeps_everything(world, status):
    """Promise 5: 401 and 402 pause the destination, which keeps everything, says so, and finds out by itself when it is over."""
    daemon = world.daemon()
    daemon.expected = {"paused"}
    ledger = world.ledger
    world.platform.faults(f"status={status}")
    with Frames(daemon) as client:
        for run in ("a", "b"):
            assert client.deliver(ledger, ledger.whole_run(run, 20)) == {}
    wait_for(lambda: daemon.books()["state"] == "paused", 10, daemon.books)
    assert str(status) in _reason(daemon)
    assert daemon.balanced()["queued"] == 44
    assert daemon.balanced()["dead"] == 0
    world.platform.faults()
    assert daemon.drained(20)["delivered"] == 44


def test_a_key_that_may_not_touch_one_run_holds_up_no_other(world):
    """Promise 5: 403 holds its lane and keeps it; others go on."""
    daemon = world.daemon()
    ledger = world.ledger
    world.platform.refuse('"external_run_id":"closed"', 403)
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("closed", 20)) == {}
        assert client.deliver(ledger, ledger.whole_run("open", 20)) == {}
    wait_for(lambda: daemon.books()["delivered"] == 22, 10, daemon.books)
    assert "403" in _reason(daemon)
    assert daemon.balanced()["queued"] == 22
    world.platform.forgive()
    assert daemon.drained(20)["delivered"] == 44


def test_what_is_too_large_is_split(world):
    """Promise 5: 413 splits a batch; a record that is too large alone is dead for that reason, its neighbours arrive in order."""
    daemon = world.daemon()
    ledger = world.ledger
    world.platform.ask(lambda: world.platform.sandbox.throw("agentos.max_body_bytes=8000"))
    records = [
        *ledger.events_of("r", 20, size=1000),
        ledger.event("r", size=9000),
        *ledger.events_of("r", 20, size=1000),
    ]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *records, ledger.end("r")]) == {}
    books = daemon.drained()
    assert (books["delivered"], books["causes"]["dead"]) == (42, {"too_large": 1})
    (letter,) = daemon.dead_letters()
    assert (letter["status"], letter["record"]["payload"]["n"]) == (413, 20)


def test_what_comes_after_a_runs_end_is_sent_and_dies_of_that(world):
    """Section 2: records after a run's end are sent after it; where the platform refuses them, the cause is `run_ended`."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [*ledger.whole_run("r", 3), *ledger.events_of("r", 2)]) == {}
        daemon.drained()
        assert len(world.platform.run("r")["events"]) == 5
        world.platform.ask(lambda: world.platform.sandbox.throw("agentos.late_events=409"))
        assert client.deliver(ledger, ledger.events_of("r", 2)) == {}
    assert daemon.drained()["causes"]["dead"] == {"run_ended": 2}


def test_a_platform_that_refuses_everything_gets_no_purge(world):
    """Promise 5: the same refusal 100 times in a row from three lanes or more is a pause with that reason, not the end of all records."""
    daemon = world.daemon(batch={"max_events": 10})
    daemon.expected = {"paused"}
    ledger = world.ledger
    runs = [f"r{number}" for number in range(5)]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start(run) for run in runs]) == {}
        daemon.drained()
        world.platform.faults(f"status=400,path={EVENTS}")
        for _ in range(10):
            for run in runs:
                assert client.deliver(ledger, ledger.events_of(run, 10)) == {}
        wait_for(lambda: daemon.books()["state"] == "paused", 20, daemon.books)
        assert "refuses everything" in _reason(daemon)
        dead = daemon.balanced()["dead"]
        assert 95 <= dead <= 110
        world.platform.faults()
        books = daemon.drained(20)
        assert books["delivered"] == 5 + 500 - books["dead"]


def test_somebody_elses_404_is_not_the_records_fault(world):
    """Promise 5: a page that is not the platform's, behind a wrong base_url or a proxy, costs no record."""
    daemon = world.daemon()
    daemon.expected = {"paused"}
    ledger = world.ledger
    world.platform.faults("status=404,body=<html>not here</html>")
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("r", 5)) == {}
    wait_for(lambda: daemon.books()["state"] == "paused", 10, daemon.books)
    assert "base_url" in _reason(daemon)
    world.platform.faults("status=200,body=<html>welcome to the hotel</html>")
    wait_for(lambda: "envelope" in _reason(daemon), 10, daemon.books)
    assert (daemon.balanced()["queued"], daemon.balanced()["dead"]) == (7, 0)
    world.platform.faults()
    assert daemon.drained(20)["delivered"] == 7


def test_a_platform_that_hangs_is_left_after_the_timeout(world):
    """Promise 5: no answer within `timeout` is a failure like any other of the network: tried again, with the same bytes."""
    daemon = world.daemon(destination={"timeout": "500ms"})
    ledger = world.ledger
    world.platform.faults("hang,count=2", f"latency=1s,count=1,path={EVENTS}")
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("r", 5)) == {}
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (7, 0)
    state = world.platform.state()
    assert (state.faults["hang"], state.keys["conflicting"]) == (2, 0)
    world.doubles = True  # the platform took what we did not wait for
