"""Posts for tests of the engine, and how two of its answers are compared."""

import numpy as np

from amlr.runtime import Entity, Raw
from drawings import saved, smooth

PICTURES = [saved(smooth(40 + 9 * i, 50)) for i in range(3)]
TEXTS = [
    "Jordan in Paris",
    "the new york apple, at the st. Jordan's place in Paris, https://t.co/x and more words",
    "x",
    "👨‍👩‍👧 in New York 🇫🇷",
    " ".join(f"word{i} Paris" for i in range(60)),  # several windows
    "a-b-c-d-e-f-g-h",  # one word longer than the largest scale
]


def keys(entities: tuple[Entity, ...]) -> list[tuple[int, int, str]]:
    return [(e.start, e.end, e.label) for e in entities]


def assert_close(a: Raw, b: Raw, atol: float = 1e-5) -> None:
    np.testing.assert_array_equal(a.input_ids, b.input_ids)
    np.testing.assert_array_equal(a.token_offsets, b.token_offsets)
    np.testing.assert_array_equal(a.unit_starts, b.unit_starts)
    np.testing.assert_array_equal(a.unit_ends, b.unit_ends)
    np.testing.assert_allclose(a.unit_logits, b.unit_logits, atol=atol, rtol=0)
    np.testing.assert_allclose(a.emissions, b.emissions, atol=atol, rtol=0)
