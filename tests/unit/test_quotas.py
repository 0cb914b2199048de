"""What is remembered of the platforms' caps: what each answer adds, what the status shows, and what the file is worth."""

from __future__ import annotations

import os
import stat
from types import SimpleNamespace

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import Lost, Request, Response, Usage
from agentd.quotas import Quotas
from agentd.sections import Destination
from agentd.testing import FakeClock

NAMES = ["aegis", "agentos", "ascend", "decidefyi", "decisionos"]
NOW = 1_795_600_000.0  # 25 November 2026


def site(name, identity="a", cap=None):
    return SimpleNamespace(
        platform=platforms.load(name), identity=identity, destination=Destination(name, monthly_cap=cap)
    )


def said(status, body=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, names, b"" if body is None else msgspec.json.encode(body))


DECIDE = Request("/api/decide", b"{}")
RECEIPT = Request("/api/decision/d-1/execution", b"{}")
DECISION = Request("/api/public/v1/decisions", b"{}")
SNAPSHOT = Request("/api/public/v1/snapshots", b"{}")
EVENTS = Request("/api/ingest/v1/events", b"{}")
CAPPED = {"c": "unclear", "v": "monthly_cap_exceeded", "error": "DECIDE_API_MONTHLY_CAP_EXCEEDED", "message": "m"}


@pytest.mark.parametrize(
    ("name", "request_", "answer", "usage"),
    [
        ("decidefyi", DECIDE, said(200, {}, x_usage_monthly_remaining="41"), Usage(1, passed=True, left=41)),
        ("decidefyi", RECEIPT, said(201, {}, x_usage_monthly_remaining="40"), Usage(1, passed=True, left=40)),
        ("decidefyi", RECEIPT, said(200, {}, x_idempotency_status="replayed"), Usage()),
        ("decidefyi", Request("/api/decision/status", b"", method="GET"), said(200, {}), Usage()),
        ("decidefyi", DECIDE, said(429, {"error": "DECIDE_API_RATE_LIMITED", "v": "rate_limited"}, x_usage_monthly_remaining="7"), Usage(left=7)),
        ("decidefyi", DECIDE, said(429, CAPPED, x_ratelimit_reset=str(int(NOW + 86400) * 1000)), Usage(left=0, reached=True, resets_in_s=86400.0)),
        ("decidefyi", DECIDE, said(429, None, x_usage_monthly_remaining="0", retry_after="100"), Usage(left=0, reached=True, resets_in_s=100.0)),
        ("decidefyi", DECIDE, said(500, b"x"), Usage()),
        ("decidefyi", DECIDE, said(200, {}, x_usage_monthly_remaining="many"), Usage(1, passed=True)),
        ("decisionos", DECISION, said(201, {"data": {"id": "dec_1"}}), Usage(1, passed=True)),
        ("decisionos", SNAPSHOT, said(201, {"data": {"id": "s"}}), Usage()),  # the quota is of decisions
        ("decisionos", DECISION, said(402, {"error": "used up", "resetAt": "2026-12-01T00:00:00Z"}), Usage(left=0, reached=True, resets_in_s=1_796_083_200 - NOW)),
        ("decisionos", DECISION, said(402, {"error": "used up"}), Usage(left=0, reached=True, resets_in_s=1_796_083_200 - NOW)),
        ("agentos", EVENTS, said(402, {"data": None, "error": {"code": "PAYMENT_REQUIRED", "message": "m"}}), Usage(reached=True)),
        ("agentos", EVENTS, said(200, {"data": {}, "error": None}), Usage(passed=True)),
        ("agentos", EVENTS, said(503, {"data": None, "error": {"code": "INTERNAL_ERROR", "message": "m"}}), Usage()),
    ],
)  # fmt: skip
def test_what_an_answer_tells(name, request_, answer, usage):
    """Of each platform what its documentation says, and nothing of what it does not."""
    assert platforms.load(name).usage(request_, answer, NOW) == usage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer",
    [
        said(200, b"\xff"),
        said(402, [1]),
        said(429, {"error": 3}),
        said(402, {"resetAt": "x", "error": {}}),
        said(429, None, x_usage_monthly_remaining="-1"),
    ],
)
def test_no_answer_is_too_odd(name, answer):
    """Whatever a server says, there is no error in being told."""
    quotas = Quotas({"x": site(name)}, None, FakeClock().now_us)
    quotas.heard("x", DECIDE, answer)
    quotas.heard("x", DECIDE, Lost("gone", sent=True))
    quotas.heard("unknown", DECIDE, answer)
    assert set(quotas.document("x")) == set(quotas.document("unknown")) == {"quota", "forecast"}


