import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amlr.runtime.units import aligned_units, all_units, scale_major_index, unit_count


@given(st.lists(st.integers(1, 8), max_size=20), st.integers(1, 7))
def test_aligned_units_equal_a_plain_search(sizes: list[int], scales: int) -> None:
    last = np.cumsum(sizes, dtype=np.int32)
    first = last - np.array(sizes, np.int32) + 1
    table = aligned_units(first, last, scales)
    expected = [
        (j, m, first[j], last[m] - first[j] + 1)
        for m in range(len(sizes))
        for j in range(m + 1)
        if last[m] - first[j] < scales
    ]
    columns = (table.start_word_u, table.end_word_u, table.start_step_u, table.scale_u)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert all(column.dtype == np.int32 for column in columns)


@given(st.integers(0, 12), st.integers(1, 7))
def test_all_units_are_numbered_scale_major(steps: int, scales: int) -> None:
    table = all_units(steps, scales)
    assert len(table) == unit_count(steps, scales)
    assert table.index_in(steps).tolist() == list(range(len(table)))
    assert (table.end_step_u < steps).all()


def test_index_of_a_padded_sequence() -> None:
    assert scale_major_index([1, 0], [1, 3], 10).tolist() == [1, 19]
