"""Posts not calibrated on, and F1 where labels are known."""

import pytest

from amlr.benchmarks.parity import TierCheck, is_held
from amlr.kernels import is_tuning_half

TEXTS = [f"post number {number}" for number in range(40)]
A, B = (0, 4, "PER"), (5, 11, "LOC")


def checked() -> TierCheck:
    return TierCheck("amlr-x", "int8", None)


def test_held_posts_are_those_that_the_export_leaves_out() -> None:
    halves = is_tuning_half(TEXTS)
    assert [is_held(text) for text in TEXTS] == [not tuning for tuning in halves]
    assert 0 < sum(halves) < len(TEXTS)


def test_only_held_posts_count_as_not_calibrated_on() -> None:
    check, held = checked(), [text for text in TEXTS if is_held(text)]
    for text in TEXTS:
        check.tally(text, {A}, {A}, None, "int8")
    assert check.finish().f1 is None
    record = check.held
    assert record.posts == record.entities == len(held)
    assert record.change_bound == pytest.approx(3 / len(held))
    assert record.stages == {"int8": len(held)}
    check.tally(held[0], {A, B}, {A, (5, 11, "ORG")}, None, "fp32")
    changed = check.finish().held
    assert changed is not None
    assert (changed.changed_entities, changed.changed_posts) == (1, 1)
    assert changed.change_bound is None
    assert changed.stages["fp32"] == 1


def test_f1_is_strict_and_of_labelled_posts_only() -> None:
    check = checked()
    check.tally("a", {A, B}, {A}, {A, B}, "int8")
    check.tally("b", {A}, set(), {B}, "int8")
    check.tally("c", {A}, {A}, None, "int8")
    f1 = check.finish().f1
    assert f1 is not None
    assert (f1.posts, f1.entities) == (2, 3)
    assert f1.eager == pytest.approx(2 * 2 / 6, abs=1e-4)
    assert f1.engine == pytest.approx(2 * 1 / 4, abs=1e-4)
