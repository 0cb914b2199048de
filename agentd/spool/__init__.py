"""The spool: everything that was acknowledged and has not ended, on disk. See `spool` for the promises it keeps."""

from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.letters import Letter
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.queue import Queue
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.spool.spool import Spool
from agentd.spool.tables import Table

__all__ = [
    "Journal",
    "Letter",
    "Limits",
    "Queue",
    "Spool",
    "SpoolOutbox",
    "SpoolShelf",
    "Table",
    "open_spool",
]
