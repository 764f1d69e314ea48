"""The island search on a whole bundle, and the variant it writes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from amlr.errors import ParityError
from amlr.export.additions import add_fp16
from amlr.export.eager import load_reference
from amlr.export.graphs import GraphSpec, build_graphs
from amlr.export.parity import Comparison
from amlr.export.posts import CalibrationPost, CalibrationPosts
from amlr.export.precision.emulate import emulate
from amlr.export.precision.graph_tools import PRODUCTS, open_session
from amlr.export.precision.half import HalfGraph
from amlr.export.precision.islands import blocks, out_of_range, search_islands
from amlr.export.precision.judge import GRAPHS, PostJudge, scan_ranges
from amlr.export.precision.variant import fp32_models, write_fp16
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle
from amlr.export.to_onnx import trace
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from log_lines import log_lines
from tiny_model import IMAGE_SIZE


@pytest.fixture(scope="module")
def centred(tiny_plan: Path) -> list[GraphSpec]:
    model = load_reference(Bundle.open(tiny_plan))
    return build_graphs(model, image_size=IMAGE_SIZE, centre=True)


def test_variant_keeps_all_entities_and_says_what_is_float32(
    tiny_plan: Path, tmp_path: Path, centred: list[GraphSpec]
) -> None:
    bundle, posts = Bundle.open(shutil.copytree(tiny_plan, tmp_path / "a.plan")), sample_posts(24)
    with (
        Engine.load(tiny_plan, provider="onnxruntime", precision="exact") as exact,
        log_lines() as lines,
    ):
        variant, search = write_fp16(
            bundle,
            exact,
            posts,
            sample_posts(16, seed=5),
            models={spec.name: trace(spec) for spec in centred if spec.name in GRAPHS},
        )
    parity = variant.parity
    assert parity["changed_entities"] == 0 < parity["entities"]
    # The record is of the other posts; the search's own is kept beside it.
    assert (parity["posts"], parity["search"]["posts"]) == (16, 24)
    assert parity["change_bound"] == 3 / 16
    assert parity["search"]["changed_entities"] == 0
    assert 0 < parity["max_abs_error"]["unit_logits"] < 0.05
    assert set(variant.graphs) == {"text", "image", "fusion"}
    reasons = {reason for _, _, reason in parity["islands"]["fusion"]}
    assert "sum over many regions" in reasons
    assert any("LayerNormalization" in line for line in lines)
    for name, file in variant.graphs.items():
        written = onnx.load(str(bundle.path / file))
        expected = search.graphs[name].model
        assert written.graph.node == expected.graph.node
        for a, b in zip(written.graph.initializer, expected.graph.initializer, strict=True):
            assert np.array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


def _with_outlier(models: Mapping[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Scale an activation up and down again, so that it leaves the range of float16 between."""
    changed = {}
    for name, model in models.items():
        changed[name] = onnx.ModelProto.FromString(model.SerializeToString())
    graph = changed["text"].graph
    place = 1 + next(i for i, node in enumerate(graph.node) if node.op_type == "Softmax")
    mixed = graph.node[place]  # weights @ value
    assert mixed.op_type == "MatMul"
    made, mixed.output[0] = mixed.output[0], "t0"
    for factor, name in ((2000.0, "up"), (1 / 2000.0, "down")):
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), name))
    chain = (("t0", "up", "t1"), ("t1", "up", "t2"), ("t2", "down", "t3"), ("t3", "down", made))
    for number, (source, factor_name, target) in enumerate(chain, start=1):
        node = onnx.helper.make_node(
            "Mul", [source, factor_name], [target], name=f"{factor_name}{number}"
        )
        graph.node.insert(place + number, node)
    return {name: onnx.shape_inference.infer_shapes(model) for name, model in changed.items()}


def test_overflow_is_seen_by_the_scan_and_repaired_by_islands(tiny_plan: Path) -> None:
    bundle, posts = Bundle.open(tiny_plan), sample_posts(8)
    models = _with_outlier(fp32_models(bundle))
    with Engine.load(tiny_plan, provider="onnxruntime", precision="exact") as exact:
        judge = PostJudge(bundle, exact, posts)
    ranges = scan_ranges(bundle, models, posts)
    assert max(ranges["text"].values()) == ranges["text"]["up2"] > 65504
    forced = out_of_range(models["text"], ranges["text"])
    assert set(forced) == {"up2", "down3"}

    blind = search_islands(models, {}, judge, max_trials=1)
    assert blind.evaluation.changed_entities > 0
    assert not np.isfinite(blind.evaluation.largest_error)
    seeing = search_islands(models, ranges, judge)
    assert seeing.evaluation.changed_entities == 0
    assert seeing.chosen == ()
    # Without the scan, the search itself finds a block that holds the overflow.
    searched = search_islands(models, {}, judge)
    assert searched.evaluation.changed_entities == 0
    assert len(searched.chosen) == 1
    islands = {island.node for island in searched.graphs["text"].islands}
    assert {"up2", "down3"} <= islands


