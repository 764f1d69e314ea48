"""Leads against errors: the size of what float16 moves, and the part of the search that cares."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from amlr.export.parity import Comparison, Lead, compare_leads, leads
from amlr.export.precision.half import HalfGraph
from amlr.export.precision.islands import between_products, search_islands
from amlr.export.precision.judge import PostJudge
from amlr.export.precision.variant import fp32_models
from amlr.export.samples import sample_posts
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post


def test_the_smallest_lead_is_set_against_its_own_error_or_the_usual_one() -> None:
    eager, other = np.array([1.0, 2.0, 0.5, np.inf]), np.array([1.2, 2.0, 0.5, np.inf])
    lead = compare_leads(eager, other, ())
    assert lead.error == pytest.approx(0.2 / math.sqrt(3))
    assert lead.closest == 0.5
    assert lead.nearest[:3] == (2, 0, 1)
    # Post 2 did not move itself, but posts like it do; post 0 moved more than the usual.
    assert lead.times == pytest.approx(0.5 / lead.error)
    own = compare_leads(np.array([0.3, 9, 9, 9]), np.array([0.1, 9, 9, 9]), ())
    assert own.times == pytest.approx(0.3 / 0.2)


def test_a_changed_answer_is_behind() -> None:
    lead = compare_leads(np.array([0.1, 3.0]), np.array([0.2, 3.0]), [0])
    assert lead.times == 0
    assert lead.error == pytest.approx(0.3 / math.sqrt(2))


def test_expected_changes_are_those_of_uniform_leads_and_normal_errors() -> None:
    rng = np.random.default_rng(0)
    eager = rng.uniform(0, 10, 400_000)
    moved = eager + rng.normal(0, 0.05, eager.shape)
    lead = compare_leads(eager, np.abs(moved), np.flatnonzero(moved < 0).tolist())
    share = float((moved < 0).mean())
    assert lead.error == pytest.approx(0.05, rel=0.02)
    assert lead.expected == pytest.approx(share, rel=0.1)


def test_without_another_answer_nothing_is_near() -> None:
    nothing = np.array([np.inf])
    assert compare_leads(nothing, nothing, ()) == Lead()


def test_leads_of_a_bundles_posts(tiny_plan: Path) -> None:
    bundle, posts = Bundle.open(tiny_plan), [*sample_posts(6), Post("  ")]
    with Engine.load(tiny_plan, provider="onnxruntime", precision="exact") as exact:
        judge = PostJudge(bundle, exact, posts)
    found = leads(judge.answers, bundle)
    assert np.isinf(found[-1])
    assert np.all(found[:-1] >= 0)
    assert np.isfinite(found[:-1]).any()


def test_what_lies_between_products_is_no_product(tiny_plan: Path) -> None:
    models = fp32_models(Bundle.open(tiny_plan))
    part = between_products("text", models["text"])
    kinds = {node.name: node.op_type for node in models["text"].graph.node}
    found = {kinds[name] for name in part.nodes}
    assert {"Add", "Softmax"} <= found
    assert not found & {"MatMul", "Gemm", "Conv", "Reshape", "Transpose"}


def _chain() -> onnx.ModelProto:
    nodes = [
        onnx.helper.make_node("Abs", [f"t{i}" if i else "x"], [f"t{i + 1}"], name=f"n{i}")
        for i in range(96)
    ]
    nodes[-1].output[0] = "y"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["B"])], [info("y", 1, ["B"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(model)


def _judge(shares: Sequence[float], closest: float) -> object:
    """Blocks that carry shares of the error; with all of them in float32 a post changes."""

    def judge(graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None) -> Comparison:
        nodes = {island.node for island in graphs["text"].islands}
        left = sum(s for place, s in enumerate(shares) if f"n{24 * place}" not in nodes)
        lead = Lead(error=left, closest=closest, times=closest / max(left, 1e-9))
        all_of_it = {f"n{24 * place}" for place in range(4)} <= nodes
        return Comparison(
            posts=9, entities=9, changed=(3,) if all_of_it else (), changed_entities=0,
            max_abs_error={}, lead=lead,
            score_error=left,
        )  # fmt: skip

    return judge


def test_the_parts_with_most_of_the_error_become_float32_until_leads_are_large(
    caplog: pytest.LogCaptureFixture,
) -> None:
    judge = _judge((0.1, 0.5, 0.3, 0.1), 1.5)
    with caplog.at_level("INFO", "amlr.export"):
        search = search_islands({"text": _chain()}, {}, judge)  # type: ignore[arg-type]
    assert [label.split(" (")[0] for label in search.chosen] == ["text block 1"]
    assert search.evaluation.lead.times == pytest.approx(3)
    assert search.stopped == ""
    assert "1.5 times the error, 3 wanted" in caplog.messages[0]


def test_the_search_ends_where_nothing_pays_or_trials_end() -> None:
    chain, many = {"text": _chain()}, (0.04, 0.91, 0.03, 0.02)
    search = search_islands(chain, {}, _judge((0.3, 0.3, 0.3, 9.1), 0.3), max_trials=8)  # type: ignore[arg-type]
    assert len(search.chosen) == 1
    assert search.stopped == "8 trials were made"
    search = search_islands(chain, {}, _judge(many, 0.01))  # type: ignore[arg-type]
    assert len(search.chosen) == 3
    assert search.evaluation.changed == ()
    even = _judge([0.095] * 4 + [0.62], 0.5)
    search = search_islands(chain, {}, even)  # type: ignore[arg-type]
    assert search.chosen == ()
    assert search.stopped == "no part takes another 10% of the error away"


def test_large_leads_need_nothing() -> None:
    search = search_islands({"text": _chain()}, {}, _judge((0.1, 0.1, 0.1, 0.1), 1.3))  # type: ignore[arg-type]
    assert (search.chosen, search.trials, search.stopped) == ((), 1, "")
