"""Entity scores, strict and lenient."""

import itertools

import pytest

from amlr.errors import InputError
from amlr.training.conll import match_labels
from amlr.training.score import Mode, count_spans, read_spans, score_posts, write_tags


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


@pytest.mark.parametrize("model", [("PER", "OTHER"), ("PER", "MISC"), ("PER", "OTHER", "MISC")])
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_right_predictions_score_one_however_classes_are_named(
    model: tuple[str, ...], mode: Mode
) -> None:
    names = ("PER", "OTHER", "MISC", "food")
    for count in (1, 2, 3, 4):
        for data in itertools.combinations(names, count):
            rename = match_labels(data, model)
            gold = [[f"B-{label}", f"I-{label}", "O"] for label in data]
            right = [[(0, 2, rename[label])] for label in data]
            report = score_posts(gold, right, mode, rename=rename)
            assert (report["precision"], report["recall"], report["f1"]) == (1.0, 1.0, 1.0)
            assert all(scores["f1"] == 1.0 for scores in report["per_type"].values())
            assert sum(scores["gold"] for scores in report["per_type"].values()) == count
            merged = {"OTHER", "MISC"} <= set(data) and len(model) == 2
            expected = {*data} - {"OTHER", "MISC"} | {model[1]} if merged else {*data}
            assert set(report["per_type"]) == expected
            missed = score_posts(gold, [[] for _ in gold], mode, rename=rename)
            assert (missed["correct"], missed["gold"]) == (0, count)


def test_nothing_predicted_scores_zero_without_dividing() -> None:
    counts = count_spans([[]], [[]])
    assert (counts.precision, counts.recall, counts.f1) == (0.0, 0.0, 0.0)


def test_different_numbers_of_posts_are_refused() -> None:
    with pytest.raises(InputError, match="same posts"):
        count_spans([[]], [])
