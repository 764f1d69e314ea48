import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from amlr.runtime.batching import Scores
from amlr.runtime.text import TextWindow
from amlr.runtime.units import UnitTable
from amlr.runtime.windows import merge_windows, window_units
from encoders import wordpiece_encoder

SCALES = 4
ENCODER = wordpiece_encoder(max_tokens=16, overlap_tokens=6, max_word_tokens=5)
WHOLE = wordpiece_encoder(max_tokens=4000, overlap_tokens=6, max_word_tokens=5)


def scores_of(number: int, window: TextWindow, table: UnitTable) -> Scores:
    """Scores that tell which window and which step they come from."""
    steps = np.arange(len(window.input_ids_t), dtype=np.float32)
    column = np.full(len(steps), number, np.float32)
    rows = np.full(len(table), number, np.float32)
    return Scores(
        unit_logits_mc=np.stack([rows, table.start_step_u, table.scale_u], 1).astype(np.float32),
        emissions_ny=np.stack([column, steps], 1),
    )


@example([3] * 30, True)
@example([5] * 12, False)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=50), st.booleans())
def test_scores_come_from_the_widest_context(lengths: list[int], every: bool) -> None:
    text = " ".join("x" * n for n in lengths)
    (encoded,), (whole,) = ENCODER.encode([(text, None)]), WHOLE.encode([(text, None)])
    units = [window_units(w, SCALES, every=every) for w in encoded.windows]
    scores = [
        scores_of(i, w, u) for i, (w, u) in enumerate(zip(encoded.windows, units, strict=True))
    ]
    merged = merge_windows(encoded, units, scores, scales=SCALES, every=every)

    (expected,) = whole.windows  # the same text in one window: same steps, words and units
    np.testing.assert_array_equal(merged.sequence.input_ids_t, expected.input_ids_t)
    np.testing.assert_array_equal(ENCODER.token_offsets(encoded), WHOLE.token_offsets(whole))
    np.testing.assert_array_equal(merged.sequence.shape_ids_t, expected.shape_ids_t)
    np.testing.assert_array_equal(merged.sequence.first_n, expected.first_n)
    np.testing.assert_array_equal(merged.sequence.last_n, expected.last_n)
    if not every:
        table = window_units(expected, SCALES, every=False)
        np.testing.assert_array_equal(merged.units.start_word_u, table.start_word_u)
        np.testing.assert_array_equal(merged.units.end_word_u, table.end_word_u)

    total = len(expected.input_ids_t)
    # Where each window begins in the whole sequence.
    begins = [int(expected.first_n[w.word_start]) - 1 for w in encoded.windows]

    def context(number: int, first: int, last: int) -> float:
        """Steps around first..last (of the whole) in a window; -1 where it is not inside."""
        steps = len(encoded.windows[number].input_ids_t)
        begin = begins[number]
        low, high = first - begin - 1, begin + steps - 2 - last
        low = 10**9 if begin == 0 and low >= -1 else low
        high = 10**9 if begin + steps == total and high >= -1 else high
        return min(low, high)

    for step, (number, own) in enumerate(merged.emissions_ty.tolist()):
        widest = max(context(i, step, step) for i in range(len(begins)))
        assert context(int(number), step, step) == widest >= 0
        assert own + begins[int(number)] == step
    table = merged.units
    for row, start, scale in zip(
        merged.unit_logits_uc.tolist(), table.start_step_u, table.scale_u, strict=True
    ):
        number, own_start, own_scale = map(int, row)
        widest = max(context(i, start, start + scale - 1) for i in range(len(begins)))
        assert context(number, start, start + scale - 1) == widest >= 0
        assert (own_start + begins[number], own_scale) == (start, scale)
