"""The command end to end on a tiny bundle, in its own worker processes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from amlr.benchmarks import cli
from amlr.benchmarks.harness import session
from amlr.benchmarks.harness.timing import Budget
from amlr.benchmarks.report.schema import read_report
from amlr.benchmarks.systems import registry
from amlr.benchmarks.systems.base import PeerSpec
from amlr.export.eager import EagerProvider
from amlr.runtime.batching import Scores

PEERS = "research,onnxruntime-plain,broken,absent"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.bench_command, [*arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def outcome(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One quick run with two peers that work and two that cannot."""
    folder = tmp_path_factory.mktemp("bench")
    entry = registry.PEERS["research"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP", "MKL", "OPENBLAS"):
            patch.setenv(f"{name}_NUM_THREADS", "1")
        broken = PeerSpec(name="broken", about="fails on purpose", kind="nothing of that kind")
        absent = replace(entry, name="absent", about="lacks a package", packages=("no_such",))
        patch.setitem(registry.PEERS, "broken", broken)
        patch.setitem(registry.PEERS, "absent", absent)
        # The longest run allowed, so that a busy machine leaves nothing out, and few rounds in it.
        few = Budget(seconds=0, min_rounds=2, max_rounds=4)
        patch.setattr(session, "budget_for", lambda job, *, quick: few)
        result = run(
            "--engine", str(tiny_plan), "--quick", "--budget", "600", "--limit", "9",
            "--peers", PEERS,
            "--provider", "onnxruntime", "--workloads", "cold,end-to-end-cold,block",
            "--json", str(folder / "b.json"), "--html", str(folder / "b.html"),
            "--markdown", str(folder / "b.md"),
        )  # fmt: skip
    return result, folder


@pytest.mark.slow
def test_report_fits_the_schema_and_passes(outcome: Any) -> None:
    result, folder = outcome
    assert result.exit_code == 0, result.output
    report = read_report(folder / "b.json")
    parity = report.parity
    assert (parity.verdict, parity.posts, parity.changed_entities) == ("pass", 9, 0)
    assert max(error or 0.0 for error in parity.max_abs_error.values()) < 1e-4
    assert report.settings.threads == 1
    assert 0 < report.resources.variants_mb["fp32"] < report.resources.bundle_mb
    engine = [row for row in report.rows if row.backend == "amlr-onnxruntime-cpu"]
    assert {row.workload for row in engine} == {"cold", "end-to-end-cold", "block"}
    assert {row.baseline for row in engine} == {"research", "onnxruntime-plain"}
    assert all((row.p50_ms or 0) > 0 and (row.ratio or 0) > 0 for row in engine)
    memory = {peer.backend: peer.peak_memory_mb or 0.0 for peer in report.peers}
    assert 0 < memory["amlr-onnxruntime-cpu"] < memory["research"], "no PyTorch in the engine"


@pytest.mark.slow
def test_failing_peers_are_reported_and_not_fatal(outcome: Any) -> None:
    _, folder = outcome
    peers = {peer.backend: peer for peer in read_report(folder / "b.json").peers}
    assert peers["broken"].status == "failed"
    assert "no peer of kind" in peers["broken"].reason
    assert peers["absent"].status == "skipped"
    assert "'no_such'" in peers["absent"].reason
    assert peers["research"].status == "measured"
    text = (folder / "b.html").read_text(encoding="utf-8")
    assert "no peer of kind" in text
    assert "no peer of kind" in (folder / "b.md").read_text(encoding="utf-8")


class Links(HTMLParser):
    """Collects everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fetching = ("src", "href", "srcset", "data", "action", "xlink:href")
        self.found += [f"{tag} {value}" for name, value in attrs if name in fetching]
        if tag in ("script", "link", "iframe", "object", "embed", "img"):
            self.found.append(tag)


@pytest.mark.slow
def test_page_is_self_contained(outcome: Any) -> None:
    _, folder = outcome
    text = (folder / "b.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.found == []
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert "Same entities" in text


def test_a_changed_model_fails_with_exit_code_1(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    score = EagerProvider.score

    def shifted(self: EagerProvider, *arguments: Any) -> Scores:
        found = score(self, *arguments)
        logits = found.unit_logits_mc + np.array([0, 3, 0, 0, 0], np.float32)
        return Scores(unit_logits_mc=logits, emissions_ny=found.emissions_ny)

    monkeypatch.setattr(EagerProvider, "score", shifted)
    result = run(
        "--engine", str(tiny_plan), "--parity-only", "--limit", "6", "--provider", "onnxruntime",
        "--json", str(tmp_path / "b.json"), "--html", str(tmp_path / "b.html"),
    )  # fmt: skip
    assert result.exit_code == 1
    assert "is not the eager model" in result.output
    report = json.loads((tmp_path / "b.json").read_text())
    parity = report["parity"]
    assert parity["verdict"] == "fail"
    assert parity["max_abs_error"]["unit_logits"] == pytest.approx(3, abs=1e-3)
    assert parity["max_abs_error"]["emissions"] < 1e-4
    change = parity["changes"][0]
    assert change["first_diverging"].startswith("unit_logits")
    assert change["margin"] > 0
    assert "<mark>" in (tmp_path / "b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --engine"),
        (("--engine", "nowhere"), "no bundle at nowhere"),
        (("--engine", "PLAN", "--peers", "tensorflow"), "unknown peer 'tensorflow'"),
        (("--engine", "PLAN", "--workloads", "lukewarm"), "unknown workload 'lukewarm'"),
        (("--engine", "PLAN", "--threads", "0"), "--threads must be at least 1"),
        (("--engine", "PLAN", "--data", "missing.txt"), "no data file at missing.txt"),
        (("--engine", "PLAN", "--precision", "int3"), "int3"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tiny_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    result = run(*(str(tiny_plan) if a == "PLAN" else a for a in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_listings() -> None:
    assert "research-mkl" in run("--peers", "list").output
    assert "block-text-only" in run("--workloads", "list").output
