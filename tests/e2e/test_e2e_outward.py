"""The way out of a real daemon: through a proxy, to a private authority's platform, at a platform's pace, under its cap."""

import base64
import json
import shutil
import time
from urllib.parse import urlsplit

import pytest
from harness import Frames, http_call, wait_for
from outward_kit import NAME, Authority, ConnectProxy, Front, server_context, threaded

FACES = ("agentos", "decidefyi")
PASSWORD = "hunter2-of-the-proxy"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")


def port_of(world):
    return urlsplit(world.platform.url).port


def behind(world, authority, *, port="", **destination):
    """A destination that is reached by name and TLS alone."""
    return {
        "base_url": f"https://{NAME}{port}/agentos", "ca_file": str(authority.ca_file), "connect_timeout": "2s", "timeout": "5s",
    } | destination  # fmt: skip


def plain(world, **destination):
    return {"base_url": f"{world.platform.url}/agentos"} | destination


def hand_in(world, daemon, runs, events=20):
    with Frames(daemon) as client:
        for run in runs:
            assert client.deliver(world.ledger, world.ledger.whole_run(run, events)) == {}


def reason(daemon):
    return daemon.books()["reason"] or ""


def everything_said(world, daemon):
    """What the daemon writes and answers, and what the command line makes of it."""
    status, shown = http_call(daemon.socket, "GET", "/v1/status")
    assert status == 200
    verbs = [
        world.cli("--config", str(daemon.config), verb, KEY="aos_agent_key", **daemon.environment)
        for verb in ("check", "config", "status")
    ]
    return "\n".join([daemon.log.read_text(), json.dumps(shown), *(done.stdout + done.stderr for done in verbs)])


@needs_openssl
def test_through_the_companys_proxy_to_a_private_platform(world):
    """Proxy and password from the environment, a private CA: everything arrives over a few tunnels, and the password is in no word."""
    authority = Authority(world.folder / "ca")
    front = Front(server_context(authority.issue(NAME)), port_of(world))
    word = f"Basic {base64.b64encode(f'ann:{PASSWORD}'.encode()).decode()}"
    hosts = {}
    proxy = ConnectProxy(hosts, credentials=word)
    with threaded(front, proxy):
        hosts[NAME] = front.port
        daemon = world.daemon(start=False, destination=behind(world, authority))
        daemon.environment = {
            "HTTPS_PROXY": f"http://ann:{PASSWORD}@127.0.0.1:{proxy.port}",
            "NO_PROXY": "elsewhere.test",
        }
        daemon.start()
        hand_in(world, daemon, ("a", "b", "c"))
        assert daemon.drained()["delivered"] == 66
        assert {(method, place) for method, place, _ in proxy.heard} == {("CONNECT", f"{NAME}:443")}
        assert len(proxy.heard) < len(world.platform.requests())
        said = everything_said(world, daemon)
        assert PASSWORD not in said
        assert f"through the proxy http://127.0.0.1:{proxy.port} (HTTPS_PROXY)" in said
        world.daemons[0].stop()


