"""The bucket planner: exact in length, feasible in the rest."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amlr.errors import InputError
from amlr.export.planner import (
    FILL_STEPS,
    batch_for,
    best_edges,
    fit_profile,
    measure_traffic,
    plan_buckets,
    plan_report,
    plan_table,
    read_plan,
    work_of,
)
from amlr.export.samples import sample_posts
from amlr.runtime.bundle import Bundle


def _cost(lengths: np.ndarray, edges: np.ndarray, costs: np.ndarray) -> float:
    return float(costs[np.searchsorted(edges, lengths)].sum())


@example(lengths=[1], graphs=5)
@example(lengths=[12, 12, 12], graphs=2)
@example(lengths=list(range(1, 13)), graphs=12)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    graphs=st.integers(1, 5),
)
@settings(deadline=None)
def test_lengths_are_optimal(lengths: list[int], graphs: int) -> None:
    tokens = np.array(lengths)
    candidates = np.arange(1, 13)
    costs = work_of(candidates, 2)
    edges = best_edges(tokens, candidates, costs, graphs)
    assert edges == sorted(set(edges))
    assert len(edges) <= graphs
    assert candidates[edges[-1]] >= tokens.max()
    found = _cost(tokens, candidates[edges], costs[edges])
    last = int(tokens.max())
    best = min(
        _cost(tokens, np.array([*inner, last]), work_of([*inner, last], 2))
        for size in range(graphs)
        for inner in itertools.combinations(range(1, last), size)
    )
    assert found == pytest.approx(best, rel=1e-12)


def _traffic(seed: int = 0, size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = np.clip(rng.gamma(6, 5, size).astype(np.int64), 3, 128)
    return tokens, tokens * 3


def test_more_graphs_never_pad_more_and_many_pad_almost_nothing() -> None:
    tokens_n, units_n = _traffic()
    plans = [plan_buckets(tokens_n, units_n, graphs) for graphs in (1, 2, 4, 8, 16)]
    padding = [plan.padding for plan in plans]
    assert padding == sorted(padding, reverse=True)
    assert plans[0].saved == pytest.approx(0)
    assert padding[-1] < 0.2
    for plan in plans:
        assert sum(bucket.windows for bucket in plan.buckets) == len(tokens_n)
        assert all(b.tokens % 4 == 0 and b.units % 8 == 0 for b in plan.buckets)
        for bucket, before in zip(plan.buckets[1:], plan.buckets, strict=False):
            own = (tokens_n > before.tokens) & (tokens_n <= bucket.tokens)
            assert units_n[own].max() <= bucket.units


@given(tokens=st.integers(1, 1000))
def test_a_batch_fills_a_run_and_no_more(tokens: int) -> None:
    batch = batch_for(tokens)
    assert batch in (1, 2, 4, 8, 16, 32)
    assert batch == 1 or batch * tokens <= FILL_STEPS
    assert batch == 32 or 2 * batch * tokens > FILL_STEPS


def test_the_table_names_lengths_and_batches() -> None:
    plan = plan_buckets(*_traffic(), 4)
    assert len(plan.buckets) == 4
    assert list(plan_table([plan]))[1].endswith(
        " ".join(f"{b.tokens}x{batch_for(b.tokens)}" for b in plan.buckets)
    )
    assert plan.to_dict()["buckets"][0]["batch"] == plan.buckets[0].batch
    assert plan.memory_bytes > 0


def test_profile_has_its_optimum_at_the_modal_bucket(tiny_plan: Path) -> None:
    plan = plan_buckets(*_traffic(), 4)
    modal = max(plan.buckets, key=lambda b: b.windows)
    profile = fit_profile(Bundle.open(tiny_plan), plan)
    assert (profile.tokens.opt, profile.units.opt) == (modal.tokens, modal.units)
    assert (profile.tokens.max, profile.units.max, profile.posts.opt) == (64, 384, modal.batch)


def test_traffic_of_posts_under_a_bundles_rules(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    tokens_n, units_n = measure_traffic(bundle, sample_posts(40, images=0))
    assert len(tokens_n) >= 40
    assert tokens_n.max() <= bundle.manifest.text.max_tokens
    assert units_n.min() >= 0
    plan = plan_buckets(tokens_n, units_n, 4, width=32)
    profile = fit_profile(bundle, plan)
    assert profile.tokens.max == bundle.manifest.text.max_tokens
    assert profile.units.max >= units_n.max()
    table = list(plan_table([plan]))
    assert "padding" in table[0]
    assert str(plan.buckets[0].tokens) in table[1]
    assert plan.to_dict()["graphs"] == len(plan.buckets)


def test_no_posts_are_refused(tiny_plan: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        measure_traffic(Bundle.open(tiny_plan), [])


def test_report_of_a_file_and_its_profile(tiny_plan: Path, tmp_path: Path) -> None:
    posts = tmp_path / "posts.jsonl"
    lines = [json.dumps({"id": i, "text": p.text}) for i, p in enumerate(sample_posts(30))]
    posts.write_text("\n".join([*lines, ""]))
    bundle = Bundle.open(tiny_plan)
    text, values = plan_report(bundle, posts, graphs=(1, 4))
    assert len(values["plans"]) == 2
    assert any("saved" in line for line in text)
    written = tmp_path / "plan.json"
    written.write_text(json.dumps(values))
    profile, buckets = read_plan(written)
    assert asdict(profile) == values["profile"]
    assert [steps for steps, _ in buckets] == sorted({steps for steps, _ in buckets})
    with pytest.raises(InputError, match="holds no plan"):
        read_plan(posts)
    posts.write_text("not json\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        plan_report(bundle, posts)
    with pytest.raises(InputError, match="cannot read"):
        plan_report(bundle, tmp_path / "missing.jsonl")
