"""Encoders as TensorRT gets them: the model's numbers, one product for Q, K and V."""

from collections import Counter

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amlr.export.precision.graph_tools import prepare
from fused_case import Case, Feed, worst
from tiny_model import tiny_model


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_encoders_for_tensorrt_compute_what_the_model_does(
    case: Case, lengths: list[int], seed: int
) -> None:
    feed, model = case.feed(lengths, 1, seed), tiny_model(case.config)
    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    shapes = tensors["shape_ids"] if case.config.shape_classes else None
    with torch.no_grad():
        expected = {
            "hidden_btd": model.text(tensors["input_ids"], tensors["attention_mask"], shapes),
            "regions_bpd": model.image(tensors["pixel_values"]),
        }
    found: Feed = {}
    for merged in case.for_tensorrt.values():
        found |= case.run(merged, feed)
    wanted = {name: value.numpy() for name, value in expected.items() if name in found}
    assert worst(wanted, found, feed) < 1e-4


def test_a_layer_for_tensorrt_has_one_product_for_queries_keys_and_values(case: Case) -> None:
    for name, merged in case.for_tensorrt.items():
        plain = case.parts.plain[name]
        kinds = Counter(node.op_type for node in merged.graph.node)
        layers = kinds["Softmax"]
        assert layers == {"text": 2, "image": 1}[name]
        ends = kinds["MatMul"] - 6 * layers  # the last map, and the patches
        assert 0 <= ends <= 2
        old = Counter(node.op_type for node in prepare(plain).graph.node)
        assert old["MatMul"] + old["Gemm"] == 8 * layers + ends - (name == "image")
        assert len(merged.graph.node) <= 27 * layers + 13
        assert len(prepare(plain).graph.node) > 50 * layers
        assert {node.domain for node in merged.graph.node} == {""}
        made_by = {made: node for node in merged.graph.node for made in node.output}
        for node in merged.graph.node:
            if node.op_type == "Softmax":
                # Nothing but the mask lies between the first product and the Softmax.
                before = made_by[node.input[0]]
                before = made_by[before.input[0]] if before.op_type == "Add" else before
                assert before.op_type == "MatMul"
        for side in ("input", "output"):
            assert getattr(merged.graph, side) == getattr(plain.graph, side)
    assert set(case.for_tensorrt) == ({"text"} if case.parts.vision is None else {"text", "image"})
