"""Fused graphs: the exported ones' numbers, recognition, and the variant in a bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amlr.errors import ExportError
from amlr.export.cli import export_command
from amlr.export.fused import variant as fused
from amlr.export.fused.fusion import first_place, grid_places, part_rows
from amlr.export.fused.variant import build, check_twins, recognise
from amlr.export.fused.writer import Arithmetic
from amlr.export.options import FP16_CUDA
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.providers.registry import admitted_variants
from fused_case import GRAPHS, Case, tiny_case, worst
from log_lines import log_lines


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
            assert worst(expected, case.run(models[name], feed), feed) < limit, (name, arithmetic)


def test_the_merged_graph_is_text_then_fusion(case: Case) -> None:
    feed = case.feed([9, 12, 1], 7, 0)
    for arithmetic, models in case.models.items():
        steps = case.run(models["text"], feed)
        expected = case.run(models["fusion"], feed | steps)
        merged = case.run(models[fused.MERGED], feed)
        limit = 2**-8 if arithmetic is Arithmetic.HALF else 1e-6
        assert worst(expected, merged, feed) < limit, arithmetic


def test_all_units_of_a_post_are_found(case: Case) -> None:
    scales, steps = case.config.scales, 11
    count = scales * steps - scales * (scales - 1) // 2
    feed = case.feed([steps, 5], 1, 0) | {"unit_index_bs": np.tile(np.arange(count), (2, 1))}
    plain, twin = case.parts.plain["fusion"], case.models[Arithmetic.FLOAT]["fusion"]
    assert worst(case.run(plain, feed), case.run(twin, feed), feed) < 1e-4


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
    assert worst(expected, case.run(models["text"], feed), feed) < 2**-7


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
    twins = build(parts, Arithmetic.FLOAT, GRAPHS)
    assert max(check_twins(bundle, parts.plain, twins).values()) < 1e-4
    layer = parts.text.layers[0]
    wrong = replace(layer, inner=replace(layer.inner, weight=2 * layer.inner.weight))
    text = replace(parts.text, layers=(wrong, *parts.text.layers[1:]))
    twins = build(replace(parts, text=text), Arithmetic.FLOAT, GRAPHS)
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
    texts = ["Jordan in Paris", "new york st", "Apple"]
    with Engine.load(out, provider="onnxruntime", precision="exact") as exact:
        expected = [exact.tag(text).entities for text in texts]
    # The library computes half operators on a CPU in float32, between casts of its own.
    provider = OnnxRuntimeProvider(bundle, variant, ProviderOptions(threads=1), packed=False)
    with Engine(bundle, provider, variant=variant) as engine:
        found = [engine.tag(text).entities for text in texts]
    for a, b in zip(expected, found, strict=True):
        assert [(e.start, e.end, e.label) for e in a] == [(e.start, e.end, e.label) for e in b]
