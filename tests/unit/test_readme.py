"""The README's Python is about names that exist: nothing of it is run, but each import, attribute and keyword is looked up."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


class Reader(ast.NodeVisitor):
    """Follows which name holds what, as far as imports, calls and annotations tell; `wrong` is what does not exist."""

    def __init__(self, names=None):
        self.names = names if names is not None else {}  # name → an instance of this class
        self.imported = {}
        self.looked_up = []
        self.wrong = []

    def visit_ImportFrom(self, node):
        module = importlib.import_module(node.module)
        for alias in node.names:
            self._look_up(module, alias.name, node)
            self.imported[alias.asname or alias.name] = getattr(module, alias.name, None)

    def visit_Import(self, node):
        for alias in node.names:
            importlib.import_module(alias.name)
            self.imported[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(
                alias.name.partition(".")[0]
            )

    def visit_Assign(self, node):
        self.generic_visit(node)
        self._bind(node.targets[0], node.value)

    def visit_With(self, node):
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr)
        for statement in node.body:
            self.visit(statement)

    def visit_Attribute(self, node):
        self.generic_visit(node)
        owner = self._class_of(node.value) or self._imported(node.value)
        if owner is not None:
            self._look_up(owner, node.attr, node)

    def visit_Call(self, node):
        self.generic_visit(node)
        called = self._called(node)
        if called is None:
            return
        parameters = inspect.signature(called).parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self.wrong += [
            f"line {node.lineno}: {ast.unparse(node.func)} has no parameter {keyword.arg}"
            for keyword in node.keywords
            if keyword.arg is not None and keyword.arg not in parameters and not takes_any
        ]

    def _bind(self, target, value):
        class_ = self._class_of(value)
        if isinstance(target, ast.Name):
            self.names.pop(target.id, None)
            if class_ is not None:
                self.names[target.id] = class_

    def _imported(self, node):
        return self.imported.get(node.id) if isinstance(node, ast.Name) else None

    def _called(self, call):
        """What a call calls, where that is known."""
        if isinstance(call.func, ast.Attribute):
            owner = self._class_of(call.func.value) or self._imported(call.func.value)
            return getattr(owner, call.func.attr, None)
        return self._imported(call.func)

    def _class_of(self, node):
        """The class of what an expression gives."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        called = self._called(node) if isinstance(node, ast.Call) else None
        if called is None or inspect.isclass(called):
            return called
        told = inspect.signature(called).return_annotation
        told = getattr(sys.modules[called.__module__], told, None) if isinstance(told, str) else told
        if isinstance(told, typing.TypeVar) and isinstance(node.func, ast.Attribute):
            told = given(self._class_of(node.func.value), told)
        return told if inspect.isclass(told) and told is not inspect.Parameter.empty else None

    def _look_up(self, owner, name, node):
        self.looked_up.append(name)
        if not hasattr(owner, name) and name not in getattr(owner, "__annotations__", {}):
            self.wrong.append(f"line {node.lineno}: {owner.__name__} has no {name}")


def given(class_, variable):
    """What a class puts in place of a type variable of its bases."""
    found = {}
    for base in getattr(class_, "__orig_bases__", ()):
        found |= dict(zip(getattr(typing.get_origin(base), "__parameters__", ()), typing.get_args(base), strict=False))
    return found.get(variable)


def read(source, names=None):
    reader = Reader(names)
    reader.visit(ast.parse(source))
    return reader


def test_what_the_readme_says_in_python_exists():
    """Each block in turn, with what those before it have named."""
    names, looked_up = {}, []
    for number, block in enumerate(BLOCKS, 1):
        reader = read(block, names)
        assert reader.wrong == [], f"block {number}"
        looked_up += reader.looked_up
    assert {"Client", "start_run", "emit", "gate", "AgentOS"} <= set(looked_up)
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from agentos import AgentOSClient", "agentos has no AgentOSClient"),
        ("from agentd import Client\nclient = Client()\nclient.emitt('x')", "Client has no emitt"),
        ("from agentd import Client\nwith Client().start_run() as run:\n    run.emitt('x')", "Run has no emitt"),
        (
            "from agentd import Client\nverdict = Client().gate('decide', {})\nverdict.proceeds",
            "Verdict has no proceeds",
        ),
        ("from agentd import Client\nClient(agent='x')", "Client has no parameter agent"),
        ("import agentos\nagentos.AgentOSClient()", "agentos has no AgentOSClient"),
    ],
)
def test_a_name_that_does_not_exist_is_found(source, wrong):
    """Imports, methods, attributes and keywords alike."""
    assert [one.partition(": ")[2] for one in read(source).wrong] == [wrong]
