"""agentd: a local daemon that AI agents trust with everything they owe to a governance platform.

`from agentd import Client` is all that an agent needs. The names below are loaded when they are first asked for, so that
`import agentd` alone costs nothing, and the daemon's own modules do not load the client.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself would cost every importer 10 ms
if TYPE_CHECKING:
    from agentd.client.aio import AsyncClient
    from agentd.client.api import Client, Decision
    from agentd.client.find import NoDaemon
    from agentd.client.flush import FlushResult, NotStored
    from agentd.client.gated import gated
    from agentd.client.runs import Run, Span, Task, current_run, current_span
    from agentd.client.verdict import GateDenied, GateKeyConflict, GateRefused, GateTimeout, Verdict
    from agentd.errors import AgentdError

__version__ = "0.1.0"
__all__ = [
    "AgentdError",
    "AsyncClient",
    "Client",
    "Decision",
    "FlushResult",
    "GateDenied",
    "GateKeyConflict",
    "GateRefused",
    "GateTimeout",
    "NoDaemon",
    "NotStored",
    "Run",
    "Span",
    "Task",
    "Verdict",
    "__version__",
    "current_run",
    "current_span",
    "gated",
]
_HOME = {
    "AgentdError": "agentd.errors",
    "AsyncClient": "agentd.client.aio",
    "Client": "agentd.client.api",
    "Decision": "agentd.client.api",
    "FlushResult": "agentd.client.flush",
    "GateDenied": "agentd.client.verdict",
    "GateKeyConflict": "agentd.client.verdict",
    "GateRefused": "agentd.client.verdict",
    "GateTimeout": "agentd.client.verdict",
    "NoDaemon": "agentd.client.find",
    "NotStored": "agentd.client.flush",
    "Run": "agentd.client.runs",
    "Span": "agentd.client.runs",
    "Task": "agentd.client.runs",
    "Verdict": "agentd.client.verdict",
    "current_run": "agentd.client.runs",
    "current_span": "agentd.client.runs",
    "gated": "agentd.client.gated",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'agentd' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
