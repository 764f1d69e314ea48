"""Operators of fused graphs: few, in float16, and nothing that leaves the device."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, numpy_helper

from amlr.export.fused import variant as fused
from amlr.export.fused.variant import build
from amlr.export.fused.writer import Arithmetic, Writer
from amlr.export.precision.graph_tools import prepare
from fused_case import GRAPHS, Case, tiny_case


def test_a_layer_takes_seven_operators() -> None:
    """Counted as what one layer more adds; an exported layer has about ninety and sixty."""
    parts = tiny_case("bert-shapes").parts
    text, vision = parts.text, parts.vision
    assert text is not None
    assert vision is not None
    deeper = replace(
        parts,
        text=replace(text, layers=(*text.layers, text.layers[0])),
        vision=replace(vision, layers=(*vision.layers, vision.layers[0])),
    )
    before, after = (build(each, Arithmetic.HALF) for each in (parts, deeper))
    more = {name: len(after[name].graph.node) - len(before[name].graph.node) for name in after}
    assert more == {"text": 7, "image": 7, "fusion": 0, fused.MERGED: 7}
    for name, layers in (("text", 2), ("image", 1)):
        assert len(prepare(parts.plain[name]).graph.node) > 50 * layers


# Operators whose further inputs the CUDA provider takes from the host.
HOST_INPUTS = {"Slice": range(1, 5), "Range": range(3), "Reshape": (1,), "Unsqueeze": (1,),
               "ReduceSum": (1,), "Pad": (1,), "Squeeze": (1,)}  # fmt: skip


def test_no_tensor_moves_between_host_and_device(case: Case) -> None:
    """Sizes are computed on the host, and reach the device only as bounds of an operator."""
    for name in (*GRAPHS, fused.MERGED):
        if name == "image" and case.parts.vision is None:
            continue
        graph = case.models[Arithmetic.HALF][name].graph
        constants = {tensor.name for tensor in graph.initializer}
        host: set[str] = set()
        for node in graph.node:
            places = [i for i, source in enumerate(node.input) if source in host]
            if node.op_type == "Shape":
                host.update(node.output)
            elif places and not _takes_from_host(node, places):
                assert all(i in host or i in constants for i in node.input), node.name
                host.update(node.output)
        assert not host & {output.name for output in graph.output}


def test_the_mask_of_lengths_and_starts_is_made_of_the_mask_alone(case: Case) -> None:
    """With bounds from the host (`Shape`, `Range`), an H100 computed too short a mask."""
    masks = 0
    for name in ("text", fused.MERGED):
        graph = case.models[Arithmetic.HALF][name].graph
        made_by = {output: node for node in graph.node for output in node.output}
        # The fourth input is the mask; a bias by distance comes in another place.
        waiting = [node.input[3] for node in graph.node if node.op_type == "Attention"]
        kinds: set[str] = set()
        while waiting:
            node = made_by.get(waiting.pop())
            if node is not None:
                kinds.add(node.op_type)
                waiting += node.input
        assert not kinds & {"Shape", "Size", "Range"}, (name, kinds)
        masks += "Concat" in kinds
    # MPNet's bias by distance is its mask.
    assert masks == (2 if case.parts.text and case.parts.text.distances is None else 0)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_constants_keep_their_shape(shape: tuple[int, ...]) -> None:
    """A scalar stays one: `Range` takes its bounds and `CumSum` its axis as scalars."""
    store: dict[str, TensorProto] = {}
    out = Writer("constants", Arithmetic.HALF, store=store)
    value = np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape), order="F")
    assert out.constant("value", value) == "value"
    stored = numpy_helper.to_array(store["value"])
    assert stored.shape == shape
    assert (stored == value).all()


def _takes_from_host(node: NodeProto, places: list[int]) -> bool:
    wanted = HOST_INPUTS.get(node.op_type, ())
    return all(place in wanted for place in places)


def test_everything_between_the_ends_is_half(case: Case) -> None:
    for name, model in case.models[Arithmetic.HALF].items():
        if name == "image" and case.parts.vision is None:
            continue
        floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
        # Lengths are counted in float32.
        assert {tensor.name for tensor in floats} <= {"one_step", "no_steps"}
