"""Are the metrics, their document and the dashboard about the same numbers?"""

import json
import re
from typing import Any

import pytest

from coordinator.http.counters import HttpCounters
from coordinator.tally import DURATION_BUCKETS_S
from tests.support.metrics import SimulatedService, exposed_names, families
from tests.support.tree import ROOT

DOCUMENT = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "docs" / "grafana" / "kvrelay.json"
ROW = re.compile(r"^\| `((?:kvrelay_|vllm:)\w+)` \| (\w+) \|(?: ([^|]*) \|)?", re.MULTILINE)
METRIC = re.compile(r"\bkvrelay_\w+")
BY = re.compile(r"\bby \(([^)]*)\)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")
SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def exposed() -> dict[str, str]:
    """Type by name, of everything that the text can contain."""
    return exposed_names(families(_text()))


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of each metric, with what its samples append to the name."""
    found: dict[str, set[str]] = {}
    for family in families(_text()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _text() -> bytes:
    cell = SimulatedService()
    cell.answer()
    http = HttpCounters(routes=frozenset({"/health"}), limits=("body",))
    http.answered("/health", "GET", 200)
    return cell.exposition("vllm", http).text()


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def test_every_metric_has_a_row_with_its_type_and_every_row_a_metric(exposed: dict[str, str]) -> None:
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(rows) == len({name for name, *_ in rows}), "a metric has two rows"
    assert {name: kind for name, kind, _ in rows} == exposed


def test_the_rows_name_the_labels(labels: dict[str, set[str]]) -> None:
    for name, kind, cell in ROW.findall(DOCUMENT.read_text(encoding="utf-8")):
        if name.startswith("kvrelay_"):
            real = labels[f"{name}_count" if kind == "histogram" else name]
            assert set(re.findall(r"`(\w+)`", cell)) == real, name


def test_the_document_lists_the_buckets() -> None:
    listed = re.search(r"^- Seconds: ([\d., \n]*)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    assert tuple(float(bound) for bound in listed[1].split(",")) == DURATION_BUCKETS_S


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, expression and legend of every query."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def test_the_dashboard_asks_for_metrics_that_exist(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    asked = expressions(dashboard)
    assert len(asked) > 40
    for title, expression, _ in asked:
        names = METRIC.findall(expression)
        assert names, f"{title}: {expression}"
        for name in names:
            assert name in labels, f"{title}: there is no {name}"
    (job,) = (entry for entry in dashboard["templating"]["list"] if entry["name"] == "job")
    assert set(METRIC.findall(job["definition"])) <= labels.keys()


def test_the_dashboard_asks_for_labels_that_exist(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    for title, expression, legend in expressions(dashboard):
        for name in METRIC.findall(expression):
            grouped = {label.strip() for by in BY.findall(expression) for label in by.split(",")}
            assert grouped <= labels[name], f"{title}: {expression}"
            assert set(LEGEND.findall(legend)) <= labels[name], f"{title}: {legend}"
        if "by (" in expression:
            assert set(LEGEND.findall(legend)) <= grouped, f"{title}: {legend} is not in the result"


def test_rates_are_of_counters_and_quantiles_of_histograms(dashboard: dict[str, Any], exposed: dict[str, str]) -> None:
    for title, expression, _ in expressions(dashboard):
        for name in METRIC.findall(expression):
            base = next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)
            grows = exposed.get(base, exposed.get(name)) in ("counter", "histogram")
            assert grows == (f"rate({name}" in expression), f"{title}: {expression}"
            assert name.endswith("_bucket") == ("histogram_quantile" in expression), f"{title}: {expression}"
        assert expression.count("(") == expression.count(")")


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    """The parts of Grafana's schema that an import needs: ids, places that do not overlap, a data source to choose."""
    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] >= 36
    variables = {entry["name"]: entry for entry in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        fields = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not fields & taken, panel["title"]
        taken |= fields
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)
