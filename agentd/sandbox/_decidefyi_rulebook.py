"""Rulebook v1 of decide.fyi: its schema, and what it decides. Pure.

Sources: `lib/rulebook-v1.js`, public/schemas/rulebook-v1.schema.json and docs/RULEBOOK_V1.md of https://github.com/decidefyi/decide
for names, patterns, bounds, operators, codes and the order of rules (higher `priority` first, ties by `rule_id`). A field is a
dotted way into the inputs; one that isn't there meets `not_exists` and nothing else. Only numbers are ordered, and an array or an
object equals nothing. Each thing that is wrong is listed once here, and there often twice: as `schema_violation` too.
Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_ID = re.compile(r"[a-z][a-z0-9_.:-]{1,119}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,159}")
_WORD = re.compile(r"[A-Z][A-Z0-9_]{1,79}")
_MAX_VERSION = 80  # characters
_MAX_ACTION = 160
_MAX_RULES = 100
_MAX_PRIORITY = 1000
_MAX_CHILDREN = 32
_MAX_DEPTH = 8  # below a rule's own condition
_MAX_NODES = 256  # of all rules together
_ABSENT: Any = object()

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (isinstance(value, int) and not isinstance(value, bool)) or _is_whole(value),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def _is_whole(value: Any) -> bool:
    """JavaScript knows no difference between 1.0 and 1."""
    return isinstance(value, float) and value.is_integer()


class Problem(NamedTuple):
    """One thing that is wrong with a rulebook, as decide.fyi lists it under `errors`."""

    field: str
    code: str
    message: str


class Finding(NamedTuple):
    """What a rulebook says to some inputs: an outcome, and the rule that gave it (None: the default)."""

    outcome: Mapping[str, Any]
    rule_id: str | None
    checks: list[dict[str, Any]]  # what was looked at for it: field, operator, passed


# -- the schema ---------------------------------------------------------------------------------------------------------------


def problems(rulebook: Any) -> list[Problem]:
    """Everything that is wrong with a rulebook; empty if it can be evaluated."""
    return list(_rulebook(rulebook))


def _shape(
    value: Any, where: str, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> Iterator[Problem]:
    """An object with these fields and no others."""
    if not isinstance(value, dict):
        yield Problem(where, "invalid_type", "must be an object")
        return
    for name in sorted(required - value.keys()):
        yield Problem(f"{where}.{name}", "schema_violation", "is required")
    for name in sorted(value.keys() - required - optional):
        yield Problem(f"{where}.{name}", "unknown_field", "is not part of rulebook_v1")


def _rulebook(book: Any) -> Iterator[Problem]:
    required = frozenset({"schema_version", "rulebook_id", "version", "rules", "default_outcome"})
    yield from _shape(book, "rulebook", required, frozenset({"input_schema"}))
    if not isinstance(book, dict) or not required <= book.keys():
        return
    if book["schema_version"] != "rulebook_v1":
        yield Problem("rulebook.schema_version", "unsupported_version", "must be rulebook_v1")
    yield from _pattern(book["rulebook_id"], "rulebook.rulebook_id", _ID)
    if not isinstance(book["version"], str) or not 1 <= len(book["version"]) <= _MAX_VERSION:
        yield Problem("rulebook.version", "invalid_value", f"must be a text of 1 to {_MAX_VERSION} characters")
    yield from _input_schema(book.get("input_schema", {}))
    yield from _outcome(book["default_outcome"], "rulebook.default_outcome")
    yield from _rules(book["rules"])


def _pattern(value: Any, where: str, pattern: re.Pattern[str]) -> Iterator[Problem]:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        yield Problem(where, "invalid_value", f"must match ^{pattern.pattern}$")


def _input_schema(schema: Any) -> Iterator[Problem]:
    where = "rulebook.input_schema"
    yield from _shape(schema, where, frozenset(), frozenset({"required", "properties"}))
    if not isinstance(schema, dict):
        return
    required = schema.get("required", [])
    if not isinstance(required, list):
        yield Problem(f"{where}.required", "invalid_type", "must be an array of names")
    else:
        for index, name in enumerate(required):
            yield from _pattern(name, f"{where}.required[{index}]", _FIELD)
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        yield Problem(f"{where}.properties", "invalid_type", "must be an object")
        return
    for name, each in properties.items():
        yield from _pattern(name, f"{where}.properties.{name}", _FIELD)
        yield from _shape(each, f"{where}.properties.{name}", frozenset({"type"}))
        kind = each.get("type") if isinstance(each, dict) else None
        if isinstance(each, dict) and "type" in each and (not isinstance(kind, str) or kind not in _TYPES):
            yield Problem(f"{where}.properties.{name}.type", "invalid_value", f"must be one of {', '.join(_TYPES)}")


def _outcome(outcome: Any, where: str) -> Iterator[Problem]:
    required = frozenset({"decision", "verdict", "reason_code", "action"})
    yield from _shape(outcome, where, required)
    if not isinstance(outcome, dict) or not required <= outcome.keys():
        return
    if outcome["decision"] not in ("yes", "no", "review"):
        yield Problem(f"{where}.decision", "invalid_value", "must be yes, no or review")
    yield from _pattern(outcome["verdict"], f"{where}.verdict", _WORD)
    yield from _pattern(outcome["reason_code"], f"{where}.reason_code", _WORD)
    if not isinstance(outcome["action"], str) or not 1 <= len(outcome["action"]) <= _MAX_ACTION:
        yield Problem(f"{where}.action", "invalid_value", f"must be a text of 1 to {_MAX_ACTION} characters")


def _rules(rules: Any) -> Iterator[Problem]:
    if not isinstance(rules, list) or not 1 <= len(rules) <= _MAX_RULES:
        yield Problem("rulebook.rules", "invalid_value", f"must be an array of 1 to {_MAX_RULES} rules")
        return
    required = frozenset({"rule_id", "condition", "outcome"})
    seen: set[str] = set()
    nodes = 0
    for index, rule in enumerate(rules):
        where = f"rulebook.rules[{index}]"
        yield from _shape(rule, where, required, frozenset({"priority"}))
        if not isinstance(rule, dict) or not required <= rule.keys():
            continue
        yield from _pattern(rule["rule_id"], f"{where}.rule_id", _ID)
        if isinstance(rule["rule_id"], str):
            if rule["rule_id"] in seen:
                yield Problem(f"{where}.rule_id", "duplicate_value", "occurs twice")
            seen.add(rule["rule_id"])
        priority = rule.get("priority", 0)
        if not _TYPES["integer"](priority) or abs(priority) > _MAX_PRIORITY:
            yield Problem(
                f"{where}.priority", "invalid_value", f"must be an integer of -{_MAX_PRIORITY} to {_MAX_PRIORITY}"
            )
        yield from _outcome(rule["outcome"], f"{where}.outcome")
        wrong = list(_condition(rule["condition"], f"{where}.condition", 0))
        yield from wrong
        nodes += 0 if wrong else _nodes(rule["condition"])
        if nodes > _MAX_NODES:
            message = f"must contain at most {_MAX_NODES} condition nodes"
            yield Problem(f"{where}.condition", "too_complex", message)
            return


def _nodes(condition: Mapping[str, Any]) -> int:
    children = condition.get("all") or condition.get("any") or [condition["not"]] if "field" not in condition else []
    return 1 + sum(_nodes(child) for child in children)


def _condition(condition: Any, where: str, depth: int) -> Iterator[Problem]:
    if depth > _MAX_DEPTH:
        yield Problem(where, "too_deep", f"must be at most {_MAX_DEPTH} levels deep")
    elif not isinstance(condition, dict):
        yield Problem(where, "invalid_type", "must be an object")
    elif "all" in condition or "any" in condition:
        how = "all" if "all" in condition else "any"
        yield from _shape(condition, where, frozenset({how}))
        children = condition[how]
        if not isinstance(children, list) or not 1 <= len(children) <= _MAX_CHILDREN:
            yield Problem(f"{where}.{how}", "invalid_value", f"must be an array of 1 to {_MAX_CHILDREN} conditions")
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
    operator = condition.get("operator", "exists")
    yield from _pattern(condition.get("field", "x"), f"{where}.field", _FIELD)
    if not isinstance(operator, str) or operator not in _OPERATORS:
        yield Problem(f"{where}.operator", "unsupported_operator", f"must be one of {', '.join(_OPERATORS)}")


# -- inputs -------------------------------------------------------------------------------------------------------------------


def unmet(rulebook: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The required inputs that are missing, and those of another type than `input_schema` says."""
    schema = rulebook.get("input_schema", {})
    missing = [name for name in schema.get("required", []) if _lookup(inputs, name) is _ABSENT]
    given = {name: _lookup(inputs, name) for name in schema.get("properties", {})}
    invalid = [
        name
        for name, value in given.items()
        if value is not _ABSENT and not _TYPES[schema["properties"][name]["type"]](value)
    ]
    return missing, invalid


