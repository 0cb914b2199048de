"""Rulebook v1 of decide.fyi: its schema, and what it decides. Pure.

Sources: the schema and `api/decide.js` of https://github.com/decidefyi/decide for names, patterns, bounds, operators and the order
of rules (higher `priority` first, ties by `rule_id`). No source says what an operator makes of a field that is not there: here such
a field meets `not_exists` and nothing else. Nor what a type is called: those of JSON Schema are taken.
Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_ID = re.compile(r"[a-z][a-z0-9_.:-]{1,119}")
_WORD = re.compile(r"[A-Z][A-Z0-9_]{1,79}")
_MAX_VERSION = 80  # characters
_MAX_ACTION = 160
_MAX_RULES = 100
_MAX_PRIORITY = 1000
_MAX_CHILDREN = 32
_MAX_DEPTH = 8
_MAX_NODES = 256
_ABSENT: Any = object()

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


class Problem(NamedTuple):
    """One thing that is wrong with a rulebook, as decide.fyi lists it under `errors`."""

    field: str
    code: str
    message: str


class Finding(NamedTuple):
    """What a rulebook says to some inputs: an outcome, and the rule that gave it (None: the default)."""

    outcome: Mapping[str, Any]
    rule_id: str | None
    evidence: list[dict[str, Any]]


# -- the schema ---------------------------------------------------------------------------------------------------------------


def problems(rulebook: Any) -> list[Problem]:
    """Everything that is wrong with a rulebook; empty if it can be evaluated."""
    return list(_rulebook(rulebook))


def _shape(
    value: Any, where: str, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> Iterator[Problem]:
    """An object with these fields and no others."""
    if not isinstance(value, dict):
        yield Problem(where, "TYPE", "must be an object")
        return
    for name in sorted(required - value.keys()):
        yield Problem(f"{where}.{name}", "REQUIRED", "is required")
    for name in sorted(value.keys() - required - optional):
        yield Problem(f"{where}.{name}", "UNKNOWN_PROPERTY", "is not part of rulebook_v1")


def _rulebook(book: Any) -> Iterator[Problem]:
    required = frozenset({"schema_version", "rulebook_id", "version", "input_schema", "rules", "default_outcome"})
    yield from _shape(book, "rulebook", required)
    if not isinstance(book, dict) or not required <= book.keys():
        return
    if book["schema_version"] != "rulebook_v1":
        yield Problem("rulebook.schema_version", "CONST", "must be rulebook_v1")
    yield from _pattern(book["rulebook_id"], "rulebook.rulebook_id", _ID)
    if not isinstance(book["version"], str) or not 1 <= len(book["version"]) <= _MAX_VERSION:
        yield Problem("rulebook.version", "LENGTH", f"must be a text of 1 to {_MAX_VERSION} characters")
    yield from _input_schema(book["input_schema"])
    yield from _outcome(book["default_outcome"], "rulebook.default_outcome")
    yield from _rules(book["rules"])


def _pattern(value: Any, where: str, pattern: re.Pattern[str]) -> Iterator[Problem]:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        yield Problem(where, "PATTERN", f"must match ^{pattern.pattern}$")


def _input_schema(schema: Any) -> Iterator[Problem]:
    where = "rulebook.input_schema"
    yield from _shape(schema, where, frozenset(), frozenset({"required", "properties"}))
    if not isinstance(schema, dict):
        return
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) and name for name in required):
        yield Problem(f"{where}.required", "TYPE", "must be an array of names")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        yield Problem(f"{where}.properties", "TYPE", "must be an object")
        return
    for name, each in properties.items():
        yield from _shape(each, f"{where}.properties.{name}", frozenset({"type"}))
        kind = each.get("type") if isinstance(each, dict) else None
        if isinstance(each, dict) and "type" in each and (not isinstance(kind, str) or kind not in _TYPES):
            yield Problem(f"{where}.properties.{name}.type", "ENUM", f"must be one of {', '.join(_TYPES)}")


def _outcome(outcome: Any, where: str) -> Iterator[Problem]:
    required = frozenset({"decision", "verdict", "reason_code", "action"})
    yield from _shape(outcome, where, required)
    if not isinstance(outcome, dict) or not required <= outcome.keys():
        return
    if outcome["decision"] not in ("yes", "no", "review"):
        yield Problem(f"{where}.decision", "ENUM", "must be yes, no or review")
    yield from _pattern(outcome["verdict"], f"{where}.verdict", _WORD)
    yield from _pattern(outcome["reason_code"], f"{where}.reason_code", _WORD)
    if not isinstance(outcome["action"], str) or not 1 <= len(outcome["action"]) <= _MAX_ACTION:
        yield Problem(f"{where}.action", "LENGTH", f"must be a text of 1 to {_MAX_ACTION} characters")


def _rules(rules: Any) -> Iterator[Problem]:
    if not isinstance(rules, list) or not 1 <= len(rules) <= _MAX_RULES:
        yield Problem("rulebook.rules", "LENGTH", f"must be an array of 1 to {_MAX_RULES} rules")
        return
    required = frozenset({"rule_id", "condition", "outcome"})
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        where = f"rulebook.rules[{index}]"
        yield from _shape(rule, where, required, frozenset({"priority"}))
        if not isinstance(rule, dict) or not required <= rule.keys():
            continue
        yield from _pattern(rule["rule_id"], f"{where}.rule_id", _ID)
        if isinstance(rule["rule_id"], str):
            if rule["rule_id"] in seen:
                yield Problem(f"{where}.rule_id", "DUPLICATE", "occurs twice")
            seen.add(rule["rule_id"])
        priority = rule.get("priority", 0)
        if not _TYPES["integer"](priority) or abs(priority) > _MAX_PRIORITY:
            yield Problem(f"{where}.priority", "RANGE", f"must be an integer of -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
        yield from _outcome(rule["outcome"], f"{where}.outcome")
        yield from _condition_tree(rule["condition"], f"{where}.condition")


def _condition_tree(condition: Any, where: str) -> Iterator[Problem]:
    found = list(_condition(condition, where, 1))
    nodes = _nodes(condition) if not found else 0
    if nodes > _MAX_NODES:
        found.append(Problem(where, "NODES", f"has {nodes} nodes, more than {_MAX_NODES}"))
    yield from found


def _nodes(condition: Mapping[str, Any]) -> int:
    children = condition.get("all") or condition.get("any") or [condition["not"]] if "field" not in condition else []
    return 1 + sum(_nodes(child) for child in children)


def _condition(condition: Any, where: str, depth: int) -> Iterator[Problem]:
    if depth > _MAX_DEPTH:
        yield Problem(where, "DEPTH", f"lies deeper than {_MAX_DEPTH}")
    elif not isinstance(condition, dict):
        yield Problem(where, "TYPE", "must be an object")
    elif "all" in condition or "any" in condition:
        how = "all" if "all" in condition else "any"
        yield from _shape(condition, where, frozenset({how}))
        children = condition[how]
        if not isinstance(children, list) or not 1 <= len(children) <= _MAX_CHILDREN:
            yield Problem(f"{where}.{how}", "LENGTH", f"must be an array of 1 to {_MAX_CHILDREN} conditions")
            return
        for index, child in enumerate(children):
            yield from _condition(child, f"{where}.{how}[{index}]", depth + 1)
    elif "not" in condition:
        yield from _shape(condition, where, frozenset({"not"}))
        yield from _condition(condition["not"], f"{where}.not", depth + 1)
    else:
        yield from _comparison(condition, where)


def _comparison(condition: Mapping[str, Any], where: str) -> Iterator[Problem]:
    yield from _shape(condition, where, frozenset({"field", "operator"}), frozenset({"value"}))
    field, operator = condition.get("field", "x"), condition.get("operator", "exists")
    if not isinstance(field, str) or not field:
        yield Problem(f"{where}.field", "TYPE", "must be a text")
    if not isinstance(operator, str) or operator not in _OPERATORS:
        yield Problem(f"{where}.operator", "ENUM", f"must be one of {', '.join(_OPERATORS)}")
    elif operator not in _UNARY and "value" not in condition:
        yield Problem(f"{where}.value", "REQUIRED", f"is required by {operator}")
    elif operator in {"in", "not_in"} and not isinstance(condition["value"], list):
        yield Problem(f"{where}.value", "TYPE", f"must be an array for {operator}")


# -- inputs -------------------------------------------------------------------------------------------------------------------


def unmet(rulebook: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The required inputs that are missing, and those of another type than `input_schema` says."""
    schema = rulebook["input_schema"]
    missing = [name for name in schema.get("required", []) if name not in inputs]
    properties = schema.get("properties", {})
    invalid = [name for name, each in properties.items() if name in inputs and not _TYPES[each["type"]](inputs[name])]
    return missing, invalid


