"""What `agentd check` says of other users."""

from __future__ import annotations

import os

import pytest

from agentd.cli import check_strangers
from agentd.sections import Config, Listen, PeerRule, Security, SpoolConfig


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Makes configurations; the machine knows all users."""
    monkeypatch.setattr(check_strangers, "has_all_uids", lambda: True)
    monkeypatch.setattr(check_strangers, "overflow_uid", lambda: 65534)

    def make(**security):
        places = {
            "listen": Listen(socket=f"{tmp_path}/run/s.sock"),
            "spool": SpoolConfig(directory=f"{tmp_path}/state"),
        }
        return Config(**places, security=Security(**security))

    return make


def said(config):
    return list(check_strangers.look(config, os.geteuid()))


def test_nothing_is_said_where_nothing_is_wrong(configured):
    """Ways that nobody else may change, users that are told apart."""
    assert said(configured(admin_uids=[1000], peers=[PeerRule(1001, ["a"])])) == []


def test_ways_that_everybody_may_change_are_errors(configured, tmp_path):
    """As the start will have it; by the folder's name."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    ((level, about, message),) = said(configured())
    assert (level, about) == ("error", "[listen]")
    assert f"everybody may write to {tmp_path}/run" in message


def test_the_overflow_uid_is_nobodys_own(configured, monkeypatch):
    """A rule for it holds for all who have no uid here, and an admin would be whoever that is."""
    assert [(level, about) for level, about, _ in said(configured(peers=[PeerRule(65534, ["a"])]))] == [
        ("warning", "[[security.peers]]")
    ]
    assert [(level, about) for level, about, _ in said(configured(admin_uids=[65534]))] == [("error", "[security]")]
    monkeypatch.setattr(check_strangers, "has_all_uids", lambda: False)
    ((level, _, message),) = said(configured())
    assert level == "warning"
    assert "appear as uid 65534" in message
