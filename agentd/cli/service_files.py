"""The files that make agentd a service: two units, and for the system an entry for systemd-sysusers(8). Pure: facts in, texts out.

`systemd/` in the repository holds them as they are for an agentd in /usr/bin; a test compares. Each setting that is not obvious
has its reason beside it in the file, where whoever runs the service reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

SERVICE = "agentd.service"
SOCKET = "agentd.socket"
SYSUSERS = "agentd.conf"
_PLACE = "%t/agentd/agentd.sock"  # %t is /run for the host, and a user's own runtime folder

_RESTART = """\
Restart=on-failure
# Also after a configuration that is wrong: corrected, it is taken up by itself. While a start fails the socket stays, and agents wait.
RestartSec=2
# agentd extends both while it gets on: with the repair of a damaged spool (about 0.1 ms a record), and with what is queued at a stop
# (shutdown.drain_timeout)
TimeoutStartSec=90
TimeoutStopSec=30
# Fed by what its parts get done, and by no timer: a delivery loop or storage thread that hangs ends it, and it is started again
WatchdogSec=60
"""

# What needs no privileges to put on: also a user's own manager can.
_SECCOMP = """\
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077
"""

_SANDBOX = """\
AmbientCapabilities=
CapabilityBoundingSet=
KeyringMode=private
PrivateDevices=yes
PrivateMounts=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
# Left out: PrivateUsers=, in whose namespace every other user is nobody, so that agentd could not tell who connects; and
# ProcSubset=pid, which hides the boot's id, by which agentd knows after a restart that a process is still the same.
"""


class Facts(Struct, frozen=True):
    """What the files depend on. `command` is agentd as systemd is to start it, `config` its configuration, both as the unit sees them."""

    command: str
    config: str
    credentials: Sequence[str] = ()
    user: bool = False  # a unit of a user's own manager

    @property
    def keys(self) -> str:
        """The folder of the credentials."""
        return f"{self.config.rpartition('/')[0]}/credentials"


def service(facts: Facts) -> str:
    """agentd.service."""
    agentd = f"{facts.command} --config {facts.config}"
    calls = (
        f"ExecStartPre={agentd} check\nExecStart={agentd} run\n"
        "# Whole or not at all: with a wrong configuration this fails and says why, and the old one stays (SIGHUP does the same, unheard)\n"
        f"ExecReload={facts.command} reload --socket {_PLACE}\n"
    )
    whole = [
        "[Unit]",
        "Description=agentd, which keeps what AI agents owe to governance platforms",
        f"Requires={SOCKET}",
        # behind the network at the start is before it at the end: what is queued can still be sent
        f"After={SOCKET}" if facts.user else f"After={SOCKET} network.target",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        *([] if facts.user else ["User=agentd", "Group=agentd", "Environment=AGENTD_SOCKET=/run/agentd/agentd.sock"]),
        calls + _RESTART,
        _credentials(facts),
        *([_SECCOMP] if facts.user else [_STATE, _SECCOMP + _SANDBOX]),
        "[Install]",
        "WantedBy=default.target" if facts.user else "WantedBy=multi-user.target",
        f"Also={SOCKET}",
        "",
    ]
    return "\n".join(whole)


_STATE = """\
# No RuntimeDirectory=: /run/agentd belongs to the socket, which outlives the service
StateDirectory=agentd
StateDirectoryMode=0700
"""


def _credentials(facts: Facts) -> str:
    """A line for each key that the configuration names, or how one is written."""
    told = '# Keys: a line for each { credential = "NAME" } of the configuration\n'
    lines = [f"LoadCredential={name}:{facts.keys}/{name}\n" for name in facts.credentials]
    if not lines:
        lines = [
            f"# LoadCredential=NAME:{facts.keys}/NAME\n",
            f"# LoadCredentialEncrypted=NAME:{facts.keys}/NAME.cred    (systemd-creds encrypt)\n",
        ]
    return told + "".join(lines)


def socket(facts: Facts) -> str:
    """agentd.socket."""
    access = (
        "SocketMode=0600\nDirectoryMode=0700"
        if facts.user
        else "# Who may hand in records: the group's members. To connect takes write permission\nSocketMode=0660\nSocketGroup=agentd"
    )
    return f"""\
[Unit]
Description=agentd's socket

[Socket]
ListenStream={_PLACE}
{access}
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def sysusers() -> str:
    """The user and group that the service runs as."""
    return '# systemd-sysusers(8); sysusers.d(5)\nu agentd - "agentd" /var/lib/agentd\n'
