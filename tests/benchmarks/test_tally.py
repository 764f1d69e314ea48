"""Posts not calibrated on, and F1 where labels are known."""

import pytest

from amlr.benchmarks.parity import Tally, is_held
from amlr.kernels import is_tuning_half

TEXTS = [f"post number {number}" for number in range(40)]
A, B = (0, 4, "PER"), (5, 11, "LOC")


def test_held_posts_are_those_that_the_export_leaves_out() -> None:
    halves = is_tuning_half(TEXTS)
    assert [is_held(text) for text in TEXTS] == [not tuning for tuning in halves]
    assert 0 < sum(halves) < len(TEXTS)


def test_only_held_posts_count_as_not_calibrated_on() -> None:
    tally, held = Tally(), [text for text in TEXTS if is_held(text)]
    for text in TEXTS:
        tally.add(text, {A}, {A}, None, "int8")
    f1, record = tally.records()
    assert f1 is None
    assert record.posts == record.entities == len(held)
    assert record.change_bound == pytest.approx(3 / len(held))
    assert record.stages == {"int8": len(held)}
    tally.add(held[0], {A, B}, {A, (5, 11, "ORG")}, None, "fp32")
    changed = tally.records()[1]
    assert (changed.changed_entities, changed.changed_posts) == (1, 1)
    assert changed.change_bound is None
    assert changed.stages["fp32"] == 1


def test_f1_is_strict_and_of_labelled_posts_only() -> None:
    tally = Tally()
    tally.add("a", {A, B}, {A}, {A, B}, "int8")
    tally.add("b", {A}, set(), {B}, "int8")
    tally.add("c", {A}, {A}, None, "int8")
    f1, _ = tally.records()
    assert f1 is not None
    assert (f1.posts, f1.entities) == (2, 3)
    assert f1.eager == pytest.approx(2 * 2 / 6, abs=1e-4)
    assert f1.engine == pytest.approx(2 * 1 / 4, abs=1e-4)
