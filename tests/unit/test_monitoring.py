"""What is shipped for Prometheus and Grafana: held to their own tools, and to the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from metrics_kit import STATUS
from msgspec import Struct
from promtool_kit import promtool

from agentd.metrics import Metrics
from agentd.spool.timings import Timings

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config/agentd-alerts.yml"
DASHBOARD = ROOT / "config/agentd-dashboard.json"
PLAYS = ROOT / "tests/data/agentd-alerts.test.yml"
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$destination": ".*"}


def exposition():
    timings = Timings()
    timings.delivery["cloud"] = timings.ack
    metrics = Metrics(lambda: STATUS, lambda: iter([("cloud", "event", "dead", "x", 1)]), lambda: iter([("cloud", "decide", "allow", 1)]), timings.told)  # fmt: skip
    metrics.observe("cloud", "delivered", 0.1, 5)
    metrics.observe_gate("cloud", "decide", 0.1)
    return metrics.text()[0].decode()


NAMES = set(re.findall(r"^(agentd_\w+?)(?:\{| )", exposition(), re.MULTILINE)) | {"agentd_build_info"}


def metrics_of(expression):
    return set(re.findall(r"\bagentd_[a-z_]+", expression))


# -- alerts --------------------------------------------------------------------------------------------------------------


def test_the_alert_rules_are_rules():
    """promtool takes config/agentd-alerts.yml."""
    assert "SUCCESS: 15 rules found" in promtool("check", "rules", str(RULES))


def test_each_alert_is_raised_on_a_bad_day_and_none_on_a_quiet_one():
    """promtool plays both days to the rules."""
    assert "SUCCESS" in promtool("test", "rules", PLAYS.name, cwd=PLAYS.parent)


def test_each_alert_is_played():
    """A rule that is added without a play of its own is found here."""
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    plays = PLAYS.read_text()
    assert len(alerts) == len(set(alerts)) == 15
    for alert in alerts:
        assert plays.count(f"alertname: {alert}}}") == 1, alert
        assert plays.count(f'alertname="{alert}"') == 1, alert


def test_alerts_speak_of_metrics_that_there_are():
    """No rule waits for a series that agentd does not expose."""
    named = {name for line in RULES.read_text().splitlines() for name in metrics_of(line.partition("#")[0])}
    assert named - NAMES == set()
    assert len(named) > 10


def test_every_alert_says_what_to_do():
    """A severity, a summary, and a description that names the verb to begin with."""
    for block in RULES.read_text().split("- alert: ")[1:]:
        assert re.search(r"severity: (page|ticket)", block), block
        assert "summary:" in block
        assert re.search(r"description: .*(`agentd |log says|Make room|disk shared|by itself)", block), block


# -- the dashboard -------------------------------------------------------------------------------------------------------
# As Grafana's own reference has it (docs/sources/developers/kinds/core/dashboard/schema-reference.md), schemaVersion 36 and later,
# as far as it is used here: a key that is not in it is an error.


class _Strict(Struct, forbid_unknown_fields=True):
    pass


class GridPos(_Strict):
    h: int
    w: int
    x: int
    y: int


class Source(_Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Target(_Strict):
    datasource: Source
    expr: str
    legendFormat: str  # noqa: N815 - Grafana's
    refId: str  # noqa: N815
    instant: bool
    range: bool


class Panel(_Strict):
    id: int
    type: Literal["row", "stat", "timeseries"]
    title: str
    gridPos: GridPos  # noqa: N815
    description: str = ""
    datasource: Source | None = None
    targets: list[Target] = []
    fieldConfig: dict[Literal["defaults", "overrides"], Any] = {}  # noqa: N815
    options: dict[str, Any] = {}
    collapsed: bool = False
    panels: list[Any] = []


class Variable(_Strict):
    name: str
    label: str
    type: Literal["datasource", "query"]
    query: str | dict[Literal["query", "refId"], str]
    current: dict[str, Any]
    includeAll: bool  # noqa: N815
    multi: bool
    refresh: Literal[0, 1, 2]
    datasource: Source | None = None
    definition: str = ""
    allValue: str | None = None  # noqa: N815
    sort: int = 0


class Dashboard(_Strict):
    uid: str
    title: str
    description: str
    tags: list[str]
    schemaVersion: int  # noqa: N815
    version: int
    editable: bool
    graphTooltip: Literal[0, 1, 2]  # noqa: N815
    refresh: str
    timezone: str
    time: dict[Literal["from", "to"], str]
    annotations: dict[Literal["list"], list[Any]]
    links: list[Any]
    templating: dict[Literal["list"], list[Variable]]
    panels: list[Panel]


@pytest.fixture(scope="module")
def dashboard():
    return msgspec.json.decode(DASHBOARD.read_bytes(), type=Dashboard)


def expressions(dashboard):
    return [target.expr for panel in dashboard.panels for target in panel.targets]


def test_the_dashboard_is_one(dashboard):
    """It has the shape of Grafana's schema, with panels of their own number that do not cover one another."""
    assert dashboard.schemaVersion >= 36
    assert len({panel.id for panel in dashboard.panels}) == len(dashboard.panels) > 20
    places = set()
    for panel in dashboard.panels:
        at = panel.gridPos
        assert at.x + at.w <= 24, panel.title
        cells = {(x, y) for x in range(at.x, at.x + at.w) for y in range(at.y, at.y + at.h)}
        assert not cells & places, panel.title
        places |= cells
        assert panel.type == "row" or (panel.description and panel.targets and panel.datasource), panel.title
        assert len({target.refId for target in panel.targets}) == len(panel.targets)


def test_the_dashboard_asks_for_metrics_that_there_are(dashboard):
    """Each series that a panel or a variable names is in agentd's own exposition, and each variable is defined."""
    queries = [variable.query["query"] for variable in dashboard.templating["list"] if variable.type == "query"]
    for expression in [*expressions(dashboard), *queries]:
        assert metrics_of(expression) - NAMES == set(), expression
        assert metrics_of(expression), expression
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(msgspec.to_builtins(dashboard))))
    assert used == {variable.name for variable in dashboard.templating["list"]}


def test_every_query_of_the_dashboard_is_promql(dashboard, tmp_path):
    """promtool parses each, as a recording rule, with Grafana's variables filled in."""
    rules = []
    for number, expression in enumerate(expressions(dashboard)):
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901 - filled in
        rules.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", str(file))


# -- the metrics themselves ----------------------------------------------------------------------------------------------


def test_names_and_units_are_by_convention():
    """promtool lints the exposition: units, `_total`, help texts, labels."""
    assert promtool("check", "metrics", stdin=exposition()) == ""
