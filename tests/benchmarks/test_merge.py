"""Ratios of tiers and merged runs, from reports written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.benchmarks.cli import bench_command
from amlr.benchmarks.report.html import render_html
from amlr.benchmarks.report.merge import merge_reports
from amlr.benchmarks.report.records import AutoRecord, Report, VariantRecord
from amlr.benchmarks.report.schema import parse_report, read_report, report_json, write_report
from amlr.benchmarks.report.tables import auto_lines, precision_table, speed_table
from amlr.errors import InputError

NO_RATIO: dict[str, Any] = {"p95_ms": None, "p99_ms": None, "posts_per_s": 1.0}


def rows(
    workload: str, precision: str, ms: float, *ratios: tuple[str, str, float], batch: int = 16,
    backend: str = "amlr-openvino",
) -> list[dict[str, Any]]:  # fmt: skip
    same = {"workload": workload, "backend": backend, "precision": precision, "threads": 1,
            "batch": batch, "p50_ms": ms, **NO_RATIO}  # fmt: skip
    return [
        same | {"baseline": name, "baseline_precision": other, "ratio": ratio}
        for name, other, ratio in ratios
    ]


def peer(backend: str, precision: str, **values: Any) -> dict[str, Any]:
    return {"backend": backend, "precision": precision, "status": "measured", "reason": "",
            "errors": {}, "peak_memory_mb": 100.0, "load_cpu_s": 0.5,
            "first_post_ms": None} | values  # fmt: skip


def tier(backend: str, precision: str, **values: Any) -> dict[str, Any]:
    held = {"posts": 5, "entities": 9, "changed_entities": 0, "changed_posts": 0,
            "change_bound": 0.6, "stages": {}}  # fmt: skip
    return {"verdict": "pass", "posts": 10, "entities": 20, "changed_entities": 0,
            "max_abs_error": {"emissions": 0.0}, "backend": backend, "precision": precision,
            "promised": True, "held": held, "f1": None} | values  # fmt: skip


def make(
    listed: list[dict[str, Any]],
    *peers: dict[str, Any],
    tiers: tuple[dict[str, Any], ...] = (),
    **settings: Any,
) -> Report:
    every = [*(tiers or (tier("amlr-openvino", "fp32"),))]
    values = {
        "schema": 1, "created": "2026-01-01T00:00:00+00:00", "amlr": "0.1.0",
        "engine": {"name": "x", "manifest_sha256": "00", "text_width": 384, "regions": 49,
                   "tiers": [], "passed_over": [], "auto": None},
        "settings": {"threads": 1, "clock": "wall", "data": "sample", "posts": 10,
                     "pictures": 5} | settings,
        "machine": {"cpu": "c", "vendor": None, "features": [], "cores": 2, "memory_gb": 4.0,
                    "system": "s", "python": "3", "packages": {}},
        "parity": {**every[0], "tiers": every}, "rows": listed, "peers": list(peers),
        "resources": {"bundle_mb": 1.0, "variants_mb": {}, "padding": {}},
        "calibration": None, "notes": [],
    }  # fmt: skip
    return parse_report(json.dumps(values))


COLD = rows(
    "cold", "fp32", 160, ("research", "fp32", 7.0), ("research-mkl", "fp32", 4.9),
    ("openvino", "fp32", 1.24),
)  # fmt: skip
BLOCK = rows("block", "fp32", 16, ("research", "fp32", 16.0), ("openvino", "fp32", 4.0))


def test_the_headline_is_of_a_tier_with_the_eager_entities() -> None:
    fast = rows("cold", "int8", 32, ("research", "fp32", 35.0))
    report = make([*COLD, *fast])
    (low,) = make([], tiers=(tier("amlr-openvino", "int8", verdict="fail"),)).parity.tiers
    report.parity.tiers.append(low)
    assert "<b>10 ms</b>per post, cold" in render_html(report)
    low.verdict = "pass"
    assert "<b>2 ms</b>per post, cold" in render_html(report)


def test_end_to_end_stands_beside_tensors_to_logits() -> None:
    whole = rows("end-to-end-cold", "fp32", 320, ("research", "fp32", 3.0))
    (line,) = speed_table(make([*COLD, *whole]).rows).rows
    assert line == ["cold", "openvino", "fp32", "10", "7x", "4.9x", "1.2x (fp32)", "20", "3x", "–"]


def test_precision_lines_name_what_changes_and_what_it_takes() -> None:
    held = {"posts": 4, "entities": 8, "changed_entities": 1, "changed_posts": 1,
            "change_bound": None, "stages": {"int8": 3, "fp32": 1}}  # fmt: skip
    f1 = {"posts": 9, "entities": 18, "eager": 0.7, "engine": 0.71}
    report = make(
        [], peer("amlr-openvino", "fp32"), peer("research", "fp32", peak_memory_mb=900.0),
        tiers=(
            tier("amlr-openvino", "fp32"),
            tier("amlr-openvino", "int8+fp32", held=held, f1=f1),
        ),
    )  # fmt: skip
    first, second, eager = precision_table(report).rows
    assert first[2:] == ["0 of 20", "0 of 9, 5 posts", "60 % of posts", "–", "–", "–", "100", "0.5"]
    assert second[3:8] == ["1 of 8, 4 posts", "–", "0.7000", "0.7100", "int8 75.0 %, fp32 25.0 %"]
    assert eager == ["eager PyTorch", "fp32", *["–"] * 6, "900", "0.5"]
    assert len(precision_table(make([])).rows) == 1


def test_auto_says_what_it_took_and_why() -> None:
    report = make([])
    assert auto_lines(report) == []
    report.engine.auto = AutoRecord(
        provider="openvino",
        precision="fp32",
        reasons=["tier: fp32 (fastest); change it"],
        variants=[
            VariantRecord(variant="bf16", changed_entities=2, entities=30, posts=11),
            VariantRecord(variant="new"),
        ],
    )
    lines = auto_lines(report)
    assert lines[:2] == ["precision=auto serves openvino fp32:", "tier: fp32 (fastest)"]
    assert lines[2:] == ["  on record for bf16: 2 of 30 entities changed over 11 posts"]


def test_merging_keeps_each_workload_whole_and_the_last_one() -> None:
    newer = rows("cold", "fp32", 80, ("research", "fp32", 14.0))
    one = make([*COLD, *BLOCK], peer("amlr-openvino", "fp32", errors={"cold": 1.0, "block": 2e-6}),
               peer("openvino", "int8", status="failed", reason="too slow"))  # fmt: skip
    two = make(
        newer, peer("amlr-openvino", "fp32", errors={"cold": 3.0}, peak_memory_mb=200.0),
        peer("openvino", "int8"),
        tiers=(
            tier("amlr-openvino", "fp32", posts=99, verdict="fail"),
            tier("amlr-openvino", "int8", promised=False),
        ),
        posts=99,
    )  # fmt: skip
    two.notes = ["n"]
    merged = merge_reports([one, two])
    assert parse_report(report_json(merged)) == merged
    assert merged.rows == make([*BLOCK, *newer]).rows
    engine, other = merged.peers
    assert engine.errors == {"cold": 3.0, "block": 2e-6}
    assert engine.peak_memory_mb == 200.0
    assert (other.status, other.reason) == ("measured", "too slow")
    assert (merged.parity.verdict, merged.parity.posts) == ("fail", 99)
    assert len(merged.parity.tiers) == 2
    assert (merged.settings.posts, merged.settings.runs) == (99, 2)
    assert merged.notes == ["n"]


def test_merge_command_joins_files_and_refuses_strangers(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    stranger = make(BLOCK)
    stranger.engine.manifest_sha256 = "ff"
    for path, report in zip(paths, (make(COLD), make(BLOCK), stranger), strict=True):
        write_report(path, report)
    out = tmp_path / "all.json"

    def run(*merged: Path) -> Any:
        options = [part for path in merged for part in ("--merge", str(path))]
        return CliRunner().invoke(bench_command, [*options, "--json", str(out)])

    done = run(*paths[:2])
    assert done.exit_code == 0, done.output
    assert {row.workload for row in read_report(out).rows} == {"cold", "block"}
    refused = run(paths[0], paths[2])
    assert refused.exit_code == 2
    assert "merge runs of one bundle" in refused.output
    with pytest.raises(InputError, match="threads"):
        merge_reports([make(COLD), make(BLOCK, threads=2)])