# -- evaluation ---------------------------------------------------------------------------------------------------------------


def evaluate(rulebook: Mapping[str, Any], inputs: Mapping[str, Any]) -> Finding:
    """The outcome of the first rule that holds, by priority and then by name; else the default. The rulebook is valid."""
    for rule in sorted(rulebook["rules"], key=lambda rule: (-rule.get("priority", 0), rule["rule_id"])):
        evidence: list[dict[str, Any]] = []
        if _holds(rule["condition"], inputs, evidence):
            return Finding(rule["outcome"], rule["rule_id"], evidence)
    return Finding(rulebook["default_outcome"], None, [])


def _holds(condition: Mapping[str, Any], inputs: Mapping[str, Any], evidence: list[dict[str, Any]]) -> bool:
    if "all" in condition:
        return all(_holds(child, inputs, evidence) for child in condition["all"])
    if "any" in condition:
        return any(_holds(child, inputs, evidence) for child in condition["any"])
    if "not" in condition:
        return not _holds(condition["not"], inputs, evidence)
    actual = _lookup(inputs, condition["field"])
    operator = condition["operator"]
    holds = _OPERATORS[operator](actual, condition.get("value")) if actual is not _ABSENT else operator == "not_exists"
    if holds:
        shown = {} if actual is _ABSENT else {"actual": actual}
        evidence.append({"code": operator.upper(), "source": f"inputs.{condition['field']}", **shown})
    return holds


