"""MLPs cut into products of the model's width give what they gave, and only where it pays."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from amlr.errors import BackendUnavailableError
from amlr.export.graphs import build_graphs
from amlr.export.ladder import narrow
from amlr.export.ladder.ladder import _Ladder
from amlr.export.ladder.narrow import narrowed, write_narrowed
from amlr.export.posts import read_posts
from amlr.export.precision.graph_tools import prepare
from amlr.export.staging import StagedBundle
from amlr.export.to_onnx import write_graphs
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from tiny import tiny_bundle
from tiny_ladder import small_ladder, tiny_ladder, write_posts
from tiny_model import IMAGE_SIZE, tiny_config, tiny_model

WIDTH, WIDE = 6, 18
GELU = ["Div", "Erf", "Add", "Mul", "Mul"]


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny weights are cut as if they did not fit into a cache."""
    monkeypatch.setattr(narrow, "_pays", lambda width, wide: wide > width)


def mlp(form: str = "MatMul", wide: int = WIDE, act: str = "Relu", **extra: Any) -> onnx.ModelProto:
    """One MLP with a residual, as PyTorch's exporter writes it for rows of two or three axes."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (WIDTH, wide), "b1": (wide,), "w2": (wide, WIDTH), "b2": (WIDTH,)}
    values = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    if form == "Gemm":
        values["w1"], values["w2"] = values["w1"].T.copy(), values["w2"].T.copy()
        nodes = [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1)]
        back = [helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="second", transB=1)]
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["p"], name="first"),
            helper.make_node("Add", ["b1", "p"], ["h"], name="bias"),
        ]
        back = [
            helper.make_node("MatMul", ["a", "w2"], ["q"], name="second"),
            helper.make_node("Add", ["b2", "q"], ["y"], name="bias2"),
        ]
    options = {"axis": -1} if act == "Softmax" else {}
    nodes.append(helper.make_node(act, ["h"], ["a"], name="act", **options))
    nodes += [*back, helper.make_node("Add", ["x", "y"], ["z"], name="residual")]
    outputs = ["z", *extra.get("outputs", ())]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", None]) for n in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto | Path, feed: dict[str, Any]) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(ort.InferenceSession(source).run(None, feed)[0])


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    ("form", "nodes"),
    [
        ("Gemm", ["Split"] * 3 + ["Gemm", "Relu", "Gemm"] * 3 + ["Sum", "Add"]),
        ("MatMul", ["Split"] * 3 + ["MatMul", "Add", "Relu", "MatMul"] * 3 + ["Sum", "Add", "Add"]),
    ],
)
def test_an_mlp_becomes_pieces_of_the_width(form: str, nodes: list[str]) -> None:
    model = mlp(form)
    cut = narrowed(model)
    assert cut is not None
    assert [node.op_type for node in cut.graph.node] == nodes
    # The weights are those of the whole graph: one file holds them for both.
    assert list(cut.graph.initializer) == list(prepare(model).graph.initializer)
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in cut.graph.value_info
    }
    products = [node for node in cut.graph.node if node.op_type == form]
    assert [shapes[node.input[1]] for node in products] == [[WIDTH, WIDTH]] * 6
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(cut, {"x": x}), run(model, {"x": x}), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    "model",
    [
        mlp(wide=WIDTH),
        mlp(wide=WIDTH + 1),
        mlp(act="Softmax"),
        mlp(outputs=["a"]),
        mlp(outputs=["h"]),
    ],
    ids=["square", "no multiple", "values that mix", "output", "output before"],
)
def test_other_products_are_left_alone(model: onnx.ModelProto) -> None:
    assert narrowed(model) is None


@pytest.mark.parametrize(
    ("cache", "pays"),
    [
        (2 * WIDTH * WIDTH, False),
        (2 * WIDTH * WIDTH + 1, True),
        (2 * WIDTH * WIDE - 1, True),
        (2 * WIDTH * WIDE, False),
    ],
)
def test_pieces_must_fit_into_a_cache_that_the_whole_does_not_fit_into(
    monkeypatch: pytest.MonkeyPatch, cache: int, pays: bool
) -> None:
    monkeypatch.setattr(narrow, "_CACHE_BYTES", cache)
    assert (narrowed(mlp()) is not None) == pays


@pytest.mark.usefixtures("no_cache")
def test_exported_encoders_are_cut_and_give_the_same(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(image="vit"))
    wanted = ("text", "image")
    specs = [s for s in build_graphs(model, image_size=IMAGE_SIZE) if s.name in wanted]
    files = write_graphs(specs, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for spec in specs:
        path = write_narrowed(files[spec.name])
        assert path == tmp_path / f"{spec.name}_narrow.onnx"
        counts = [
            Counter(node.op_type for node in prepare(onnx.load(str(each))).graph.node)
            for each in (files[spec.name], path)
        ]
        layers = counts[1]["Sum"]
        assert layers == {"text": 2, "image": 1}[spec.name]
        kinds = {"text": ["Gemm"] * 2, "image": ["MatMul"] * 2 + ["Add"]}[spec.name]
        # One weight is cut along its rows, which are read from the file as they are.
        added = Counter([*kinds, *GELU, "Sum", "Split", "Split"] * layers)
        assert counts[1] - counts[0] == added, spec.name
        assert not counts[0] - counts[1]
        feed = {name: tensor.numpy() for name, tensor in spec.inputs.items()}
        whole, cut = run(files[spec.name], feed), run(path, feed)
        np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("no_cache")
def test_only_bfloat16_has_graphs_of_its_own(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bfloat16")
    plain = tiny_bundle(tmp_path / "plain.plan", image="vit")
    older = Bundle.open(plain).manifest
    exact = older.variants["fp32"]
    compute = dict.fromkeys(("text", "text_packed", "image"), "bf16")
    unmeasured = replace(exact, precision="bf16", provider="openvino", compute=compute)
    StagedBundle(plain, older).save(variants={"bf16": unmeasured, "fp32": exact})
    calib = write_posts(tmp_path, images=6, count=60)
    plan = tiny_ladder(plain, tmp_path / "amlr.plan", calib=calib, precisions=("bf16",))
    manifest = Bundle.open(plan).manifest
    low = manifest.variants["bf16"]
    assert manifest.variants["fp32"].graphs == exact.graphs
    cut = {n: f"onnx/fp32/{n}_narrow.onnx" for n in ("text", "text_packed", "image")}
    assert low.graphs == exact.graphs | cut
    assert set(cut.values()) <= set(manifest.files)
    # What was measured is what is served: the radii are those of the cut graphs.
    assert {"picture", "picture-only"} <= set(low.parity["radii"])
    pixels = np.random.default_rng(0).standard_normal((3, 3, IMAGE_SIZE, IMAGE_SIZE))
    regions = []
    # The older bundle is served as it is.
    for path, precision in ((plan, "exact"), (plan, "bf16"), (plain, "bf16")):
        with Engine.load(
            path, provider="openvino", precision=precision, threads=1, check="off"
        ) as engine:
            provider = engine.pipeline.provider
            regions.append(np.stack(provider.encode_images(pixels.astype(np.float32))))
    float32, cut_low, whole_low = regions
    for low_regions in (cut_low, whole_low):
        assert 1e-5 < np.abs(low_regions - float32).max() < 0.05 * np.abs(float32).max()


@pytest.mark.usefixtures("no_cache")
def test_without_bfloat16_nothing_is_left_behind(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise BackendUnavailableError("this CPU has no bfloat16 instructions")

    bundle = small_ladder(tiny_plan, tmp_path / "amlr.plan")
    files = set(bundle.manifest.files)
    ladder = _Ladder(bundle, read_posts(None))
    monkeypatch.setattr(_Ladder, "_engine", absent)
    ladder.measure("bf16")
    bundle.save()
    assert set(bundle.manifest.files) == files
