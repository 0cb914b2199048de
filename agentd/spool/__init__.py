"""The spool: everything that was acknowledged and has not ended, on disk. See `spool` for the promises it keeps."""

from agentd.queued import Death, Entry, Ref, Seal, Source
from agentd.spool.journal import Journal
from agentd.spool.letters import Letter
from agentd.spool.queue import Queue
from agentd.spool.recovery import open_spool
from agentd.spool.spool import Limits, Spool
from agentd.spool.tables import Table

__all__ = [
    "Death",
    "Entry",
    "Journal",
    "Letter",
    "Limits",
    "Queue",
    "Ref",
    "Seal",
    "Source",
    "Spool",
    "Table",
    "open_spool",
]
