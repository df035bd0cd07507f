"""The alerts and the dashboard speak of metrics that there are, in words that Prometheus understands."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.asgi import serving, settings_in
from tests.support.tools import needs, tool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus-rules.yml"
DASHBOARD = ROOT / "deploy/grafana-dashboard.json"
NOT_DRAWN = {
    "waybill_files_without_record",
    "waybill_foreign_names",
    "waybill_scrub_progress_ratio",
    "waybill_scrubbed_files_total",
}


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def expressions():
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


@pytest.fixture
async def samples(tmp_path):
    """Every series of the service by its name: the values that each of its labels has."""
    found = {}
    async with serving(settings_in(tmp_path)) as service:
        text = (await service.client().get("/metrics")).body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


async def test_every_metric_and_label_that_is_asked_for_is_there(samples):
    for expression in expressions():
        names = re.findall(r"waybill_\w+", expression)
        assert names or "up{" in expression, expression
        assert samples.keys() >= set(names), expression
        for name, selectors in re.findall(r"(waybill_\w+)\{([^}]*)\}", expression):
            for label, kind, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selectors):
                if label not in ("job", "instance"):
                    wanted = value.split("|") if kind == "=~" else [value]
                    assert samples[name][label] >= set(wanted), expression


async def test_every_metric_is_drawn_but_those_that_are_named_here(samples):
    drawn = set(re.findall(r"waybill_\w+", " ".join(panel["expr"] for each in panels() for panel in each["targets"])))
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in samples if name.startswith("waybill_")}
    drawn = {re.sub(r"_(bucket|sum|count)$", "", name) for name in drawn}
    assert families - drawn == NOT_DRAWN


def test_the_panels_of_the_dashboard_lie_side_by_side():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs("promtool")
def test_prometheus_takes_the_alerts():
    subprocess.run([tool("promtool"), "check", "rules", RULES], check=True, capture_output=True)


@needs("promtool")
def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path):
    """As recording rules: no program checks a dashboard, and its variables stand for what a person chooses."""
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$", "")}
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run([tool("promtool"), "check", "rules", path], check=True, capture_output=True)


@needs("promtool")
@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_not_before():
    path = Path(__file__).with_name("prometheus-rules.test.yml")
    done = subprocess.run([tool("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = path.read_text("utf-8")
    assert [rule["alert"] for rule in alerts() if tried.count(rule["alert"]) < 2] == []
