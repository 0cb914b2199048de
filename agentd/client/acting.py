"""Acting upon a verdict: a block that tells the platform how it ended. What a platform wants to hear is a table here.

Telemetry never raises, and nothing here does either: an exception of the act itself goes on unchanged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentd.client.runs import is_clean_exit, message_of
from agentd.client.verdict import Verdict

if TYPE_CHECKING:
    from agentd.client.api import BaseClient

_log = logging.getLogger("agentd")
_MS = 1000


class Acting:
    """`with Acting(client, verdict) as act: act.done(do_it())`. A cancelled act has failed; a forked child reports nothing."""

    def __init__(self, client: BaseClient, verdict: Verdict, result: Callable[[Any], object] | None = None) -> None:
        """`result` makes what is reported of the act's own result; without it nothing of that leaves the process."""
        self._client = client
        self._verdict = verdict
        self._result = result
        self._reported: object = None
        self._began = 0.0
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self._began = monotonic()
        return self

    def done(self, value: object) -> None:
        """Keep what is to be reported of the result. A `result` that fails costs no more than that."""
        if self._result is None:
            return
        try:
            self._reported = self._result(value)
        except Exception:  # noqa: BLE001 - the agent's own function
            _log.exception("agentd: `result` failed; the act is reported without it")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Report by how it was left."""
        if os.getpid() != self._pid:
            return
        duration_ms = max(0, round((monotonic() - self._began) * _MS))
        failure = None if error is None or is_clean_exit(error) else message_of(error)
        report = _REPORTS.get(self._verdict.gate)
        if report is not None:
            report(self._client, self._verdict, failure, duration_ms, self._reported)


def _action(client: BaseClient, verdict: Verdict, failure: str | None, duration_ms: int, result: object) -> None:
    if failure is None:
        client.complete_action(verdict, result, duration_ms=duration_ms)
    else:
        client.fail_action(verdict, failure, duration_ms=duration_ms)


def _decide(client: BaseClient, verdict: Verdict, failure: str | None, duration_ms: int, result: object) -> None:
    """Two receipts: what was done, and what came of it."""
    if failure is None:
        client.record_execution(verdict, execution_status="executed", execution_result=result)
    else:
        client.record_execution(verdict, execution_status="failed", execution_result={"error": failure})
    client.record_outcome(
        verdict,
        outcome_status="succeeded" if failure is None else "failed",
        action_executed=failure is None,
        observed_metrics={"duration_ms": duration_ms},
    )


_Report = Callable[["BaseClient", Verdict, "str | None", int, object], None]
_REPORTS: dict[str, _Report] = {"action": _action, "decide": _decide}  # the other gates' platforms take no report