# -- evaluation ---------------------------------------------------------------------------------------------------------------


def evaluate(rulebook: Mapping[str, Any], inputs: Mapping[str, Any]) -> Finding:
    """The outcome of the first rule that holds, by priority and then by name; else the default. The rulebook is valid."""
    for rule in sorted(rulebook["rules"], key=lambda rule: (-rule.get("priority", 0), rule["rule_id"])):
        checks: list[dict[str, Any]] = []
        if _holds(rule["condition"], inputs, checks):
            return Finding(rule["outcome"], rule["rule_id"], checks)
    return Finding(rulebook["default_outcome"], None, [])


def _holds(condition: Mapping[str, Any], inputs: Mapping[str, Any], checks: list[dict[str, Any]]) -> bool:
    """Every part is looked at, also where the first has settled it."""
    if "all" in condition or "any" in condition:
        how = "all" if "all" in condition else "any"
        held = [_holds(child, inputs, checks) for child in condition[how]]
        return all(held) if how == "all" else any(held)
    if "not" in condition:
        return not _holds(condition["not"], inputs, checks)
    field, operator = condition["field"], condition["operator"]
    actual = _lookup(inputs, field)
    passed = _OPERATORS[operator](actual, condition.get("value")) if actual is not _ABSENT else operator == "not_exists"
    checks.append({"field": field, "operator": operator, "passed": passed})
    return passed


