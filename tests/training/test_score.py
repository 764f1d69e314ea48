"""Entity scores, strict and lenient."""

import pytest

from amlr.errors import InputError
from amlr.training.score import count_spans, read_spans, score_posts, write_tags


def test_strict_and_lenient_differ_only_in_stray_continuations() -> None:
    tags = ["I-PER", "O", "B-LOC", "I-LOC", "B-LOC", "I-ORG", "X"]
    assert read_spans(tags, "strict") == [(2, 4, "LOC"), (4, 5, "LOC")]
    assert read_spans(tags, "lenient") == [
        (0, 1, "PER"),
        (2, 4, "LOC"),
        (4, 5, "LOC"),
        (5, 6, "ORG"),
    ]


def test_tags_and_spans_are_inverse() -> None:
    spans = [(0, 2, "PER"), (2, 3, "PER"), (4, 5, "ORG")]
    assert read_spans(write_tags(spans, 6), "strict") == spans


def test_scores_per_type_keep_the_corpus_names() -> None:
    gold = [["B-MISC", "O", "B-PER"], ["I-PER", "O"]]
    predicted = [[(0, 1, "OTHER"), (2, 3, "LOC")], [(0, 1, "PER")]]
    strict = score_posts(gold, predicted, "strict", rename={"MISC": "OTHER", "PER": "PER"})
    assert (strict["correct"], strict["predicted"], strict["gold"]) == (1, 3, 2)
    assert strict["per_type"]["MISC"]["f1"] == 1.0
    assert strict["per_type"]["LOC"]["precision"] == 0.0
    assert "OTHER" not in strict["per_type"]
    lenient = score_posts(gold, predicted, "lenient", rename={"MISC": "OTHER"})
    assert (lenient["correct"], lenient["gold"]) == (2, 3)
    assert lenient["f1"] == pytest.approx(2 * 2 / 6)


def test_nothing_predicted_scores_zero_without_dividing() -> None:
    counts = count_spans([[]], [[]])
    assert (counts.precision, counts.recall, counts.f1) == (0.0, 0.0, 0.0)


def test_different_numbers_of_posts_are_refused() -> None:
    with pytest.raises(InputError, match="same posts"):
        count_spans([[]], [])
