"""Doctor on the way to a platform, and on what a daemon says of itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agentd.doctor import daemon, remote
from agentd.doctor.asking import ahead
from agentd.doctor.facts import Hop
from agentd.exchange import Response

HOP = Hop("cloud", "https://platform.test", "platform.test", 443, addresses=("192.0.2.1",), key_found="taken", key_said="taken", status=200)  # fmt: skip
THERE = {
    "state": "ok", "reason": None, "retry_in_s": None, "queued": 0, "queued_bytes": 0, "max_bytes": 1000, "quota": None, "forecast": None, "balanced": True,
}  # fmt: skip
STATUS = {
    "agentd": "1.0", "pid": 7, "uptime_s": 60.0, "state": "running", "balanced": True, "spool": {"directory": "/x", "full": False},
    "dead_letters": {"records": 0, "bytes": 0, "max_bytes": 1000}, "destinations": {"cloud": THERE}, "reloads": {"last_error": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, ["ok"], "takes the key"),
        ({"unreadable": "api_key: the variable K is not set or empty"}, ["fail"], "variable K is not set"),
        ({"dns_error": "Name or service not known"}, ["fail"], "getent hosts platform.test"),
        ({"tcp_error": "Connection refused"}, ["fail"], "HTTPS_PROXY"),
        ({"tcp_error": "Connection refused", "proxy": "http://proxy:3128", "proxy_source": "https_proxy"}, ["fail"], "it comes from https_proxy"),
        ({"tls_error": "its certificate is from an unknown issuer: a private CA is named by ca_file"}, ["fail"], 'ca_file = "/path"'),
        ({"tls_error": "its certificate has expired"}, ["fail"], "date -u"),
        ({"tls_error": "its certificate is for another name: is base_url right?"}, ["fail"], "base_url names the host"),
        ({"certificate_days": 13.0, "issuer": "CA"}, ["warn", "ok"], "ends in 13 days"),
        ({"certificate_days": 14.0}, ["ok"], "takes"),
        ({"lost": "no answer in time"}, ["fail"], "no answer in time"),
        ({"key_found": "refused", "status": 401}, ["fail"], "systemctl reload agentd"),
        ({"key_found": "refused", "status": 403}, ["fail"], "where api_key says"),
        ({"key_found": "taken", "status": 402}, ["fail"], "quota is used up"),
        ({"key_found": "away", "status": 429}, ["warn"], "rate_limit"),
        ({"key_found": "away", "status": 503}, ["warn"], "status page"),
        ({"key_found": "unclear", "status": 302}, ["warn"], "is base_url right"),
    ],
)  # fmt: skip
def test_the_way_to_a_platform(changes, expected, words):
    """The first thing on the way that fails is what is told, with its cure."""
    findings = list(remote.way(replace(HOP, **changes)))
    assert [finding.level for finding in findings] == expected
    assert words in " ".join(part for finding in findings for part in (finding.what, finding.cause, finding.cure))


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [([0.0], "ok"), ([29.9], "ok"), ([30.0], "warn"), ([-31.0], "warn"), ([-300.0], "fail"), ([400.0, 0.0, 1.0], "ok"), ([None], None), ([], None)],
)  # fmt: skip
def test_the_clock(ahead_s, level):
    """Off by 30 s is said, by five minutes fails; one platform whose clock is wrong does not make ours so."""
    findings = list(remote.clock(replace(HOP, clock_ahead_s=off) for off in ahead_s))
    assert [finding.level for finding in findings] == ([level] if level else [])


@pytest.mark.parametrize(
    ("date", "off"),
    [("Sun, 22 Nov 2026 07:00:00 GMT", 0.0), ("Sun, 22 Nov 2026 06:59:00 GMT", 59.5), ("Sun, 22 Nov 2026 07:00:10 GMT", -9.5), ("yesterday", None)],
)  # fmt: skip
def test_a_date_header_has_whole_seconds(date, off):
    """A fraction of a second is none of the clock's fault."""
    assert ahead(Response(200, {"date": date}, b""), 1795330800.5) == off
    assert ahead(Response(200, {}, b""), 1795330800.5) is None


@pytest.mark.parametrize(
    ("changes", "ill", "unready", "expected"),
    [
        ({}, "", "", [("daemon", "ok")]),
        ({}, "the storage thread has ended nothing for 31 s", "", [("daemon", "fail")]),
        ({}, "", "the socket /x is gone", [("daemon", "fail")]),
        ({"state": "draining"}, "", "draining", [("daemon", "warn")]),
        ({"agentd": "0.9"}, "", "", [("daemon", "ok"), ("daemon", "warn")]),
        ({"reloads": {"last_error": "no"}}, "", "", [("daemon", "ok"), ("configuration", "warn")]),
    ],
)  # fmt: skip
def test_the_daemon(changes, ill, unready, expected):
    """Healthy, ready, of our version, with the configuration that is there."""
    findings = daemon.daemon(STATUS | changes, "1.0", ill, unready)
    assert [(finding.check, finding.level) for finding in findings] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("books", "ok")]),
        ({"balanced": False}, [("books", "fail")]),
        ({"spool": {"full": True}}, [("books", "ok"), ("spool", "fail")]),
        ({"spool": {"quarantined_rows": 2}}, [("books", "ok"), ("quarantine", "warn")]),
        ({"dead_letters": {"records": 3, "bytes": 800, "max_bytes": 1000}}, [("books", "ok"), ("dead letters", "warn")]),
        ({"dead_letters": {"records": 3, "bytes": 801, "max_bytes": 1000}}, [("books", "ok"), ("dead letters", "fail")]),
    ],
)  # fmt: skip
def test_the_books(changes, expected):
    """Unbalanced, full, damaged, and letters that nobody takes."""
    assert [(finding.check, finding.level) for finding in daemon.books(STATUS | changes)] == expected


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, ["ok"], ""),
        ({"state": "paused", "reason": "401 bad key", "queued": 1500}, ["fail"], "put the right key where api_key says"),
        ({"state": "paused", "reason": "402 unpaid"}, ["fail"], "billing"),
        ({"state": "paused", "reason": "403 FORBIDDEN"}, ["fail"], "permission"),
        ({"state": "paused", "reason": "redirects to x"}, ["fail"], "follow the redirect"),
        ({"state": "paused", "reason": "the dead letters are full (dead_letters.max_bytes): replay or purge some"}, ["fail"], "replay or purge"),
        ({"state": "paused", "reason": "refuses everything: 400 X"}, ["fail"], "agentd explain"),
        ({"state": "paused", "reason": "402", "quota": {"reached": True}, "forecast": "the cap is used up"}, ["fail"], "out of quota"),
        ({"state": "waiting", "reason": "no connection", "retry_in_s": 3.0}, ["warn"], "by itself in 3s"),
        ({"state": "removed"}, ["warn"], "agentd queue drop cloud"),
        ({"forecast": "the cap is reached on the 24th"}, ["ok", "warn"], "on the 24th"),
        ({"queued_bytes": 801}, ["ok", "fail"], "80%"),
        ({"queued_bytes": 800}, ["ok"], ""),
    ],
)  # fmt: skip
def test_the_destinations(changes, expected, words):
    """What a state means, and what to do about its reason."""
    findings = list(daemon.destinations(STATUS | {"destinations": {"cloud": THERE | changes}}))
    assert [finding.level for finding in findings] == expected
    assert words in " ".join(part for finding in findings for part in (finding.what, finding.cause, finding.cure))
