"""What the tests of unmodified SDKs share: a daemon that listens on loopback with a local token, and counts at the platform."""

from __future__ import annotations

import socket
import uuid

from harness import KEY

TOKEN = "local-0123456789abcdef"
NARROW = "local-for-one-agent-0123456789"  # may speak for `billing` alone
SANDBOX_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the one that the emulated workspace has


def free_port():
    """A port that stays the same when a daemon comes back: an SDK keeps its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Standing:
    """A daemon that stands in for one platform, which takes nobody's key but the daemon's."""

    def __init__(self, world, platform, **options):
        self.world = world
        self.platform = platform
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/{platform}"
        destination = {"platform": platform, "base_url": f"{world.platform.url}/{platform}", "api_key": {"env": "KEY"}}
        self.daemon = world.daemon(
            start=False,
            listen={"http": f"127.0.0.1:{self.port}"},
            intake={"reference_wait": "2s"},
            **{f"destinations.{platform}": destination | options},
        )
        world.platform.ask(lambda: setattr(world.platform.sandbox._emulation, "_keys", frozenset({KEY})))
        tokens = []
        for number, (token, more) in enumerate(((TOKEN, ""), (NARROW, 'agent_ids = ["billing"]\n'))):
            file = world.folder / f"token-{number}"
            file.write_text(token)
            file.chmod(0o600)
            tokens.append(f'[[security.tokens]]\ntoken = {{ file = "{file}" }}\n{more}')
        with self.daemon.config.open("a") as config:
            config.write("\n" + "\n".join(tokens))
        self.daemon.start()

    def calls(self, method, path):
        """The requests that reached the platform, newest first."""
        return [
            line
            for line in self.world.platform.requests()
            if (line.face, line.method, line.path) == (self.platform, method, path)
        ]

    def drained(self):
        """The destination's books, once all is delivered."""
        return self.daemon.drained(destination=self.platform)

    def rows(self):
        """What the platform holds, newest first."""
        return [row for row in self.world.platform.runs() if row["face"] == self.platform]

    def throw(self, **switches):
        """Throw switches of the platform's face."""
        for name, value in switches.items():
            self.world.platform.ask(lambda name=name, value=value: self._throw(name, value))

    def _throw(self, name, value):
        self.world.platform.sandbox._emulation.throw_one(self.platform, name, value)
