"""Every graph in both precisions through TensorRT-RTX's real parser and builder, without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from transformers import BertConfig, ViTConfig

from amlr.errors import ExportError, InputError
from amlr.export.fused.variant import merge_products
from amlr.export.graphs import build_graphs
from amlr.export.options import ExportOptions
from amlr.export.precision.half import to_half
from amlr.export.profiles import (
    Extent,
    Profile,
    input_dims,
    shapes_for,
)
from amlr.export.tensorrt.builder import Plan, _capability, build_plan
from amlr.export.tensorrt.messages import explain
from amlr.export.to_onnx import WEIGHTS_FILE, trace, write_models
from amlr.runtime.tensorrt_library import TensorRT, load_tensorrt
from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel
from doubles.device import DoubleDevice
from tiny_model import IMAGE_SIZE, tiny_config, tiny_model

PROFILE = Profile(
    posts=Extent(1, 4, 8),
    tokens=Extent(3, 8, 16),
    units=Extent(1, 8, 32),
    pool=Extent(1, 4, 8),
    pictures=Extent(1, 1, 4),
)
GRAPHS = ("text", "image", "fusion")


@pytest.fixture(scope="module")
def library() -> TensorRT:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    return load_tensorrt("tensorrt-rtx")


def _build(
    library: TensorRT, path: Path, graph: str, precision: str, islands: tuple[str, ...]
) -> Plan:
    dims = input_dims(onnx.load(str(path)))
    shapes = shapes_for(graph, dims, PROFILE)
    return build_plan(
        library, path, graph=graph, shapes=[shapes], precision=precision, islands=islands
    )


@pytest.mark.parametrize(("text", "image"), [("bert", "vit"), ("mpnet", "mobilenet")])
def test_all_graphs_build_in_both_precisions(
    library: TensorRT, tmp_path: Path, text: str, image: str
) -> None:
    model = tiny_model(tiny_config(text, image, scales=3))
    specs = build_graphs(model, image_size=IMAGE_SIZE, centre=True)
    graphs = {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}
    for name, merged in (graphs | merge_products(graphs)).items():
        half = to_half(name, merged)
        islands = tuple(island.node for island in half.islands)
        path = tmp_path / f"{name}.onnx"
        onnx.save(graphs[name], str(path))
        full = _build(library, path, name, "fp32", ())
        assert full.audit.dtypes["FLOAT"] > 0
        assert "HALF" not in full.audit.dtypes
        onnx.save(half.model, str(path))
        plan = _build(library, path, name, "fp16", islands)
        assert set(plan.audit.float32) <= set(islands)
        assert plan.audit.dtypes["HALF"] > 2 * len(islands)
        assert set(plan.audit.outputs.values()) == {"FLOAT"}
        assert len(plan.data) > 1000


@pytest.mark.parametrize(("heads", "fused"), [(2, 2), (4, 0)])
def test_attentions_that_are_one_kernel_are_counted(
    library: TensorRT, tmp_path: Path, heads: int, fused: int
) -> None:
    """TensorRT-RTX has kernels for heads of 16 values and more; the tiny model's have 8."""
    config = tiny_config("bert", "vit", scales=3)
    config.text_encoder["num_attention_heads"] = heads
    (spec,) = (s for s in build_graphs(tiny_model(config), image_size=IMAGE_SIZE)
               if s.name == "text")  # fmt: skip
    graph = trace(spec)
    dims = input_dims(graph)
    path = tmp_path / "text.onnx"
    for batches in ([8], [1, 8]):
        shapes = [shapes_for("text", dims, each) for each in PROFILE.split(batches)]
        half = to_half("text", merge_products({"text": graph, "image": graph})["text"])
        onnx.save(half.model, str(path))
        islands = [island.node for island in half.islands]
        plan = build_plan(
            library, path, graph="text", shapes=shapes, precision="fp16", islands=islands
        )
        counts = plan.audit.to_dict()
        assert (counts["fused_attentions"], counts["attentions"]) == (fused, 2)


@pytest.mark.slow
def test_paper_preset_builds_in_half_for_three_architectures(
    library: TensorRT, tmp_path: Path
) -> None:
    """Random weights at full width; the layers are alike, so a third of them is built."""
    layers = {"text": 4, "image": 4, "fusion": 0}
    config = AmlrConfig(
        text_encoder=BertConfig(vocab_size=1024, num_hidden_layers=4).to_dict(),
        image_encoder=ViTConfig(num_hidden_layers=4).to_dict(),
        width=768,
        scales=6,
        heads=8,
        head_width=768,
    )
    model = AmlrModel(config).eval()
    specs = build_graphs(model, image_size=224, centre=True)
    graphs = {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}
    for name, merged in (graphs | merge_products(graphs)).items():
        half = to_half(name, merged)
        kinds = [node.op_type for node in half.model.graph.node]
        assert kinds.count("Softmax") == layers[name] + (name == "fusion")
        (path,) = write_models([(name, half.model)], tmp_path / name).values()
        dims = input_dims(half.model)
        plan = build_plan(
            library,
            path,
            graph=name,
            shapes=[shapes_for(name, dims, replace(PROFILE, tokens=Extent(6, 32, 128)))],
            precision="fp16",
            islands=[island.node for island in half.islands],
            options=ExportOptions(sms=(80, 89, 120)),
        )
        assert plan.audit.fused_attentions == layers[name]
        # Two bytes a weight: 29, 29 and 23 million of them.
        assert len(plan.data) > {"text": 56e6, "image": 56e6, "fusion": 40e6}[name]
        path.with_name(WEIGHTS_FILE).unlink()