def _lookup(inputs: Mapping[str, Any], field: str) -> Any:
    """The value of a field, by its name as it stands or by a dotted way into objects."""
    if field in inputs:
        return inputs[field]
    value: Any = inputs
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON, where true is not 1."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)


def _ordered(actual: Any, value: Any) -> bool:
    """Whether two values have an order: two numbers or two texts."""
    return (isinstance(actual, str) and isinstance(value, str)) or (
        _TYPES["number"](actual) and _TYPES["number"](value)
    )


def _contains(actual: Any, value: Any) -> bool:
    if isinstance(actual, str):
        return isinstance(value, str) and value in actual
    return isinstance(actual, list) and any(_same(each, value) for each in actual)


_UNARY = frozenset({"exists", "not_exists"})
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "exists": lambda _actual, _value: True,
    "not_exists": lambda _actual, _value: False,
    "eq": _same,
    "neq": lambda actual, value: not _same(actual, value),
    "gt": lambda actual, value: _ordered(actual, value) and actual > value,
    "gte": lambda actual, value: _ordered(actual, value) and actual >= value,
    "lt": lambda actual, value: _ordered(actual, value) and actual < value,
    "lte": lambda actual, value: _ordered(actual, value) and actual <= value,
    "in": lambda actual, value: any(_same(actual, each) for each in value),
    "not_in": lambda actual, value: not any(_same(actual, each) for each in value),
    "contains": _contains,
    "not_contains": lambda actual, value: not _contains(actual, value),
}
