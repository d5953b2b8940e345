"""deploy/monitoring/: rules that fire when they should, a dashboard that Grafana can load."""

import copy
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus has it)"
)


def promtool(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True)


@needs_promtool
def test_prometheus_takes_the_rules_and_the_config_that_names_them() -> None:
    done = promtool("check", "config", MONITORING / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 rules found" in done.stdout


@needs_promtool
def test_each_alert_fires_when_it_should_and_at_no_other_time() -> None:
    done = promtool("test", "rules", Path(__file__).with_name("alerts.test.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "dashboard.json").read_text()))


def test_each_panel_has_its_own_place_and_asks_the_chosen_data_source(
    dashboard: dict[str, Any],
) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        chosen = {"type": "prometheus", "uid": "${datasource}"}
        assert [panel["datasource"], *(t["datasource"] for t in panel["targets"])] == [chosen] * (
            1 + len(panel["targets"])
        )
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
        assert max(place["x"] + place["w"] for place in (one, other)) <= 24


def test_the_dashboard_uses_the_variables_that_it_has(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    assert set(re.findall(r"\$(\w+)", asked)) | {"datasource"} == variables


def missing(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """What stands in one document and not, or otherwise, in another."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            found
            for key, value in ours.items()
            for found in missing(value, theirs.get(key), f"{place}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for index, pair in pairs for found in missing(*pair, f"{place}[{index}]")]
    return [] if ours == theirs else [f"{place}: {ours} became {theirs}"]


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    """What the models that Grafana makes of its own schema keep of a dashboard."""
    register_default_plugins()  # without them a panel's options are kept unread
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafana_knows_all_that_the_dashboard_says(dashboard: dict[str, Any]) -> None:
    assert missing(dashboard, read_by_grafana(dashboard)) == []


def test_what_grafana_does_not_know_is_found(dashboard: dict[str, Any]) -> None:
    wrong = copy.deepcopy(dashboard)
    wrong["panels"][0]["options"]["colorMood"] = "blue"
    wrong["panels"][1]["gridPosition"] = {}
    assert missing(wrong, read_by_grafana(wrong)) == [
        ".panels[0].options.colorMood: blue became None",
        ".panels[1].gridPosition: {} became None",
    ]
