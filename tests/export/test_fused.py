"""Fused graphs: the exported ones' numbers, few operators, nothing that leaves the device."""

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, numpy_helper

from amlr.errors import ExportError
from amlr.export.cli import export_command
from amlr.export.fused import variant as fused
from amlr.export.fused.fusion import first_place, grid_places, part_rows
from amlr.export.fused.variant import (
    Models,
    Parts,
    build,
    check_twins,
    merge_products,
    recognise,
)
from amlr.export.fused.writer import Arithmetic, Writer
from amlr.export.graphs import build_graphs
from amlr.export.options import FP16_CUDA
from amlr.export.precision.graph_tools import open_session, prepare
from amlr.export.to_onnx import trace
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.providers.registry import admitted_variants
from log_lines import log_lines
from tiny_model import IMAGE_SIZE, VOCABULARY, tiny_config, tiny_model

GRAPHS = ("text", "image", "fusion")
# Text encoder, picture encoder, and what else differs: folded heads or narrow ones, with a last
# map of text and regions or without, word shapes or none.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-shapes": ("bert", "vit", {"shape_classes": 9}),
    "bert-wider": ("bert", "vit", {"shape_classes": 0, "width": 48, "heads": 4, "head_width": 16}),
    "mpnet": ("mpnet", "mobilenet", {"shape_classes": 9, "scales": 3}),
}
Feed = dict[str, np.ndarray]


