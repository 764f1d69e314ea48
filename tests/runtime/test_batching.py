import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amlr.runtime.batching import Batch, exact, pool_images, split_batches
from amlr.runtime.text import TextWindow
from amlr.runtime.units import UnitTable, aligned_units, all_units
from numpy_graphs import closed_fusion, packed_fusion, padded_fusion

WIDTH = 3


def window(sizes: list[int], seed: int = 0) -> TextWindow:
    last = np.cumsum(sizes).astype(np.int32)
    steps = int(sum(sizes)) + 2
    ids = np.random.default_rng(seed).integers(1, 90, steps)
    return TextWindow(
        input_ids_t=ids,
        shape_ids_t=ids % 9,
        first_n=(last - np.array(sizes) + 1).astype(np.int32),
        last_n=last,
        word_start=0,
    )


def make_batch(posts: list[list[int]], scales: int, *, every: bool = False) -> Batch:
    windows = [window(sizes, i) for i, sizes in enumerate(posts)]
    units: list[UnitTable] = [
        all_units(len(w.input_ids_t), scales)
        if every
        else aligned_units(w.first_n, w.last_n, scales)
        for w in windows
    ]
    return Batch(windows, units, scales=scales, pad_id=0)


@given(
    st.lists(st.integers(1, 200), max_size=70), st.integers(1, 16), st.sampled_from([64, 512, 4096])
)
def test_batches_hold_every_window_once(lengths: list[int], size: int, tokens: int) -> None:
    batches = split_batches(lengths, max_windows=size, max_tokens=tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or len(batch) * longest <= tokens
    ends = [lengths[i] for batch in batches for i in batch]
    assert ends == sorted(ends)


posts_st = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=9), min_size=1, max_size=6)


@example([[5, 5]], 3, False, [0])  # no word is short enough: no unit at all
@example([[5], [1, 1]], 3, False, [0, None])  # the post with the picture has no unit
@example([[1]], 6, False, [None])  # scales without units
@example([[1, 1], [2]], 4, True, [0, 0])  # two posts, one picture
@given(posts_st, st.integers(1, 6), st.booleans(), st.lists(st.sampled_from([None, 0, 1, 2])))
def test_packed_and_padded_graphs_see_the_same_units(
    posts: list[list[int]], scales: int, every: bool, choice: list[int | None]
) -> None:
    batch = make_batch(posts, scales, every=every)
    rng = np.random.default_rng(1)
    pictures = [rng.integers(-9, 9, (2, WIDTH)).astype(np.float32) for _ in range(3)]
    picked = (choice + [None] * len(posts))[: len(posts)]
    features, slot_b = pool_images([None if c is None else pictures[c] for c in picked])
    pool_npd = np.stack(features) if features else np.zeros((1, 2, WIDTH), np.float32)
    hidden_nd = rng.integers(-9, 9, (int(batch.lengths_b.sum()), WIDTH)).astype(np.float32)

    packed = batch.packed_fusion(hidden_nd, pool_npd, slot_b)
    assert all(array.size for array in packed.values())
    scores = batch.from_packed(packed_fusion(packed, scales))

    text = batch.padded_text(min_steps=scales)
    hidden_btd = np.full((*text["input_ids"].shape, WIDTH), 777.0, np.float32)
    hidden_btd[text["attention_mask"] == 1] = hidden_nd
    padded = batch.padded_fusion(hidden_btd, pool_npd, slot_b)
    other = batch.from_padded(padded_fusion(padded, scales))
    np.testing.assert_array_equal(scores.unit_logits_mc, other.unit_logits_mc)
    np.testing.assert_array_equal(scores.emissions_ny, other.emissions_ny)

    for b, own in enumerate(batch.split(scores)):
        hidden = hidden_nd[batch.step_offsets_b[b] : batch.step_offsets_b[b + 1]]
        np.testing.assert_array_equal(own.emissions_ny, hidden * 2)
        choice_b = picked[b]
        taken = -100 if choice_b is None else pictures[choice_b].sum(0)
        table = batch.units[b]
        expected = [
            hidden[start : start + scale].sum(0) + taken
            for start, scale in zip(table.start_step_u, table.scale_u, strict=True)
        ]
        np.testing.assert_array_equal(own.unit_logits_mc, np.reshape(expected, (-1, WIDTH)))


@given(posts_st, st.integers(1, 6))
def test_without_pictures_the_attention_may_be_empty(posts: list[list[int]], scales: int) -> None:
    batch = make_batch(posts, scales)
    rng = np.random.default_rng(2)
    hidden = rng.integers(-9, 9, (int(batch.lengths_b.sum()), WIDTH)).astype(np.float32)
    pool, slots = np.zeros((1, 2, WIDTH), np.float32), np.full(len(posts), -1)
    full = batch.packed_fusion(hidden, pool, slots)
    empty = batch.packed_fusion(hidden, pool, slots, allow_empty=True)
    assert len(empty["attend_rows_r"]) == 0
    np.testing.assert_array_equal(
        batch.from_packed(packed_fusion(full, scales)).unit_logits_mc,
        batch.from_packed(packed_fusion(empty, scales)).unit_logits_mc,
    )
    for size in (exact, lambda count: -(-count // 8) * 8):
        rows = np.concatenate([hidden, np.full((3, WIDTH), 777.0, np.float32)])
        closed = batch.closed_fusion(rows, round_up=size)
        assert set(closed) == {"hidden_nd", *(f"rows_{k}" for k in range(1, scales + 1))}
        np.testing.assert_array_equal(
            batch.from_packed(packed_fusion(full, scales)).unit_logits_mc,
            batch.from_packed(closed_fusion(closed, scales), round_up=size).unit_logits_mc,
        )
    slots[0] = 0
    both = (batch.packed_fusion(hidden, pool, slots, allow_empty=flag) for flag in (True, False))
    for a, b in zip(*(feed.values() for feed in both), strict=True):
        np.testing.assert_array_equal(a, b)


@given(posts_st, st.booleans())
def test_packed_text_indices_lead_back(posts: list[list[int]], shapes: bool) -> None:
    batch = make_batch(posts, 3)
    packed, padded = batch.packed_text(shapes=shapes), batch.padded_text(shapes=shapes)
    mask = padded["attention_mask"] == 1
    np.testing.assert_array_equal(packed["attention_mask"], padded["attention_mask"])
    np.testing.assert_array_equal(
        padded["input_ids"].reshape(-1)[packed["unpad_index"]], packed["input_ids"]
    )
    np.testing.assert_array_equal(
        packed["input_ids"][packed["pad_index"]][mask], packed["input_ids"]
    )
    np.testing.assert_array_equal(packed["position_ids"], np.nonzero(mask)[1])
    assert ("shape_ids" in packed) == ("shape_ids" in padded) == shapes
    if shapes:
        np.testing.assert_array_equal(padded["shape_ids"][mask], packed["shape_ids"])
        assert (padded["shape_ids"][~mask] == 0).all()


def test_pool_shares_equal_objects_only() -> None:
    a, b = np.zeros(2), np.zeros(2)
    features, slot_b = pool_images([a, None, b, a])
    assert slot_b.tolist() == [0, -1, 1, 0]
    assert features[1] is b


def test_an_empty_batch_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Batch([], [], scales=3, pad_id=0)
