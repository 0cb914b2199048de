"""The world that each end-to-end test lives in, and the audit at its end."""

import contextlib

import pytest
from harness import World

_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def world(request):
    """A folder, a platform (the faces that the module names in FACES), a ledger. After a test that passed all is audited; after one that failed the logs are shown."""
    world = World(getattr(request.module, "FACES", ("agentos",)))
    with contextlib.closing(world):
        yield world
        if request.node.stash.get(_PASSED, False):
            world.finish()
            request.node.user_properties.extend(world.figures.items())  # for who wants them: --junitxml
        else:
            for daemon in world.daemons:
                print(f"{daemon}:\n{daemon.tail(60)}")  # noqa: T201 - pytest shows it with the failure
