"""The table of variants: what is counted, and when the command fails."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.benchmarks.data import load_data
from amlr.benchmarks.variants import main, measure_variants, spread_pictures, table
from amlr.errors import InputError
from amlr.export.samples import sample_image
from amlr.runtime.bundle import Bundle


def test_every_variant_is_judged_on_both_halves(ladder_plan: Path) -> None:
    bundle = Bundle.open(ladder_plan)
    data = load_data("sample", None, 40, 40)
    report = measure_variants(bundle, data, ["int8"], 1)
    (row,) = report["rows"]
    assert row["by"] == "onnxruntime-cpu"
    assert row["posts"] == 40
    assert 0 < row["radii"]["posts"] < 40
    assert 0 <= row["cleared"] <= row["held_posts"] <= 40 - row["radii"]["posts"]
    assert row["cleared_and_changed"] <= row["held_changed"]
    text = table(report)
    assert "| int8 | onnxruntime-cpu |" in text
    assert f"{row['cleared']} of {row['held_posts']}" in text


def test_a_broken_promise_is_exit_code_1(
    ladder_plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {
        "variant": "int8", "by": "onnxruntime-cpu", "islands": {}, "changed_entities": 0,
        "entities": 9, "max_abs_error": {"unit_logits": 0.1, "emissions": 0.1},
        "radii": {"units": 0.1, "tokens": 0.1, "posts": 5}, "cleared": 4, "held_posts": 5,
        "held_changed": 1, "cleared_and_changed": 1, "broken": True,
    }  # fmt: skip
    report = {"schema": 1, "data": "x", "posts": 10, "pictures": 0, "rows": [row]}
    monkeypatch.setattr("amlr.benchmarks.variants.measure_variants", lambda *given: report)
    file = tmp_path / "variants.json"
    run = CliRunner().invoke(
        main, ["--engine", str(ladder_plan), "--data", "sample", "--json", str(file)]
    )
    assert run.exit_code == 1
    assert "int8" in run.stderr
    assert file.is_file()


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
