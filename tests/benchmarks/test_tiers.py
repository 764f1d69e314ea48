"""Tiers under test: which are loaded, which promise float32's entities, how workers run them."""

from pathlib import Path

import pytest

from amlr.benchmarks.harness.worker import Job, Worker
from amlr.benchmarks.systems.base import ESCALATION, PeerSpec, Picture
from amlr.benchmarks.systems.registry import load_peer
from amlr.benchmarks.systems.tiers import explain_auto, open_tiers
from amlr.errors import AmlrError, InputError
from amlr.export.samples import sample_image
from amlr.runtime.results import Post

PICTURES: tuple[Picture, ...] = ("hit", "cold", "none")


def test_each_asked_precision_is_a_tier_and_only_float32_promises(ladder_plan: Path) -> None:
    found = open_tiers(ladder_plan, ("onnxruntime",), ("fp32", "int8", "bf16"), 1)
    try:
        exact, low = found.tiers
        assert (exact.spec.name, exact.spec.precision) == ("amlr-onnxruntime-cpu", "fp32")
        assert exact.promised
        assert exact.tolerance is not None
        variant = low.engine.manifest.variants[low.spec.variant]
        assert (low.spec.precision, variant.precision) == ("int8", "int8")
        assert not low.promised
        assert low.tolerance is None
        assert len(found.notes) == 1
        assert "bf16" in found.notes[0]
        assert found.auto is None
    finally:
        found.close()


def test_a_single_tier_that_cannot_load_is_an_error(tiny_plan: Path) -> None:
    with pytest.raises(AmlrError, match="int8"):
        open_tiers(tiny_plan, ("onnxruntime",), ("int8",), 1)


def test_auto_is_explained_with_the_records_of_all_variants(ladder_plan: Path) -> None:
    auto = explain_auto(ladder_plan, 1)
    assert auto.reasons[0].startswith(f"tier: {auto.provider} {auto.precision}")
    assert "int8" in {record.variant for record in auto.variants}
    assert all(record.posts for record in auto.variants)


@pytest.mark.parametrize("precision", ["escalate", "int8+fp32"])
def test_escalation_runs_end_to_end_only(ladder_plan: Path, precision: str) -> None:
    found = open_tiers(ladder_plan, ("onnxruntime",), (precision,), 1)
    spec = found.tiers[0].spec
    assert spec.precision == "int8+fp32"
    found.close()
    assert spec.kind == ESCALATION
    assert found.tiers[0].promised
    worker = Worker()
    worker.start(spec, ladder_plan, 1, Path())
    posts = (Post("Jordan at Paris tonight", sample_image(1)), Post("new york"))
    job = Job(name="end-to-end-cold", picture="cold", calls=(posts,), end_to_end=True)
    outputs, first_ms = worker.prepare(job)
    assert outputs == []
    assert first_ms > 0
    assert worker.run(0).wall_ns
    with pytest.raises(InputError, match="end to end only"):
        worker.prepare(Job(name="cold", picture="cold", calls=((),)))
    system = load_peer(spec, ladder_plan, 1, Path())
    first = {
        picture: [result.entities for result in system.prepare(posts, picture)()]
        for picture in PICTURES
    }
    assert first["hit"] == first["cold"]
    assert len(first["none"]) == 2
    system.close()


def test_unknown_kinds_of_peers_are_named(tiny_plan: Path) -> None:
    with pytest.raises(InputError, match="no peer of kind 'x'"):
        load_peer(PeerSpec(name="x", kind="x"), tiny_plan, 1, Path())
