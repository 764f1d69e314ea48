"""Int8 graphs compute what their scales say; variants enter a bundle with what they change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from amlr.errors import InputError
from amlr.export.ladder.int8 import find_products, fit_scales, insert_qdq, residuals
from amlr.export.ladder.ladder import _Ladder
from amlr.export.ladder.scales import Scale, fit_values, observe, round_weight
from amlr.export.options import ExportOptions
from amlr.export.parity import Answer
from amlr.export.posts import CalibrationPost, read_posts, strict_f1
from amlr.export.precision.graph_tools import prepare
from amlr.export.samples import sample_posts
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import Bundle
from tiny_ladder import small_ladder, tiny_ladder, write_posts

FLOAT = TensorProto.FLOAT


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def rows_model(width: int = 16, seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Two layers on rows, some channels much larger than others."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((width, width)).astype(np.float32)
    bias = rng.standard_normal(width).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("x", FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", width])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(bias, "b"),
            numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((200, width)).astype(np.float32)
    x[:, 3] *= 40
    return prepare(model), {"x": x}


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(((found - exact) ** 2).mean()) / exact.std())


def test_int8_rows_are_close_and_smoothing_helps() -> None:
    model, feed = rows_model()
    products = find_products(model)
    assert [node.name for node in products] == ["first", "second"]
    scales = fit_scales(model, products, [feed])
    smooth = run(insert_qdq(model, scales, {"first", "second"}), feed)
    plain = {name: fit_values(sample) for name, sample in observe(model, scales, [feed]).items()}
    rough = run(insert_qdq(model, plain, {"first", "second"}), feed)
    exact = run(model, feed)
    assert relative_error(smooth, exact) < 0.02
    assert relative_error(smooth, exact) < 0.8 * relative_error(rough, exact)


def test_samples_do_not_depend_on_the_order_of_names() -> None:
    model, feed = rows_model()
    feed["x"] = np.tile(feed["x"], (8, 1)) * np.arange(1, 1601, dtype=np.float32)[:, None]
    names = [node.input[0] for node in find_products(model)]
    one, other = (observe(model, order, [feed]) for order in (names, names[::-1]))
    for name in names:
        np.testing.assert_array_equal(one[name].values, other[name].values)


def test_int8_rows_do_not_depend_on_mates() -> None:
    model, feed = rows_model()
    quantized = insert_qdq(
        model, fit_scales(model, find_products(model), [feed]), {"first", "second"}
    )
    together = run(quantized, feed)
    for row in (0, 57, 199):
        alone = run(quantized, {"x": feed["x"][row : row + 1]})
        np.testing.assert_array_equal(alone[0], together[row])


def test_products_not_chosen_stay_float32() -> None:
    model, feed = rows_model()
    scales = fit_scales(model, find_products(model), [feed])
    only = insert_qdq(model, {"x": scales["x"]}, {"first"})
    assert {i.name for i in only.graph.initializer if i.data_type == FLOAT} >= {"v"}
    kinds = [n.op_type for n in only.graph.node]
    assert kinds.count("QuantizeLinear") == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-3.0, 0.0), (-0.2, 12.0), (0.0, 0.0)])
def test_zero_is_exact_and_range_is_kept(low: float, high: float) -> None:
    scale = Scale(low=low, high=high)
    values = np.array([0.0, low, high], np.float32)
    rounded = scale.round(values)
    assert rounded[0] == 0
    np.testing.assert_allclose(rounded, values, atol=float(scale.step))


def test_weights_keep_their_largest_value() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    rounded, scale = round_weight(weight, axis=1)
    assert rounded.dtype == np.int8
    assert np.abs(rounded).max(axis=0).tolist() == [127] * 4
    np.testing.assert_allclose(rounded * scale, weight, atol=float(scale.max()) / 2 + 1e-6)


def test_sums_of_convolutions_are_found() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="a"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["c"], name="c"),
        helper.make_node("Add", ["c", "x"], ["d"], name="d"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert residuals(model) == {"a", "b"}


def test_variants_carry_what_they_change(ladder_plan: Path) -> None:
    manifest = json.loads((ladder_plan / "manifest.json").read_text())
    variants = manifest["variants"]
    assert {"int8", "fp32"} <= set(variants)
    assert list(variants)[-1] == "fp32"
    for name, variant in variants.items():
        if name == "fp32":
            continue
        record = variant["parity"]
        assert record["posts"] > 50
        assert record["entities"] > 0
        calibration, radii = record["calibration"], record["radii"]
        assert calibration["given"] is True
        assert calibration["posts"] > 50
        assert 0 < calibration["photos"] <= 12 < calibration["with_picture"]
        assert set(radii) == {"text", "picture", "picture-only"}
        assert radii["picture"]["posts"] == calibration["with_picture"]
        assert radii["text"]["posts"] == calibration["posts"] - calibration["with_picture"]
        assert radii["picture"]["units"] > 0


@pytest.mark.parametrize("provider", ["onnxruntime", "openvino"])
def test_int8_is_served_by_both_engines(ladder_plan: Path, provider: str) -> None:
    pytest.importorskip(provider)
    posts = sample_posts(12, seed=4)
    with (
        Engine.load(ladder_plan, provider=provider, precision="int8", threads=1) as low,
        Engine.load(ladder_plan, provider="onnxruntime", precision="exact") as exact,
    ):
        assert low.precision == "int8"
        for a, b in zip(low.raw(posts), exact.raw(posts), strict=True):
            np.testing.assert_allclose(a.unit_logits, b.unit_logits, atol=0.2)
        # Static scales: no answer depends on who else is in the batch.
        (alone,) = low.raw(posts[3:4])
        np.testing.assert_allclose(alone.unit_logits, low.raw(posts)[3].unit_logits, atol=2e-3)


def test_measuring_again_replaces_the_older_record(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_ladder(tiny_plan, tmp_path / "amlr.plan")
    fp32 = bundle.manifest.variants["fp32"]
    older, newer, other = (
        replace(fp32, precision=name, parity={"ms_per_post": ms})
        for name, ms in (("int8", 2.0), ("int8", 1.0), ("bf16", 3.0))
    )
    bundle.save(variants={"int8": older, "bf16": other, "fp32": fp32})
    ladder = _Ladder(bundle, read_posts(None))
    ladder._measured["int8"] = newer
    monkeypatch.setattr(_Ladder, "_picture_margin", lambda _: {})
    ladder.save()
    variants = Bundle.open(tmp_path / "amlr.plan").manifest.variants
    assert list(variants) == ["int8", "bf16", "fp32"]
    assert (variants["int8"], variants["bf16"]) == (newer, other)


def test_halves_share_no_post_and_gold_is_read(tmp_path: Path) -> None:
    lines = []
    for number in range(40):
        lines += [f"IMGID:{number}", f"Maria{number % 30}\tB-PER", "in\tO", "Rome\tB-MISC", ""]
    path = tmp_path / "valid.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    posts = read_posts(path)
    tuning = {item.post.text for item in posts.tuning}
    assert tuning.isdisjoint(item.post.text for item in posts.held_out)
    assert len(posts.tuning) + len(posts.held_out) == 40
    gold = posts.held_out[0].gold
    assert gold is not None
    assert {label for _, _, label in gold} == {"PER", "OTHER"}


@pytest.mark.parametrize("label", ["OTHER", "MISC"])
def test_f1_compares_classes_whatever_they_are_called(label: str) -> None:
    post = CalibrationPost(post=Post("in Rome"), gold=frozenset({(3, 7, "OTHER")}))
    right, wrong = (
        Answer(scores=None, entities=frozenset({(3, 7, name)})) for name in (label, "PER")
    )
    assert (strict_f1([post], [right]), strict_f1([post], [wrong])) == (1.0, 0.0)
    unknown = CalibrationPost(post=Post("in Rome"))
    assert strict_f1([post, unknown], [right, right]) is None


def test_posts_come_from_json_lines_or_are_invented(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"post {i}"}) for i in range(40)))
    assert read_posts(path).source == "posts.jsonl"
    path.write_bytes(path.read_text().encode("utf-16"))
    assert read_posts(path).held_out
    assert len(read_posts(None).held_out) > 50
    for content, message in (('{"text": "one"}', "at least"), ('[{"text": "one"}]', "JSON array")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_posts(path)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="unknown precision int3"):
        ExportOptions(precisions=("int3",))


def test_calibration_posts_without_pictures_get_invented_ones(
    tiny_plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calib = write_posts(tmp_path, images=0, count=60)
    with caplog.at_level("INFO", "amlr.export"):
        plan = tiny_ladder(tiny_plan, tmp_path / "int8.plan", calib=calib, precisions=("int8",))
    assert "no picture" in caplog.text
    manifest = Bundle.open(plan).manifest
    record = manifest.variants["int8"].parity
    assert record["calibration"] == {
        "given": True,
        "posts": record["calibration"]["posts"],
        "with_picture": 0,
        "photos": 0,
    }
    assert set(record["radii"]) == {"text"}
    with Engine.load(plan, provider="onnxruntime", precision="int8", check="off") as engine:
        (result,) = engine.tag_batch([sample_posts(1, images=1)[0]])
    assert result.error is None
    assert "int8" in manifest.variants