def test_a_platform_that_tells_of_no_cap():
    """ASCEND and AegisOS have none that they tell of: there is nothing to forecast."""
    quotas = Quotas({"a": site("ascend"), "b": site("aegis")}, None, FakeClock().now_us)
    assert quotas.document("a") == quotas.document("b") == {"quota": None, "forecast": None}


async def test_the_status_shows_it(tmp_path):
    """Fields for programs, a sentence for people, from the answers alone."""
    clock = FakeClock()
    async with Quotas({"decide": site("decidefyi")}, tmp_path / "quota.json", clock.now_us) as quotas:
        quotas.heard("decide", DECIDE, said(429, CAPPED))
        document = quotas.document("decide")
        assert document["quota"] | {"since": "", "resets_at": ""} == {
            "used": 0, "since": "", "cap": None, "left": 0, "per_day": None, "reached": True, "reached_at": None, "resets_at": "",
        }  # fmt: skip
        assert document["forecast"].startswith("decide.fyi's monthly cap is used up; it is fresh again on the 1st of ")


async def test_it_is_kept_over_restarts(tmp_path):
    """A small file of ours in the state folder; another account under the same name begins anew."""
    clock, path = FakeClock(), tmp_path / "quota.json"
    async with Quotas({"d": site("decisionos", cap=10)}, path, clock.now_us) as quotas:
        for _ in range(4):
            quotas.heard("d", DECISION, said(201, {"data": {"id": "dec_1"}}))
        before = quotas.document("d")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert before["quota"]["left"] == 6
    async with Quotas({"d": site("decisionos", cap=10)}, path, clock.now_us) as quotas:
        assert quotas.document("d") == before
    async with Quotas({"d": site("decisionos", "another", cap=10)}, path, clock.now_us) as quotas:
        assert quotas.document("d")["quota"]["used"] == 0
        quotas.heard("d", DECISION, said(201, {"data": {"id": "dec_1"}}))
        assert quotas.document("d")["quota"]["used"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["quota.json"]


async def test_without_a_cap_there_is_no_file(tmp_path):
    """Who uses platforms that tell of none finds nothing in the state folder."""
    async with Quotas({"a": site("agentos")}, tmp_path / "quota.json", FakeClock().now_us) as quotas:
        quotas.heard("a", EVENTS, said(200, {"data": {}, "error": None}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"d": 3}', b"\xff\xff", b"[" * 100_000])
async def test_a_file_that_is_damaged_costs_a_forecast(tmp_path, content):
    """Nothing stops the start; it is counted anew and written over."""
    path = tmp_path / "quota.json"
    path.write_bytes(content)
    async with Quotas({"d": site("decisionos")}, path, FakeClock().now_us) as quotas:
        quotas.heard("d", DECISION, said(201, {"data": {"id": "dec_1"}}))
    assert msgspec.json.decode(path.read_bytes())["d"]["used"] == 1


async def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path):
    """What somebody planted there is not read, and not written through."""
    target = tmp_path / "target"
    target.write_bytes(b"{}")
    (tmp_path / "quota.json").symlink_to(target)
    (tmp_path / "quota.json.new").symlink_to(target)
    async with Quotas({"d": site("decisionos")}, tmp_path / "quota.json", FakeClock().now_us) as quotas:
        quotas.heard("d", DECISION, said(201, {"data": {"id": "dec_1"}}))
    assert target.read_bytes() == b"{}"
    assert not (tmp_path / "quota.json").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    async with Quotas({"d": site("decisionos")}, tmp_path / "pipe", FakeClock().now_us) as quotas:
        assert quotas.document("d")["quota"]["used"] == 0


async def test_a_folder_that_takes_nothing_is_no_error(tmp_path):
    """A full disk, say: it is tried again, and the daemon ends as it should."""
    async with Quotas({"d": site("decisionos")}, tmp_path / "gone" / "quota.json", FakeClock().now_us) as quotas:
        quotas.heard("d", DECISION, said(201, {"data": {"id": "dec_1"}}))
        await quotas._save()
        assert quotas._unsaved
        (tmp_path / "gone").mkdir()
    assert (tmp_path / "gone" / "quota.json").exists()
