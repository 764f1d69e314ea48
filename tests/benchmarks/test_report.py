"""Pages, tables and comparisons from a report written by hand."""

import copy
import json
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.benchmarks.calibration import reliability
from amlr.benchmarks.parity import failure
from amlr.benchmarks.report.charts import Bar, Line, bar_chart, line_chart, reliability_chart
from amlr.benchmarks.report.figures import number, ratio_text
from amlr.benchmarks.report.html import render_html
from amlr.benchmarks.report.markdown import compare_reports, render_markdown
from amlr.benchmarks.report.records import ChangeRecord, Report, TierParity
from amlr.benchmarks.report.schema import json_schema, parse_report, read_report, write_report
from amlr.errors import InputError

NASTY = 'Jordan <script>alert("x")</script> & http://example.com/a'


def row(workload: str, backend: str, ms: float, ratio: float, batch: int = 16) -> dict[str, Any]:
    return {
        "workload": workload, "backend": backend, "precision": "fp32", "threads": 1,
        "batch": batch, "p50_ms": ms, "p95_ms": ms * 1.2, "p99_ms": None,
        "posts_per_s": 1000 * batch / ms, "baseline": "research", "ratio": ratio,
    }  # fmt: skip


@pytest.fixture
def report() -> Report:
    parity = TierParity(
        verdict="fail", posts=10, entities=30, changed_entities=1, backend="amlr-x",
        precision="fp32", tolerance=1e-4, max_abs_error={"emissions": 1e-6, "unit_logits": None},
        changes=[
            ChangeRecord(
                id="7", text=NASTY, missing=[(0, 6, "PER")], margin=0.2, undecidable=False,
                added=[(0, 6, "LOC"), (3, 6, "ORG")], first_diverging="decoder",
                errors={"emissions": 0.0},
            )
        ],
    )  # fmt: skip
    parity.reason = failure(parity)
    rows = [row("cold", "amlr-x", 100, 6.5), row("cold", "research", 650, 1)]
    rows += [row("hit", "amlr-x", 10, 2, batch=8)]
    reliable = {"ece": 0.1, "entities": 4, "bins": [[4, 0.9, 0.8], [0, None, None]]}
    peer = {"backend": "amlr-x", "precision": "fp32", "about": "engine", "status": "measured",
            "reason": "", "max_abs_error": 1e-6, "load_cpu_s": 0.2, "load_s": 0.3,
            "first_post_ms": 5.0, "peak_memory_mb": 120.0, "waiting": 1.0}  # fmt: skip
    record = asdict(parity)
    values = {
        "schema": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "amlr": "0.1.0",
        "engine": {"name": "demo", "manifest_sha256": "00"},
        "settings": {"threads": 1, "clock": "wall", "quick": True, "data": "sample", "posts": 10,
                     "pictures": 5},
        "machine": {"cpu": "Test CPU", "vendor": None, "features": ["avx2"], "cores": 2,
                    "memory_gb": 4.0, "system": "Linux", "python": "3.11",
                    "packages": {"numpy": "2"}},
        "parity": {**record, "tiers": [record]},
        "rows": rows,
        "peers": [peer, {**peer, "backend": "openvino", "status": "failed", "reason": "broke"}],
        "resources": {"bundle_mb": 12.0, "variants_mb": {"fp32": 11.0}, "padding": {}},
        "calibration": {"summary": "ECE 0.1", "before": reliable, "after": reliable},
        "notes": ["a <b>note</b>"],
    }  # fmt: skip
    return parse_report(json.dumps(values))


def test_page_shows_all_and_escapes_posts(report: Report) -> None:
    page = render_html(report)
    assert "Not the same" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt;b&gt;note&lt;/b&gt;" in page
    assert "<mark>Jordan</mark>" in page
    for word in ("What it takes to run", "Reliability", "broke"):
        assert word in page
    assert page.count("<svg") == page.count("</svg>") >= 6


def test_page_of_parity_alone(report: Report) -> None:
    page = render_html(replace(report, rows=[], peers=[], calibration=None, notes=[]))
    assert "Parity with the eager PyTorch model" in page
    assert "Speed beside" not in page


def test_markdown_has_verdict_ratio_and_absent_peers(report: Report) -> None:
    text = render_markdown(report)
    assert "FAIL: 1 of 30 entities changed over 10 posts" in text
    assert "unit_logits not finite" in text
    assert "| cold | amlr-x | fp32 | 16 | 100 | 120 | – | 160 | research 6.5x |" in text
    assert "- openvino fp32 (failed): broke" in text