def _save(folder: Path, nodes: list[onnx.NodeProto], out: int = TensorProto.FLOAT) -> Path:
    made = helper.make_tensor_value_info
    weights = [
        numpy_helper.from_array(np.ones((4, 4), kind), name)
        for name, kind in (("half", "float16"), ("full", "float32"))
    ]
    graph = helper.make_graph(
        nodes, "g", [made("x", TensorProto.FLOAT, ["B", 4])], [made("y", out, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "g.onnx"
    onnx.save(model, str(path))
    return path


def _try(library: TensorRT, path: Path, precision: str = "fp32", **options: Any) -> Plan:
    shapes = {"x": ((1, 4), (2, 4), (8, 4))}
    return build_plan(library, path, graph="g", shapes=[shapes], precision=precision, **options)


def test_float32_where_half_was_asked_fails(library: TensorRT, tmp_path: Path) -> None:
    path = _save(tmp_path, [helper.make_node("MatMul", ["x", "full"], ["y"], name="mm")])
    assert _try(library, path).data
    with pytest.raises(ExportError, match="no layer of its network computes in float16"):
        _try(library, path, "fp16")


def test_one_stray_float32_layer_fails_and_is_named(library: TensorRT, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "half"], ["m"], name="mm"),
        helper.make_node("Cast", ["m"], ["f"], name="up", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "full"], ["y"], name="stray"),
    ]
    path = _save(tmp_path, nodes)
    with pytest.raises(ExportError, match=r"1 layers meant .* are float32, first 'stray'"):
        _try(library, path, "fp16")
    assert _try(library, path, "fp16", islands=["stray"]).data


def test_half_output_fails(library: TensorRT, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "half"], ["y"], name="mm"),
    ]
    path = _save(tmp_path, nodes, TensorProto.FLOAT16)
    with pytest.raises(ExportError, match=r"outputs must be float32, found \{'y': 'HALF'\}"):
        _try(library, path, "fp16")


def test_mixed_types_name_graph_node_and_reason(library: TensorRT, tmp_path: Path) -> None:
    path = _save(tmp_path, [helper.make_node("MatMul", ["x", "half"], ["y"], name="mixed")])
    with pytest.raises(ExportError, match=r"graph 'g'.*mixed \(MatMul\)"):
        _try(library, path)


def test_unknown_operator_is_named(library: TensorRT, tmp_path: Path) -> None:
    nodes = [helper.make_node("CrfViterbi", ["x"], ["y"], name="crf", domain="nobody")]
    with pytest.raises(ExportError, match=r"crf \(CrfViterbi\): the library has no operator"):
        _try(library, _save(tmp_path, nodes))


def test_missing_profile_is_explained(library: TensorRT, tmp_path: Path) -> None:
    path = _save(tmp_path, [helper.make_node("MatMul", ["x", "full"], ["y"], name="mm")])
    with pytest.raises(ExportError, match="an input has a dynamic axis and no profile"):
        build_plan(library, path, graph="g", shapes=[], precision="fp32")


def test_unknown_architecture_lists_the_known_ones(library: TensorRT, tmp_path: Path) -> None:
    path = _save(tmp_path, [helper.make_node("MatMul", ["x", "full"], ["y"], name="mm")])
    with pytest.raises(ExportError, match=r"cannot build for SM 9\.0; it knows .*SM89"):
        _try(library, path, options=ExportOptions(sms=(90,)))


def test_an_architecture_without_a_name_is_built_for_where_it_is_at_hand(
    library: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand = library.api.ComputeCapability.CURRENT
    monkeypatch.setattr("amlr.export.tensorrt.builder.open_device", lambda: DoubleDevice(sm=90))
    assert _capability(library.api, 90) is at_hand
    assert _capability(library.api, 89) is library.api.ComputeCapability.SM89
    with pytest.raises(ExportError, match=r"cannot build for SM 10\.0"):
        _capability(library.api, 100)


@given(ends=st.sets(st.integers(1, 64), min_size=1, max_size=5), pictures=st.integers(1, 40))
def test_split_profiles_hold_every_batch_once(ends: set[int], pictures: int) -> None:
    batches = sorted(ends)
    profiles = replace(PROFILE, pictures=Extent(1, 1, pictures)).split(batches)
    held = [n for p in profiles for n in range(p.posts.min, p.posts.max + 1)]
    assert held == list(range(1, batches[-1] + 1))
    assert [p.posts.opt for p in profiles] == batches
    images = list(dict.fromkeys(p.pictures for p in profiles))
    held = [n for extent in images for n in range(extent.min, extent.max + 1)]
    assert held == list(range(1, min(pictures, batches[-1]) + 1))
    assert {(p.tokens, p.units, p.pool) for p in profiles} == {
        (PROFILE.tokens, PROFILE.units, PROFILE.pool)
    }


@pytest.mark.parametrize("batches", [[], [0, 8], [8, 8], [8, 1]])
def test_batches_must_ascend(batches: list[int]) -> None:
    with pytest.raises(InputError, match="batches must ascend from 1 or more"):
        PROFILE.split(batches)


def test_axes_without_an_extent_are_refused() -> None:
    with pytest.raises(ExportError, match=r"axes \['X'\] with no extent"):
        shapes_for("text", {"input_ids": ("B", "X")}, PROFILE)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("kOPT values for profile 0 violate shape constraints: x", "optimum of the profile"),
        ("Error Code 4: kMAX values for profile 0 violate shape constraints", "minimum or maximum"),
        ("OutOfMemory (requested 1 bytes)", "not enough memory"),
        ("Something new at line 3", "the library says: Something new"),
        ("", "the library gave no reason"),
    ],
)
def test_builder_messages_become_plain(message: str, meaning: str) -> None:
    assert meaning in explain([message])