@needs_openssl
def test_a_proxy_that_fails_in_every_way_loses_nothing(world):
    """Down, refusing, wanting a password, blind: each has its words in the status, nothing is dead, and all arrives once it is well."""
    authority = Authority(world.folder / "ca")
    front = Front(server_context(authority.issue(NAME)), port_of(world))
    proxy = ConnectProxy({})
    with threaded(front):
        with threaded(proxy):
            proxy.hosts[NAME] = front.port
            proxy.refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
            place = f"http://127.0.0.1:{proxy.port}"
            daemon = world.daemon(destination=behind(world, authority, proxy=place))
            hand_in(world, daemon, ("a", "b"))
            for refusal, words in (
                (proxy.refusal, f"the proxy {place} refuses to connect to {NAME}:443 (403"),
                (
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                    f"the proxy {place} wants a user and password (407",
                ),
                (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", f"the proxy {place} does not reach {NAME}:443 (502"),
            ):
                proxy.refusal = refusal
                wait_for(lambda words=words: words in reason(daemon), 10, lambda: reason(daemon))
            assert daemon.books()["state"] == "waiting"
        wait_for(lambda: f"no connection to the proxy {place}" in reason(daemon), 10, lambda: reason(daemon))
        assert (daemon.balanced()["queued"], daemon.books()["dead"], world.platform.requests()) == (44, 0, [])
        proxy.refusal = None
        with threaded(proxy):
            assert daemon.drained()["delivered"] == 44
            daemon.stop()


@needs_openssl
def test_a_certificate_that_has_expired_loses_nothing(world):
    """The reason says so; with a new certificate at the same place everything arrives, without a hand at agentd."""
    authority = Authority(world.folder / "ca")
    front = Front(server_context(authority.issue(NAME, "old", days=-1)), port_of(world))
    proxy = ConnectProxy({})
    with threaded(proxy):
        with threaded(front):
            proxy.hosts[NAME] = front.port
            daemon = world.daemon(destination=behind(world, authority, proxy=f"127.0.0.1:{proxy.port}"))
            hand_in(world, daemon, ("a",))
            wait_for(lambda: "its certificate has expired" in reason(daemon), 10, lambda: reason(daemon))
            assert (daemon.balanced()["queued"], world.platform.requests()) == (22, [])
        with threaded(Front(server_context(authority.issue(NAME)), port_of(world), port=front.port)):
            assert daemon.drained()["delivered"] == 22
            daemon.stop()


@needs_openssl
def test_the_environments_authority(world):
    """SSL_CERT_FILE is believed as everywhere else; a file that is not there is said at the start, by its variable."""
    authority = Authority(world.folder / "ca")
    front = Front(server_context(authority.issue("localhost")), port_of(world))
    with threaded(front):
        destination = {"base_url": f"https://localhost:{front.port}/agentos"}
        daemon = world.daemon(start=False, destination=destination)
        daemon.environment = {
            "SSL_CERT_FILE": str(authority.ca_file),
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }  # loopback goes directly
        daemon.start()
        hand_in(world, daemon, ("a",))
        assert daemon.drained()["delivered"] == 22
        done = world.cli("--config", str(daemon.config), "check", KEY="k", SSL_CERT_FILE="/nowhere.pem")
        assert done.returncode == 78
        assert "SSL_CERT_FILE: /nowhere.pem: there is no such file" in done.stdout
        daemon.stop()


def test_a_platform_with_too_much_to_do_gets_less_at_once(world):
    """503 under load: the status shows fewer at once, never none; it rises again, and everything arrives in order."""
    daemon = world.daemon(batch={"max_events": 1}, destination=plain(world))
    world.platform.faults("status=503,rate=0.5", "latency=5ms..20ms")
    hand_in(world, daemon, [f"r{number}" for number in range(12)], events=5)
    widths = set()

    def halved():
        widths.add(daemon.books()["concurrency"])
        return min(widths) <= 4

    wait_for(halved, 20, lambda: widths)
    world.platform.faults("latency=1ms..3ms")
    daemon.drained()
    hand_in(world, daemon, [f"s{number}" for number in range(60)], events=20)
    wait_for(lambda: daemon.books()["concurrency"] == 8 or daemon.books()["queued"] == 0, 30, daemon.books)
    daemon.drained()
    assert daemon.books()["concurrency"] > min(widths)
    assert min(widths) >= 1
    metrics = http_call(daemon.socket, "GET", "/metrics")[1]
    assert 'agentd_concurrency_limit{destination="agentos"}' in str(metrics)


def test_a_rate_limit_is_kept(world):
    """Twenty requests a second, whatever waits: the platform counts them."""
    daemon = world.daemon(batch={"max_events": 1}, destination=plain(world, rate_limit="20/s"))
    begun = time.monotonic()
    hand_in(world, daemon, [f"r{number}" for number in range(10)], events=4)
    daemon.drained()
    spent = time.monotonic() - begun
    sent = len(world.platform.requests())
    assert sent == 60
    assert (sent - 2) / 20 <= spent <= 20
    assert daemon.books()["rate_limit"] == 20.0


def test_a_cap_is_forecast_and_remembered(world):
    """decide.fyi says how many are left; once they are used up the status says until when, also after a restart."""
    decide = {"platform": "decidefyi", "base_url": f"{world.platform.url}/decidefyi", "api_key": {"env": "KEY"}}
    daemon = world.daemon(**{"destination": plain(world), "destinations.decide": decide})
    world.platform.ask(lambda: world.platform.sandbox.throw("decidefyi.monthly_cap=3"))
    outcome = {"decision": "yes", "verdict": "APPROVED", "reason_code": "ALL", "action": "approve_discount"}
    book = {
        "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
        "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
        "rules": [{"rule_id": "all", "condition": {"field": "discount", "operator": "gte", "value": 0}, "outcome": outcome}],
        "default_outcome": outcome,
    }  # fmt: skip

    def ask(discount):
        context = {"inputs": {"discount": discount}, "target_system": "crm", "requested_action": "approve_discount"}
        question = {"gate": "decide", "request": {"mode": "rulebook", "rulebook": book, "context": context}}
        return http_call(daemon.socket, "POST", "/v1/gate", json.dumps(question).encode())[1]["verdict"]

    assert [ask(number) for number in range(2)] == ["allow", "allow"]
    facts = daemon.status()["destinations"]["decide"]
    assert (facts["quota"]["used"], facts["quota"]["left"], facts["forecast"]) == (2, 1, None)
    metrics = http_call(daemon.socket, "GET", "/metrics")[1]
    assert 'agentd_quota_left{destination="decide"} 1.0' in str(metrics)
    assert [ask(number) for number in (2, 3)] == ["allow", "unavailable"]
    facts = daemon.status()["destinations"]["decide"]
    assert facts["quota"]["reached"] is True
    assert facts["forecast"].startswith("decide.fyi's monthly cap is used up; it is fresh again ")
    assert daemon.stop() == 0
    daemon.start()
    again = daemon.status()["destinations"]["decide"]
    assert (again["forecast"], again["quota"]["used"]) == (facts["forecast"], 3)
    assert daemon.status()["destinations"]["agentos"]["forecast"] is None


def test_what_others_wait_for_goes_first(world):
    """A hundred runs' events wait at ten requests a second; a run that starts then is at the platform within a second, not after ten."""
    daemon = world.daemon(batch={"max_events": 1}, destination=plain(world))
    runs = [f"r{number}" for number in range(100)]
    with Frames(daemon) as client:
        for run in runs:
            assert client.deliver(world.ledger, [world.ledger.start(run)]) == {}
        daemon.drained()
        daemon.stop()
        daemon.configure(**{"destinations.agentos": {"rate_limit": "10/s"}})
        daemon.start()
    before = len(world.platform.requests())
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.event(run) for run in runs]) == {}
        wait_for(lambda: len(world.platform.requests()) > before + 3, 10)
        waiting = len(world.platform.requests())
        assert client.deliver(world.ledger, [world.ledger.start("late"), world.ledger.event("late")]) == {}
    wait_for(lambda: len(world.platform.requests()) > waiting + 8, 10)
    in_order = list(reversed(world.platform.requests()))
    paths = [line.path.rpartition("/")[2] for line in in_order[waiting : waiting + 8]]
    assert "start" in paths[:6]
    assert paths.count("events") >= 2
    daemon.stop()
    daemon.configure(**{"destinations.agentos": {"rate_limit": "1000/s"}})
    daemon.start()
    daemon.drained()
