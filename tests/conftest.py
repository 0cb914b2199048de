"""What all tests share. `pytester` runs a pytest inside a test, for the plugin that ships with the client."""

import os

import pytest

pytest_plugins = ["pytester"]


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the long rounds too (tests marked nightly)")


def pytest_collection_modifyitems(config, items):
    """Long rounds run when they are asked for, by `--nightly`."""
    if config.getoption("--nightly"):
        return
    long = [item for item in items if item.get_closest_marker("nightly")]
    items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=long)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Twice as many as there are cores: end-to-end tests wait for other processes most of the time."""
    return 2 * len(os.sched_getaffinity(0))
