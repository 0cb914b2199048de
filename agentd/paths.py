"""Where daemon and client look for each other: one rule for both sides. Reads nothing but what it is given."""

from __future__ import annotations

from collections.abc import Mapping

MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path holds 108 bytes with its terminating zero (unix(7))
SOCKET_NAME = "agentd.sock"


def socket_path(env: Mapping[str, str], uid: int) -> str:
    """`AGENTD_SOCKET`, else `/run/agentd` as root or under systemd, else the user's runtime folder, else /tmp."""
    if env.get("AGENTD_SOCKET"):
        return env["AGENTD_SOCKET"]
    if env.get("RUNTIME_DIRECTORY"):  # set by systemd's RuntimeDirectory=, the first of a colon-separated list
        return f"{env['RUNTIME_DIRECTORY'].split(':')[0]}/{SOCKET_NAME}"
    if uid == 0:
        return f"/run/agentd/{SOCKET_NAME}"
    if env.get("XDG_RUNTIME_DIR"):
        return f"{env['XDG_RUNTIME_DIR']}/agentd/{SOCKET_NAME}"
    return f"/tmp/agentd-{uid}/{SOCKET_NAME}"  # noqa: S108 - folder 0700, its owner is checked by both sides


def client_socket_paths(env: Mapping[str, str], uid: int) -> list[str]:
    """Where a client looks, in order: its own daemon's place first, then the host's service."""
    own = socket_path(env, uid)
    host = f"/run/agentd/{SOCKET_NAME}"
    return [own] if env.get("AGENTD_SOCKET") or own == host else [own, host]


def state_directory(env: Mapping[str, str], uid: int) -> str:
    """`$STATE_DIRECTORY`, else `/var/lib/agentd` as root, else `$XDG_STATE_HOME/agentd`."""
    if env.get("STATE_DIRECTORY"):
        return env["STATE_DIRECTORY"].split(":")[0]
    if uid == 0:
        return "/var/lib/agentd"
    home = env.get("XDG_STATE_HOME") or f"{env.get('HOME', '/tmp')}/.local/state"  # noqa: S108 - as the XDG base directory specification says
    return f"{home}/agentd"
