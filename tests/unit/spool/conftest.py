"""The harness as a fixture."""

import pytest
from spool_kit import Harness


@pytest.fixture
async def harness(tmp_path, caplog):
    caplog.set_level("CRITICAL", "agentd")
    made = Harness(tmp_path)
    yield made
    if made.spool is not None:
        await made.kill()
