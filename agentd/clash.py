"""PyPI's `agentd` is somebody else's package. Installed beside this one it brings files of the same names, and the later one wins."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

OURS = "agentd-recorder"
THEIRS = "agentd"


def installed_clash(path: Iterable[str] | None = None) -> str | None:
    """What is wrong and what cures it, where PyPI's `agentd` is installed here too; None where it is not.

    `path` are folders to look in, by default those that Python imports from.
    """
    installed = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    found = {_normal(each.metadata["Name"] or ""): each for each in installed}
    theirs = found.get(THEIRS)
    if theirs is None:
        return None
    cure = f"pip uninstall {THEIRS} && pip install --force-reinstall --no-deps {OURS}"
    files = ", ".join(_shared(theirs)) or "the same names"
    return f"PyPI's unrelated package {THEIRS} {theirs.version} is installed beside {OURS} ({files}): {cure}"


def _normal(name: str) -> str:
    """As PEP 503 compares names."""
    return name.lower().replace("_", "-").replace(".", "-")


def _shared(theirs: metadata.Distribution) -> list[str]:
    """What of theirs has the name of something of ours."""
    names = {str(file).replace("\\", "/") for file in theirs.files or ()}
    shared = ["the module agentd"] if any(name.startswith("agentd/") for name in names) else []
    commands = {entry.name for entry in theirs.entry_points if entry.group == "console_scripts"}
    return [*shared, "the command agentd"] if "agentd" in commands else shared
