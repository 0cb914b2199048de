"""The shape of the whole: who may import whom, which file alone may touch a library, and how large things get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentd"

VOCABULARY = {
    "records",
    "outcomes",
    "errors",
    "units",
    "wire",
    "explain",
    "identity",
    "paths",
    "queued",
    "exchange",
    "gating",
    "standin",
    "probing",
    "ageing",
}
EQUIPMENT = {
    "config",
    "sections",
    "config_checks",
    "config_outbound_checks",
    "config_probe_checks",
    "proxies",
    "reach",
    "trust",
    "ownership",
    "config_faults",
    "globs",
    "variables",
    "metrics",
    "http",
    "withheld",
    "logs",
    "systemd",
    "vitals",
    "tallies",
    "crashpoints",
    "redact",
    "changes",
    "private",
    "signals",
    "filesystems",
    "stamp",
}
ROOMS = {"intake", "spool", "delivery", "platforms"}
ROOT_ROOM = ""  # agentd/__init__.py: the version, and names that are loaded when they are asked for
COMMON = VOCABULARY | {ROOT_ROOM}

# room → the rooms that it may import, itself always included
ALLOWED = (
    dict.fromkeys(VOCABULARY, COMMON)
    | dict.fromkeys(EQUIPMENT, COMMON | EQUIPMENT)
    | dict.fromkeys(ROOMS, COMMON | EQUIPMENT)  # siblings do not import each other
    | {
        "gate": COMMON | EQUIPMENT | ROOMS,
        "compat": COMMON | EQUIPMENT | ROOMS | {"gate"},
        "control": COMMON | EQUIPMENT | ROOMS | {"gate"},
        "targets": COMMON | EQUIPMENT | ROOMS,
        "quotas": COMMON | EQUIPMENT | ROOMS,
        "fleet": COMMON | EQUIPMENT | ROOMS | {"targets"},
        "reloading": COMMON | EQUIPMENT | ROOMS | {"control", "gate", "compat", "targets", "fleet"},
        "daemon": COMMON | EQUIPMENT | ROOMS | {"control", "gate", "compat", "targets", "fleet", "reloading", "quotas"},
        "client": COMMON,
        "sandbox": COMMON | {"client"},  # never what it is to check: platforms, spool, delivery, intake, daemon
        "doctor": COMMON | EQUIPMENT | ROOMS | {"control", "targets"},
        "cli": COMMON
        | EQUIPMENT
        | ROOMS
        | {"doctor", "control", "daemon", "targets", "gate", "compat", "client", "sandbox"},
        "testing": COMMON | {"spool"},
        "__main__": {"cli"},
        ROOT_ROOM: {"client", "errors"},
    }
)

# library → the places that alone may import it
LIBRARIES = {
    "diskcache": {"spool/store.py"},
    "aiohttp": {"http.py", "intake/", "compat/", "sandbox/"},
    "prometheus_client": {"metrics.py"},
    "click": {"cli/"},
    "rich": {"cli/"},
    "sqlite3": {"spool/"},
    "pytest": {"client/recorder.py"},
}
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = ("agentd", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in modules()}
TREES = {name: ast.parse(path.read_text()) for name, path in NAMES.items()}


def room_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ROOT_ROOM


def imports(nodes):
    """Every module that the nodes import, the longest name that is one of ours, or the library's first name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


def at_start(tree):
    """The statements that an import of the module runs: no functions, nothing for type checkers alone."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def test_every_room_is_in_the_table():
    """A new room has to be given its place before it can import anything."""
    assert {room_of(name) for name in NAMES} <= set(ALLOWED)


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name):
    """Vocabulary ← equipment ← {intake, spool, delivery, platforms} ← {control, daemon} ← cli, siblings apart."""
    room = room_of(name)
    found = {other for other in imports(ast.walk(TREES[name])) if other.split(".")[0] == "agentd"}
    forbidden = sorted(other for other in found if room_of(other) not in ALLOWED[room] | {room})
    assert forbidden == []


@pytest.mark.parametrize("name", NAMES)
def test_a_library_has_its_place(name):
    """What is hard to tame is imported in one place: the store's library by the store, the network's at the edges."""
    place = NAMES[name].relative_to(PACKAGE).as_posix()
    for found in imports(ast.walk(TREES[name])):
        library = found.split(".")[0]
        assert library not in LIBRARIES or place.startswith(tuple(LIBRARIES[library])), f"{place} imports {library}"


def test_the_pure_centre_does_no_io():
    """What decides in delivery, over gates and over orphans imports neither event loop, socket, file system nor clock."""
    for name in ("backoff", "batcher", "circuit", "lanes"):
        found = {other.split(".")[0] for other in imports(ast.walk(TREES[f"agentd.delivery.{name}"]))}
        assert found.isdisjoint({"asyncio", "socket", "os", "time", "pathlib", "random", "logging"}), name
    for name in (
        "agentd.platforms.base",
        "agentd.platforms.agentos",
        "agentd.records",
        "agentd.wire",
        "agentd.exchange",
        "agentd.intake.orphans",
        *(f"agentd.gate.{part}" for part in ("answers", "asking", "book", "breaker", "verdict")),
    ):
        found = {other.split(".")[0] for other in imports(ast.walk(TREES[name]))}
        assert found.isdisjoint({"asyncio", "socket", "os", "time", "pathlib", "random"}), name


def test_there_are_no_import_cycles():
    """Every module can be loaded before those that need it."""
    needs = {
        name: {other for other in imports(at_start(tree)) if other in NAMES and other != name}
        for name, tree in TREES.items()
    }
    for needed in needs.values():
        needed.discard("agentd")  # the package itself loads nothing at its start
    loaded = set()
    while ready := {name for name, needed in needs.items() if name not in loaded and needed <= loaded}:
        loaded |= ready
    assert set(needs) - loaded == set()


@pytest.mark.parametrize("name", NAMES)
def test_things_stay_small_enough_to_read(name):
    """No module above 450 lines, no function above 60."""
    assert len(NAMES[name].read_text().splitlines()) <= MAX_MODULE_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("name", NAMES)
def test_a_module_says_what_it_is(name):
    """Every module begins with what it is for."""
    tree = TREES[name]
    assert ast.get_docstring(tree) or not tree.body


HEAVY = ("aiohttp", "diskcache", "click", "rich", "prometheus_client", "sqlite3", "pytest")


@pytest.mark.parametrize("code", ["import agentd", "from agentd import Client"])
def test_an_agent_pays_for_the_client_only(code):
    """`import agentd` and its client load neither network, disk nor terminal libraries into an agent's process."""
    script = f"import sys; {code}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_importing_agentd_loads_no_module_of_it():
    """The package is empty until a name is asked for."""
    script = "import sys, agentd; print([name for name in sys.modules if name.startswith('agentd.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_public_name_can_be_had():
    """What `agentd` names is there."""
    import agentd

    for name in agentd.__all__:
        assert getattr(agentd, name) is not None
    assert set(agentd.__all__) <= set(dir(agentd))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        agentd.nonesuch  # noqa: B018


def test_test_modules_have_names_of_their_own():
    """Tests are no packages: two files of one name would hide one another."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_test_says_what_it_proves():
    """Each test states its promise in words."""
    silent = [
        f"{path.name}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
