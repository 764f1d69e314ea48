"""Joint scores against their definition, word by word."""

from typing import Any

import numpy as np
import pytest

from amlr.errors import ShapeError
from amlr.kernels import joint_scores, segmental_decode
from kernel_oracles import f32

TAGS = ("X", "O", "B-PER", "I-PER", "I-LOC", "B-LOC", "PAD")
LABELS = ("PER", "LOC")
COLUMNS = {0: (2, 3), 1: (5, 4)}  # class -> columns of B and I


def random_inputs(seed: int, posts: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 14, posts)
    spans = []
    for n in words:
        every = [(s, e) for e in range(n) for s in range(max(0, e - 3), e + 1)]
        spans.append([span for span in every if rng.random() < 0.8])
    rows = np.array([span for post in spans for span in post]).reshape(-1, 2)
    return {
        "post_offsets": np.cumsum([0, *map(len, spans)]),
        "start_u": rows[:, 0],
        "end_u": rows[:, 1],
        "unit_logits_uc": rng.standard_normal((len(rows), 3)).astype(np.float32),
        "word_offsets": np.cumsum([0, *words]),
        "word_emissions_wy": rng.standard_normal((int(words.sum()), 7)).astype(np.float32),
        "bias": 0.5,
        "weight": 0.25,
        "tags": TAGS,
        "labels": LABELS,
    }


def test_every_run_scores_as_defined() -> None:
    inputs = random_inputs(0, 6)
    units = joint_scores(**inputs)
    offsets, bounds = inputs["post_offsets"], inputs["word_offsets"]
    row = 0
    for b in range(6):
        assert units.post_offsets[b] == row
        known = {
            (inputs["start_u"][u], inputs["end_u"][u]): inputs["unit_logits_uc"][u]
            for u in range(offsets[b], offsets[b + 1])
        }
        emissions = inputs["word_emissions_wy"][bounds[b] : bounds[b + 1]]
        for end in range(len(emissions)):
            for start in range(max(0, end - 9), end + 1):
                assert (units.start_u[row], units.end_u[row]) == (start, end)
                logits = known.get((start, end))
                assert units.has_logits_u is not None
                assert units.has_logits_u[row] == (logits is not None)
                for label, (begin, inside) in COLUMNS.items():
                    gain = emissions[start, begin] - emissions[start, 1]
                    gain += (emissions[start + 1 : end + 1, inside]).sum()
                    gain -= (emissions[start + 1 : end + 1, 1]).sum()
                    expected = 0.25 * gain - 0.5
                    if logits is not None:
                        expected += logits[1 + label] - logits[0]
                    assert units.scores_uc[row, label] == pytest.approx(expected, abs=1e-5)
                row += 1
    assert row == len(units.start_u)


def test_weight_zero_is_the_span_head_alone() -> None:
    inputs = random_inputs(1, 4)
    units = joint_scores(
        **{name: inputs[name] for name in ("post_offsets", "start_u", "end_u", "unit_logits_uc")},
        bias=2.0,
    )
    logits = inputs["unit_logits_uc"]
    np.testing.assert_array_equal(units.scores_uc, (logits[:, 1:] - logits[:, :1]) - np.float32(2))
    assert units.has_logits_u is None
    segmental_decode(units, np.diff(inputs["word_offsets"]))


def test_a_post_scores_the_same_in_any_batch() -> None:
    inputs = random_inputs(2, 8)
    together = joint_scores(**inputs)
    offsets, bounds = inputs["post_offsets"], inputs["word_offsets"]
    for b in range(8):
        mine, words = slice(offsets[b], offsets[b + 1]), slice(bounds[b], bounds[b + 1])
        alone = joint_scores(
            **{
                **inputs,
                "post_offsets": [0, offsets[b + 1] - offsets[b]],
                "start_u": inputs["start_u"][mine],
                "end_u": inputs["end_u"][mine],
                "unit_logits_uc": inputs["unit_logits_uc"][mine],
                "word_offsets": [0, bounds[b + 1] - bounds[b]],
                "word_emissions_wy": inputs["word_emissions_wy"][words],
            }
        )
        rows = slice(together.post_offsets[b], together.post_offsets[b + 1])
        np.testing.assert_array_equal(alone.scores_uc, together.scores_uc[rows])


def test_longer_entities_than_runs_keep_their_units() -> None:
    units = joint_scores(
        post_offsets=[0, 1],
        start_u=[0],
        end_u=[4],
        unit_logits_uc=f32([[0, 9, 0]]),
        word_offsets=[0, 5],
        word_emissions_wy=np.zeros((5, 7), np.float32),
        bias=1.0,
        weight=1.0,
        tags=TAGS,
        labels=LABELS,
        max_entity_words=2,
    )
    assert len(units.start_u) == 5 + 4 + 1
    assert segmental_decode(units, [5])[0][0].tolist() == [[0, 4, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit_logits_uc": np.zeros((2, 1))}, "'none' and C classes"),
        ({"weight": -1.0}, "must not be negative"),
        ({"word_emissions_wy": None}, "weight > 0 needs"),
        ({"labels": ("PER",)}, "labels names 1"),
        ({"labels": ("PER", "ORG")}, r"tags lack \['B-ORG', 'I-ORG'\]"),
        ({"word_emissions_wy": np.zeros((3, 4))}, "word_emissions_wy must have shape"),
        ({"word_emissions_wy": np.full((3, 7), np.nan)}, "word_emissions_wy holds nan"),
        ({"word_offsets": [0, 2]}, r"word_offsets must rise from 0 to the number of rows \(3\)"),
        ({"end_u": [0, 3]}, "a unit ends past its post's last word"),
        ({"post_offsets": [0, 1]}, "post_offsets must rise"),
    ],
)
def test_inputs_are_checked(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "post_offsets": [0, 2],
        "start_u": [0, 0],
        "end_u": [0, 2],
        "unit_logits_uc": np.zeros((2, 3), np.float32),
        "word_offsets": [0, 3],
        "word_emissions_wy": np.zeros((3, 7), np.float32),
        "bias": 0.0,
        "weight": 1.0,
        "tags": TAGS,
        "labels": LABELS,
    }
    joint_scores(**arguments)
    with pytest.raises(ShapeError, match=message):
        joint_scores(**{**arguments, **change})
