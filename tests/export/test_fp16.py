"""Half graphs: strongly typed, emulated with real rounding, built by TensorRT-RTX."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amlr.errors import ExportError
from amlr.export.graphs import GraphSpec, build_graphs
from amlr.export.precision.emulate import RangeScan, emulate
from amlr.export.precision.graph_tools import HALF, open_session, tensor_types
from amlr.export.precision.half import HalfGraph, to_half
from amlr.export.to_onnx import trace
from tiny_model import IMAGE_SIZE, tiny_config, tiny_model

GRAPHS = ("text", "image", "fusion")
KINDS = (("bert", "vit", 0), ("mpnet", "mobilenet", 9))
Traced = dict[str, tuple[GraphSpec, onnx.ModelProto, HalfGraph]]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def traced(request: pytest.FixtureRequest) -> Traced:
    text, image, shapes = request.param
    model = tiny_model(tiny_config(text, image, shape_classes=shapes))
    specs = build_graphs(model, image_size=IMAGE_SIZE, centre=True)
    result = {}
    for spec in specs:
        if spec.name in GRAPHS:
            graph = trace(spec)
            result[spec.name] = (spec, graph, to_half(spec.name, graph))
    return result


def _feeds(spec: GraphSpec) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in spec.inputs.items()}


def _small(
    nodes: list[onnx.NodeProto], weights: list[TensorProto] | None = None
) -> onnx.ModelProto:
    made = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [made("x", TensorProto.FLOAT, ["B"])],
        [made("y", TensorProto.FLOAT, None)],
        weights or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(model)


def test_inputs_and_outputs_stay_float32(traced: Traced) -> None:
    for spec, graph, half in traced.values():
        for old, new in zip(graph.graph.output, half.model.graph.output, strict=True):
            assert old.name == new.name
            assert new.type.tensor_type.elem_type == TensorProto.FLOAT
        assert [i.name for i in half.model.graph.input] == list(spec.inputs)
        assert half.half_nodes > 0


def test_only_declared_islands_compute_in_float32(traced: Traced) -> None:
    for _, _, half in traced.values():
        types = tensor_types(half.model)
        declared = {island.node for island in half.islands}
        for node in half.model.graph.node:
            made = {types[o] for o in node.output}
            if node.op_type not in ("Cast", "Constant") and TensorProto.FLOAT in made:
                assert node.name in declared, node.name


def test_emulation_is_close_to_float32_and_rounds_as_half(traced: Traced) -> None:
    for spec, graph, half in traced.values():
        exact = open_session(graph).run(None, _feeds(spec))
        rounded = open_session(emulate(half.model)).run(None, _feeds(spec))
        witness = open_session(half.model).run(None, _feeds(spec))
        for a, b, c in zip(exact, rounded, witness, strict=True):
            assert np.abs(a - b).max() < 2**-7 * max(1.0, np.abs(a).max())
            assert np.abs(b - c).max() < 2**-7 * max(1.0, np.abs(a).max())
            # Outputs left through a half tensor, unless an island computed them.
            if graph.graph.node[-1].op_type != "LayerNormalization" and spec.name == "fusion":
                assert np.array_equal(b, b.astype(np.float16).astype(np.float32))


def test_emulation_overflows_to_infinity_and_keeps_subnormals() -> None:
    model = _small(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="mul")],
        [numpy_helper.from_array(np.float32(2.0), "w")],
    )
    session = open_session(emulate(to_half("g", model).model))
    x = np.array([40000.0, -40000.0, 1 / 3, 3e-8, 1e-5], np.float32)
    (y,) = session.run(None, {"x": x})
    with np.errstate(over="ignore"):
        expected = (x.astype(np.float16) * np.float16(2)).astype(np.float32)
    assert np.array_equal(y, expected)
    assert y[0] == np.inf
    assert y[1] == -np.inf
    assert 0 < y[3] < 2**-14


def test_an_overflow_in_the_middle_reaches_the_output_as_nan() -> None:
    model = _small(
        [
            helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
            helper.make_node("Sub", ["square", "square"], ["y"], name="sub"),
        ]
    )
    x = np.array([300.0, 10.0], np.float32)
    (half,) = open_session(emulate(to_half("g", model).model)).run(None, {"x": x})
    assert np.isnan(half[0])
    assert half[1] == 0
    island = to_half("g", model, {"square": "overflows"})
    assert [(i.node, i.reason) for i in island.islands] == [("square", "overflows")]
    # Its reader is half and would meet infinity, so it must be an island too.
    both = to_half("g", model, {"square": "overflows", "sub": "overflows"})
    (fine,) = open_session(emulate(both.model)).run(None, {"x": x})
    assert np.array_equal(fine, [0, 0])


def test_range_scan_finds_the_largest_activation(traced: Traced) -> None:
    spec, graph, _ = traced["text"]
    scan = RangeScan(graph)
    outputs = scan.run(_feeds(spec))
    assert np.array_equal(outputs["hidden_btd"], open_session(graph).run(None, _feeds(spec))[0])
    # The mask's -1e4 is the largest number a text graph makes on purpose.
    assert 1e4 <= max(scan.largest.values()) < 1.1e4


def test_masks_out_of_range_become_finite() -> None:
    model = _small(
        [helper.make_node("Mul", ["x", "mask"], ["y"], name="mul")],
        [numpy_helper.from_array(np.float32(np.finfo(np.float32).min), "mask")],
    )
    half = to_half("g", model)
    (y,) = open_session(emulate(half.model)).run(None, {"x": np.array([0.0, 1.0], np.float32)})
    assert y.tolist() == [0.0, -30000.0]


def test_a_fully_masked_row_gives_numbers(traced: Traced) -> None:
    spec, _, half = traced["text"]
    feeds = _feeds(spec)
    feeds["attention_mask"] = np.zeros_like(feeds["attention_mask"])
    (hidden,) = open_session(emulate(half.model)).run(None, feeds)
    assert np.isfinite(hidden).all()


def test_weights_out_of_range_make_their_node_an_island() -> None:
    model = _small(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="mul")],
        [numpy_helper.from_array(np.array([1e5, 1.0], np.float32), "w")],
    )
    half = to_half("g", model)
    assert [island.reason for island in half.islands] == ["a weight is out of the float16 range"]


def test_float_that_becomes_an_index_stays_float32() -> None:
    model = _small(
        [
            helper.make_node("Mul", ["x", "w"], ["scaled"], name="scale"),
            helper.make_node("Cast", ["scaled"], ["index"], name="cast", to=TensorProto.INT64),
            helper.make_node("Cast", ["index"], ["y"], name="back", to=TensorProto.FLOAT),
        ],
        [numpy_helper.from_array(np.float32(1.0), "w")],
    )
    half = to_half("g", model)
    assert {i.node for i in half.islands} == {"scale", "cast"}
    assert HALF not in {t.data_type for t in half.model.graph.initializer}


def test_unknown_islands_are_refused() -> None:
    model = _small([helper.make_node("Abs", ["x"], ["y"], name="abs")])
    with pytest.raises(ExportError, match="no nodes"):
        to_half("g", model, {"nobody": "why"})