class Case:
    """One tiny model's graphs, recognised and written again."""

    def __init__(self, kind: str) -> None:
        text, image, options = KINDS[kind]
        self.config = tiny_config(text, image, **options)
        specs = build_graphs(tiny_model(self.config), image_size=IMAGE_SIZE)
        plain = {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}
        with log_lines() as self.lines:
            self.parts: Parts = recognise(plain, 128)
        self.models: dict[Arithmetic, Models] = {a: build(self.parts, a) for a in Arithmetic}
        self.for_tensorrt: Models = merge_products(plain)
        self._sessions: dict[int, Any] = {}

    def run(self, model: onnx.ModelProto, feed: Feed) -> Feed:
        """Outputs by name; sessions are kept."""
        session = self._sessions.get(id(model)) or open_session(model)
        self._sessions[id(model)] = session
        names = [output.name for output in session.get_outputs()]
        wanted = {each.name for each in session.get_inputs()}
        feed = {name: value for name, value in feed.items() if name in wanted}
        return dict(zip(names, session.run(names, feed), strict=True))

    def feed(self, lengths: list[int], units: int, seed: int) -> Feed:
        """All inputs of all graphs: right-padded posts, any units, some without a picture."""
        random, config = np.random.default_rng(seed), self.config
        steps = max(*lengths, config.scales)
        mask = (np.arange(steps) < np.array(lengths)[:, None]).astype(np.int64)
        pool = self.parts.plain["fusion"].graph.input[2].type.tensor_type.shape.dim
        count = config.scales * steps - config.scales * (config.scales - 1) // 2
        posts = len(lengths)
        return {
            "input_ids": random.integers(0, VOCABULARY, mask.shape) * mask,
            "attention_mask": mask,
            "shape_ids": random.integers(0, 9, mask.shape) * mask,
            "pixel_values": random.normal(size=(2, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32),
            "hidden_btd": random.normal(size=(posts, steps, config.width)).astype(np.float32),
            "unit_index_bs": random.integers(0, count, (posts, units)),
            "pool_npd": random.normal(size=(3, pool[1].dim_value, pool[2].dim_value)).astype("f4"),
            "slot_b": random.integers(-1, 3, posts),
        }


@functools.cache
def tiny_case(kind: str) -> Case:
    """One case for all tests that want it."""
    return Case(kind)


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Case:
    return tiny_case(request.param)


def _worst(expected: Feed, actual: Feed, feed: Feed) -> float:
    real = feed["attention_mask"] == 1
    errors = []
    for name, value in expected.items():
        # What lies past a post's end means nothing.
        a, b = (v[real] if name in ("hidden_btd", "emissions_bty") else v
                for v in (value, actual[name]))  # fmt: skip
        assert a.dtype == b.dtype == np.float32
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        errors.append(float(np.abs(a - b).max()))
    return max(errors)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    units=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_twins_compute_what_the_exported_graphs_do(
    case: Case, lengths: list[int], units: int, seed: int
) -> None:
    feed, plain = case.feed(lengths, units, seed), case.parts.plain
    for name in GRAPHS:
        expected = case.run(plain[name], feed)
        for arithmetic, models in case.models.items():
            limit = 1e-4 if arithmetic is Arithmetic.FLOAT else 2**-7
            assert _worst(expected, case.run(models[name], feed), feed) < limit, (name, arithmetic)


def test_the_merged_graph_is_text_then_fusion(case: Case) -> None:
    feed = case.feed([9, 12, 1], 7, 0)
    for arithmetic, models in case.models.items():
        steps = case.run(models["text"], feed)
        expected = case.run(models["fusion"], feed | steps)
        merged = case.run(models[fused.MERGED], feed)
        limit = 2**-8 if arithmetic is Arithmetic.HALF else 1e-6
        assert _worst(expected, merged, feed) < limit, arithmetic


def test_all_units_of_a_post_are_found(case: Case) -> None:
    scales, steps = case.config.scales, 11
    count = scales * steps - scales * (scales - 1) // 2
    feed = case.feed([steps, 5], 1, 0) | {"unit_index_bs": np.tile(np.arange(count), (2, 1))}
    plain, twin = case.parts.plain["fusion"], case.models[Arithmetic.FLOAT]["fusion"]
    assert _worst(case.run(plain, feed), case.run(twin, feed), feed) < 1e-4


def test_a_post_of_padding_alone_gives_numbers(case: Case) -> None:
    feed = case.feed([9, 4], 3, 0)
    feed["attention_mask"] = np.zeros_like(feed["attention_mask"])
    for models in case.models.values():
        assert np.isfinite(case.run(models["text"], feed)["hidden_btd"]).all()


def test_inputs_and_outputs_are_those_of_the_exported_graphs(case: Case) -> None:
    for name in GRAPHS:
        plain, half = case.parts.plain[name].graph, case.models[Arithmetic.HALF][name].graph
        for old, new in ((plain.input, half.input), (plain.output, half.output)):
            kinds = [{i.name: i.type.tensor_type.elem_type for i in side} for side in (old, new)]
            assert kinds[0] == kinds[1]
        dims = {d.dim_param for i in half.input for d in i.type.tensor_type.shape.dim}
        assert dims <= {"", "batch", "steps", "units", "slots"}


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
    assert _worst(wanted, found, feed) < 1e-4


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


def test_half_ends_save_the_casts() -> None:
    case = tiny_case("mpnet")
    models = build(case.parts, Arithmetic.HALF, half_ends=True)
    feed = case.feed([9, 4], 3, 0)
    regions = case.run(models["image"], feed)["regions_bpd"]
    hidden = case.run(models["text"], feed)["hidden_btd"]
    assert regions.dtype == hidden.dtype == np.float16
    expected = case.run(case.parts.plain["text"], feed)
    expected = case.run(case.parts.plain["fusion"], feed | expected)
    half = feed | {"hidden_btd": hidden, "pool_npd": feed["pool_npd"].astype(np.float16)}
    assert _worst(expected, case.run(models["fusion"], half), feed) < 2**-6


@pytest.mark.parametrize("scales", range(1, 7))
def test_tables_of_units(scales: int) -> None:
    most = 14
    places, rows = grid_places(scales, most), part_rows(scales, most)
    slots = scales * (scales + 1) // 2 + 1
    for steps in range(scales, most + 1):
        begin, end = (first_place(t, scales) for t in (steps, steps + 1))
        units = [(k, t) for k in range(1, scales + 1) for t in range(steps - k + 1)]
        assert places[begin:end].tolist() == [(k - 1) * most + t for k, t in units]
        for (k, start), place in zip(units, places[begin:end], strict=True):
            wanted = [(start + j) * slots + k * (k - 1) // 2 + j for j in range(k)]
            nothing = [start * slots + slots - 1] * (scales - k)
            assert rows[:, place].tolist() == wanted + nothing
    assert first_place(most + 1, scales) == len(places)


def _with_tanh(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    next(node for node in changed.graph.node if node.op_type == "Erf").op_type = "Tanh"
    return changed


def test_another_activation_is_converted_node_by_node() -> None:
    case = tiny_case("bert-shapes")
    plain = case.parts.plain | {"text": _with_tanh(case.parts.plain["text"])}
    with log_lines() as lines:
        parts = recognise(plain, 128)
    assert parts.text is None
    assert len(lines) == 1
    assert "'text'" in lines[0]
    models, feed = build(parts, Arithmetic.HALF), case.feed([9, 4], 3, 0)
    assert fused.MERGED not in models
    expected = case.run(plain["text"], feed)
    assert _worst(expected, case.run(models["text"], feed), feed) < 2**-7
    with pytest.raises(ExportError, match="recognised"):
        build(parts, Arithmetic.HALF, half_ends=True)


def test_weights_beyond_float16_are_refused() -> None:
    case = tiny_case("mpnet")
    assert case.parts.text is not None
    words = case.parts.text.words.copy()
    words[0, 0] = 1e5
    parts = replace(case.parts, text=replace(case.parts.text, words=words))
    with pytest.raises(ExportError, match="float16 range"):
        build(parts, Arithmetic.HALF)


def test_a_twin_that_differs_stops_the_export(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    parts = fused.read_parts(bundle)
    assert parts.text is not None
    twins = build(parts, Arithmetic.FLOAT, names=GRAPHS)
    assert max(check_twins(bundle, parts.plain, twins).values()) < 1e-4
    layer = parts.text.layers[0]
    wrong = replace(layer, inner=replace(layer.inner, weight=2 * layer.inner.weight))
    text = replace(parts.text, layers=(wrong, *parts.text.layers[1:]))
    twins = build(replace(parts, text=text), Arithmetic.FLOAT, names=GRAPHS)
    with pytest.raises(ExportError, match="'text': its fused twin differs"):
        check_twins(bundle, parts.plain, twins)


def test_export_adds_a_variant_for_the_cuda_provider(tiny_plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "fused.plan"
    command = ["--from", str(tiny_plan), "--out", str(out), "--precision", FP16_CUDA]
    result = CliRunner().invoke(export_command, command)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(out)
    variant = bundle.manifest.variants[FP16_CUDA]
    assert (variant.precision, variant.provider) == ("fp16", "onnxruntime-cuda")
    assert variant.parity["changed_entities"] == 0 < variant.parity["entities"]
    admitted = {
        provider: [name for name, _ in admitted_variants(bundle.manifest, provider, "fp16")]
        for provider in ("onnxruntime-cuda", "onnxruntime-cpu", "tensorrt", "openvino")
    }
    assert admitted.pop("onnxruntime-cuda") == [FP16_CUDA]
    assert not any(admitted.values())
    quick = fused.write_cuda_variant(tiny_plan, tmp_path / "quick", judge=True)
    for name, path in quick.items():
        assert path.read_bytes() == bundle.graph_path(variant, name).read_bytes()
    texts = ["Jordan in Paris", "new york st", "Apple"]
    with Engine.load(out, provider="onnxruntime", precision="exact") as exact:
        expected = [exact.tag(text).entities for text in texts]
    # The library computes half operators on a CPU in float32, between casts of its own.
    provider = OnnxRuntimeProvider(bundle, variant, ProviderOptions(threads=1), packed=False)
    with Engine(bundle, provider, variant=variant) as engine:
        found = [engine.tag(text).entities for text in texts]
    for a, b in zip(expected, found, strict=True):
        assert [(e.start, e.end, e.label) for e in a] == [(e.start, e.end, e.label) for e in b]
