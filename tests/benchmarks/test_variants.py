"""Low precisions are judged against the eager model, and the certificate is live."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.benchmarks.data import load_data
from amlr.benchmarks.variants import main, measure_variants, spread_pictures
from amlr.errors import InputError
from amlr.export.samples import sample_image
from amlr.runtime.bundle import Bundle
from amlr.runtime.providers import registry


@pytest.fixture(autouse=True)
def onnxruntime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 on onnxruntime stands for bf16, which not every CPU has.
    monkeypatch.setitem(registry.GROUPS, "auto", ("onnxruntime-cpu",))


def run(plan: Path, out: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    arguments = ["--engine", str(plan), "--data", "sample", "--limit", "40", "--only", "int8"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(out), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, json.loads(out.read_text())["rows"], result.stdout


def test_a_variant_and_the_engine_that_certifies_with_it(ladder_plan: Path, tmp_path: Path) -> None:
    code, (alone, both), shown = run(ladder_plan, tmp_path / "a.json")
    parity = alone["parity"]
    assert (parity["precision"], both["parity"]["precision"]) == ("int8", "int8+fp32")
    assert parity["posts"] == both["parity"]["posts"] == 40
    assert both["parity"]["changed_posts"] == 0
    assert 0 < both["climbed"] <= 40 - both["certified"] - both["on_picture"]
    assert alone["certified"] <= alone["covered"]
    assert parity["max_abs_error"]["emissions"] > 0
    for row in (alone, both):
        certified = row["certified"] + row["on_picture"]
        line = f"{row['parity']['precision']}, onnxruntime-cpu: 0 of {certified} certified answers"
        assert (line in shown) == (certified > 0)
    assert both["certified"] > 0
    assert f"| int8 | onnxruntime-cpu | {parity['changed_entities']} of" in shown
    assert code == 0


def test_large_radii_certify_nothing_and_none_certify_everything(
    ladder_plan: Path, tmp_path: Path
) -> None:
    _, rows, _ = run(ladder_plan, tmp_path / "a.json", "--radii", "1e6")
    # Posts without words have one answer, whatever the scores.
    assert sum(row["certified"] for row in rows) == 0
    code, (alone, both), _ = run(ladder_plan, tmp_path / "b.json", "--radii", "0")
    assert both["certified"] == alone["certified"] == alone["covered"] > 0
    assert alone["beyond"] == alone["covered"]
    assert code == (1 if alone["certified_changed"] + both["certified_changed"] else 0)


def test_a_broken_promise_is_exit_code_1(
    ladder_plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = Bundle.open(ladder_plan)
    rows = measure_variants(bundle, load_data("sample", None, 4, 4), ["int8"], 1)
    rows[0] = replace(rows[0], certified_changed=1)
    monkeypatch.setattr("amlr.benchmarks.variants.measure_variants", lambda *given: rows)
    code, _, shown = run(ladder_plan, tmp_path / "variants.json")
    assert code == 1
    assert "int8, onnxruntime-cpu: 0 of" not in shown


def test_unknown_variants_are_named(ladder_plan: Path) -> None:
    run = CliRunner().invoke(
        main, ["--engine", str(ladder_plan), "--data", "sample", "--only", "int3"]
    )
    assert run.exit_code == 2
    assert "int3" in run.stderr


def test_pictures_are_spread_over_every_other_post(tmp_path: Path) -> None:
    data = load_data("sample", None, 6, 6)
    with pytest.raises(InputError, match="no pictures"):
        spread_pictures(data, tmp_path)
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(sample_image(number))
    images = [item.post.image for item in spread_pictures(data, tmp_path).posts]
    assert [images[0], images[2], images[4]] == [tmp_path / f"{n}.png" for n in (0, 1, 0)]