def _lookup(inputs: Mapping[str, Any], field: str) -> Any:
    """The value at the end of a dotted way."""
    value: Any = inputs
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _same(one: Any, other: Any) -> bool:
    """`Object.is` on decoded JSON: true is not 1, and two arrays or objects are never one."""
    if isinstance(one, bool) != isinstance(other, bool) or isinstance(one, list | dict):
        return False
    return bool(one == other)


def _ordered(actual: Any, value: Any) -> bool:
    """Whether two values have an order: numbers alone do."""
    return _TYPES["number"](actual) and _TYPES["number"](value)


def _contains(actual: Any, value: Any) -> bool:
    if isinstance(actual, str):
        return isinstance(value, str) and value in actual
    return isinstance(actual, list) and any(_same(each, value) for each in actual)


def _one_of(actual: Any, values: Any) -> bool:
    return isinstance(values, list) and any(_same(actual, each) for each in values)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "exists": lambda _actual, _value: True,
    "not_exists": lambda _actual, _value: False,
    "eq": _same,
    "neq": lambda actual, value: not _same(actual, value),
    "gt": lambda actual, value: _ordered(actual, value) and actual > value,
    "gte": lambda actual, value: _ordered(actual, value) and actual >= value,
    "lt": lambda actual, value: _ordered(actual, value) and actual < value,
    "lte": lambda actual, value: _ordered(actual, value) and actual <= value,
    "in": _one_of,
    "not_in": lambda actual, value: isinstance(value, list) and not _one_of(actual, value),
    "contains": _contains,
    "not_contains": lambda actual, value: not _contains(actual, value),
}