def test_search_prefers_repair_then_few_casts_and_prunes() -> None:
    """A made-up judge: posts 1 and 2 each need one block, and block 0 looks useful first."""

    def make() -> onnx.ModelProto:
        nodes = []
        for index in range(60):
            name = f"n{index}"
            nodes.append(
                onnx.helper.make_node(
                    "Abs", [f"t{index}" if index else "x"], [f"t{index + 1}"], name=name
                )
            )
        nodes[-1].output[0] = "y"
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["B"])], [info("y", 1, ["B"])])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        return onnx.shape_inference.infer_shapes(model)

    model = make()
    sizes = [len(block.nodes) for block in blocks("text", model)]
    assert sizes == [24, 24, 12]

    def judge(graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None) -> Comparison:
        nodes = {island.node for island in graphs["text"].islands}
        has = [name in nodes for name in ("n0", "n30", "n59")]
        changed = set()
        if not has[1]:
            changed.add(1)
        if not has[2]:
            changed.add(2)
        if not (has[0] or (has[1] and has[2])):
            changed.add(3)
        found = tuple(sorted(changed if only is None else changed & set(only)))
        return Comparison(
            posts=4, entities=4, changed=found, changed_entities=len(found), max_abs_error={}
        )

    search = search_islands({"text": model}, {}, judge)
    assert search.evaluation.changed == ()
    assert len(search.chosen) == 2
    assert all("block 0" not in label for label in search.chosen)


def test_a_variant_that_changes_entities_is_refused(
    tiny_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: PostJudge, graphs: object, only: object = None) -> Comparison:
        return Comparison(
            posts=1,
            entities=1,
            changed=(0,),
            changed_entities=1,
            max_abs_error={"unit_logits": 9.0},
        )

    monkeypatch.setattr(PostJudge, "__call__", wrong)
    bundle = Bundle.open(tiny_plan)
    with (
        Engine.load(tiny_plan, provider="onnxruntime", precision="exact") as exact,
        pytest.raises(ParityError, match="1 of 1 entities change"),
    ):
        write_fp16(bundle, exact, sample_posts(1), sample_posts(1), models=fp32_models(bundle))


def test_emulated_fusion_does_not_depend_on_padding(
    tiny_plan: Path, centred: list[GraphSpec]
) -> None:
    """A text graph in half: a longer batch mate must not change a post's hidden states."""
    from amlr.export.precision.half import to_half
    from amlr.export.to_onnx import trace

    graph = trace(next(spec for spec in centred if spec.name == "text"))
    session = open_session(emulate(to_half("text", graph).model))
    ids = np.array([[2, 5, 6, 3, 0, 0, 0], [2, 5, 6, 7, 8, 9, 3]])
    mask = (ids > 0).astype(np.int64)
    shapes = np.zeros_like(ids)
    (both,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "shape_ids": shapes})
    alone = {"input_ids": ids[:1, :4], "attention_mask": mask[:1, :4], "shape_ids": shapes[:1, :4]}
    (single,) = session.run(None, alone)
    np.testing.assert_allclose(both[0, :4], single[0], atol=2**-8)


def test_variant_from_the_eager_model_is_listed_and_not_served_on_a_cpu(
    tiny_plan: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half.plan"
    shutil.copytree(tiny_plan, folder)
    opened = Bundle.open(folder)
    tuning, held_out = (
        tuple(CalibrationPost(post=post) for post in sample_posts(10, seed=seed)) for seed in (0, 1)
    )
    posts = CalibrationPosts(tuning=tuning, held_out=held_out, source="test", given=True)
    bundle = StagedBundle(folder, opened.manifest)
    add_fp16(bundle, posts, model=load_reference(opened))
    variant = bundle.manifest.variants["fp16"]
    assert variant.provider == "tensorrt"
    assert variant.parity["judged_by"] == "emulated float16"
    assert variant.parity["posts"] == 10
    assert "onnx/fp16/weights.bin" in Bundle.open(folder).manifest.files
    # One product for Q, K and V in each of two layers; the graphs that CPUs run are as they were.
    plain = opened.manifest.variants["fp32"]
    half_products, products = (
        sum(node.op_type in PRODUCTS for node in onnx.load(folder / each["text"]).graph.node)
        for each in (variant.graphs, plain.graphs)
    )
    assert half_products == products - 2 * 2
    for file in plain.graphs.values():
        assert (folder / file).read_bytes() == (tiny_plan / file).read_bytes()
    with Engine.load(folder, provider="onnxruntime") as engine:
        assert engine.precision == "fp32"