def test_comparison_names_what_changed(report: Report) -> None:
    after = copy.deepcopy(report)
    after.rows[0] = replace(after.rows[0], p50_ms=50.0, ratio=13.0)
    after.machine.cpu = "Other CPU"
    after.machine.packages = {"numpy": "3"}
    del after.rows[-1]
    text = compare_reports(report, after)
    assert "| cold | amlr-x | fp32 | 16 | 100 | 50 | 2x | faster | 6.5x | 13x |" in text
    assert "same" in text
    assert "Different processors" in text
    assert "numpy: 2 before, 3 after" in text
    assert "only before: hit amlr-x b8" in text


def test_report_round_trip_and_schema(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    write_report(path, report)
    assert read_report(path) == report
    assert read_report(path).parity.max_abs_error["unit_logits"] is None
    assert list(path.parent.iterdir()) == [path]
    values = json.loads(path.read_text("utf-8"))
    for broken, where in (
        ({"schema": 2}, "at schema"),
        ({"rows": [{**values["rows"][0], "extra": 1}]}, "at rows/0/extra"),
        ({"rows": [{**values["rows"][0], "batch": 0}]}, "at rows/0/batch"),
        ({"rows": [{**values["rows"][0], "p50_ms": "1"}]}, "at rows/0/p50_ms"),
        ({"parity": {"verdict": "maybe"}}, "at parity/verdict"),
        ({"machine": {}}, "at machine/cpu"),
    ):
        with pytest.raises(InputError, match=where):
            parse_report(json.dumps(values | broken))
    report.rows[0] = replace(report.rows[0], threads=0)
    with pytest.raises(InputError, match="at rows/0/threads"):
        write_report(tmp_path / "bad.json", report)
    assert not (tmp_path / "bad.json").exists()
    with pytest.raises(InputError, match="cannot read"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_report(tmp_path / "no.json")


def test_the_shipped_schema_is_that_of_the_records() -> None:
    shipped = files("amlr.benchmarks").joinpath("bench.schema.json").read_text("utf-8")
    assert shipped == json_schema(), "run python -m amlr.benchmarks.report.schema"


def test_reports_of_older_versions_still_read(report: Report) -> None:
    values = asdict(report)
    values["targets"] = [{"workload": "cold", "met": True}]
    for row in values["rows"]:
        del row["baseline_precision"]
    del values["settings"]["runs"], values["parity"]["tiers"], values["machine"]["family"]
    assert parse_report(json.dumps(values)).rows == report.rows


def test_verdict_needs_posts_entities_and_numbers() -> None:
    def reason(**values: Any) -> str:
        record = TierParity(
            verdict="fail", posts=1, entities=9, changed_entities=0, tolerance=1e-4,
            max_abs_error={"emissions": 0.0, "unit_logits": 0.0},
        )  # fmt: skip
        return failure(replace(record, **values))

    assert not reason()
    assert reason(posts=0)
    assert reason(changed_entities=1)
    assert reason(failed_posts=1)
    assert not reason(undecidable_changed_entities=3)
    off = {"emissions": 2e-4, "unit_logits": 0.0}
    assert "0.000202 would pass" in reason(max_abs_error=off)
    assert not reason(max_abs_error=off, tolerance=None)
    assert "unit_logits" in reason(max_abs_error={"emissions": 0.0, "unit_logits": None})


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.00001234, "0.000012")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_ratios() -> None:
    assert [ratio_text(v) for v in (None, 1.0, 6.54, 14.26)] == ["–", "1x", "6.5x", "14.3x"]


def test_charts_survive_empty_and_missing_values() -> None:
    assert bar_chart([], "ms", "none").endswith("</svg>")
    assert bar_chart([Bar(label="<a>", value=0.0)], "ms", "zero").count("&lt;a&gt;") == 1
    gaps = line_chart([Line(label="a", values=[1.0, None, 3.0])], ["1", "2", "3"], "x", "ms")
    assert gaps.count("<circle") == 2
    assert line_chart([Line(label="a", values=[None])], ["1"], "x", "ms").endswith("</svg>")
    assert reliability_chart([], [(2, 0.5, 0.4)]).count("<circle") == 2


def testreliability_of_honest_and_boastful_scores() -> None:
    honest = reliability(np.array([1.0, 0.0]), np.array([True, False]))
    boastful = reliability(np.array([0.9, 0.9]), np.array([True, False]))
    assert honest.ece == 0
    assert boastful.ece == pytest.approx(0.4)
    assert reliability(np.zeros(0), np.zeros(0, bool)).entities == 0
