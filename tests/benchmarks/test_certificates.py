"""Certified answers are counted against float32's, and the certificate is live."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.benchmarks.certificates import main
from amlr.runtime.providers import registry


@pytest.fixture(autouse=True)
def onnxruntime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 on onnxruntime stands for bf16, which not every CPU has.
    monkeypatch.setitem(registry.GROUPS, "auto", ("onnxruntime-cpu",))


def counted(plan: Path, out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    arguments = ["--engine", str(plan), "--data", "sample", "--limit", "40", "--low", "int8"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(out), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, json.loads(out.read_text())["counts"], result.stdout


def test_posts_are_counted_by_kind(ladder_plan: Path, tmp_path: Path) -> None:
    code, counts, shown = counted(ladder_plan, tmp_path / "a.json")
    assert code == 0
    assert counts["text"]["posts"] + counts["picture"]["posts"] == 40
    assert counts["picture"]["posts"] > 0
    assert all(kind["changed"] == 0 for kind in counts.values())
    certified = sum(kind["certified"] + kind["certified_on_picture"] for kind in counts.values())
    assert f"0 of {certified} certified answers changed" in shown
    assert f"| posts | {counts['text']['posts']} | {counts['picture']['posts']} |" in shown


def test_large_radii_certify_nothing_and_none_certify_everything(
    ladder_plan: Path, tmp_path: Path
) -> None:
    _, counts, _ = counted(ladder_plan, tmp_path / "a.json", "--radii", "1e6")
    # Posts without words have one answer, whatever the scores.
    assert sum(kind["certified"] for kind in counts.values()) == 0
    code, counts, _ = counted(ladder_plan, tmp_path / "b.json", "--radii", "0")
    for kind in counts.values():
        assert kind["certified"] == kind["covered"]
    changed = sum(kind["changed"] for kind in counts.values())
    assert code == (1 if changed else 0)
