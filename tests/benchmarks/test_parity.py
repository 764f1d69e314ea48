"""What counts as changed, posts not calibrated on, and F1 where labels are known."""

from collections.abc import Sequence

import numpy as np
import pytest

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.parity import Reference, TierAnswers, judge
from amlr.benchmarks.report.records import TierParity
from amlr.export.parity import Answer, Key
from amlr.kernels import is_tuning_half
from amlr.runtime.results import Post

TEXTS = [f"post number {number}" for number in range(40)]
A, B, C = (0, 4, "PER"), (5, 11, "LOC"), (5, 11, "ORG")
Rows = Sequence[tuple[str, set[Key], set[Key], set[Key] | None, str]]


def judged(rows: Rows, leads: Sequence[float] = (), **answers: list[Answer]) -> TierParity:
    """A tier on rows of text, the eager entities, the tier's, labelled ones and the stage."""
    posts = [
        BenchPost(id=text, post=Post(text), gold=None if gold is None else tuple(gold))
        for text, _, _, gold, _ in rows
    ]
    eager = [Answer(scores=None, entities=frozenset(before)) for _, before, _, _, _ in rows]
    tier = [Answer(scores=None, entities=frozenset(after)) for _, _, after, _, _ in rows]
    return judge(
        Reference(
            posts=posts, answers=eager, leads=np.array(leads or [np.inf] * len(rows), np.float64)
        ),
        TierAnswers(
            answers=answers.get("tier", tier),
            stages=[stage for *_, stage in rows],
            certified=[False] * len(rows),
        ),
        backend="amlr-x",
        precision="int8",
        tolerance=None,
    )


def test_only_held_posts_count_as_not_calibrated_on() -> None:
    held = [t for t, tuning in zip(TEXTS, is_tuning_half(TEXTS), strict=True) if not tuning]
    assert 0 < len(held) < len(TEXTS)
    rows: list[tuple[str, set[Key], set[Key], set[Key] | None, str]] = [
        (text, {A}, {A}, None, "int8") for text in TEXTS
    ]
    same = judged(rows)
    assert (same.verdict, same.f1) == ("pass", None)
    assert same.held is not None
    assert same.held.posts == same.held.entities == len(held)
    assert same.held.change_bound == pytest.approx(3 / len(held))
    assert same.held.stages == {"int8": len(held)}
    changed = judged([*rows, (held[0], {A, B}, {A, C}, None, "fp32")])
    assert changed.held is not None
    assert (changed.held.changed_entities, changed.held.changed_posts) == (1, 1)
    assert changed.held.change_bound is None
    assert changed.held.stages["fp32"] == 1


def test_f1_is_strict_and_of_labelled_posts_only() -> None:
    rows: Rows = [
        ("a", {A, B}, {A}, {A, B}, "int8"),
        ("b", {A}, set(), {B}, "int8"),
        ("c", {A}, {A}, None, "int8"),
    ]
    f1 = judged(rows).f1
    assert f1 is not None
    assert (f1.posts, f1.entities) == (2, 3)
    assert f1.eager == pytest.approx(2 * 2 / 6, abs=1e-4)
    assert f1.engine == pytest.approx(2 * 1 / 4, abs=1e-4)


def test_changes_of_undecidable_posts_are_counted_apart() -> None:
    rows: Rows = [("a", {A}, {A}, None, "int8"), ("b", {A, B}, {A, C}, None, "int8")]
    tied = judged(rows, leads=[1.0, 1e-6])
    assert (tied.verdict, tied.changed_entities) == ("pass", 0)
    assert (tied.undecidable_posts, tied.undecidable_changed_entities) == (1, 1)
    assert tied.smallest_margin == 1e-6
    clear = judged(rows, leads=[1.0, 1e-4])
    assert (clear.verdict, clear.changed_entities) == ("fail", 1)
    (change,) = clear.changes
    assert (change.id, change.missing, change.added) == ("b", [B], [C])
    assert not change.undecidable
    assert "1 of 3 entities changed over 2 posts" in clear.reason


def test_a_post_that_fails_or_loses_its_picture_on_one_side_fails_the_tier() -> None:
    rows: Rows = [("a", {A}, {A}, None, "int8")]
    failed = judged(rows, tier=[Answer(scores=None, entities=frozenset(), failed="broke")])
    assert (failed.verdict, failed.failed_posts) == ("fail", 1)
    seen = judged(rows, tier=[Answer(scores=None, entities=frozenset({A}), image_used=True)])
    assert "picture on one side" in seen.reason
    assert judged([]).reason == "no post was compared"
