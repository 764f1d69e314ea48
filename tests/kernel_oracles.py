"""Exhaustive search for the decoders: every path, every segmentation, in the order of the tie rule.

Shape letters: B batch or posts, T steps, Y tags, U units, C classes, N words.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amlr.kernels import Units

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]
Segments = tuple[tuple[int, int, int], ...]


def f32(values: Any) -> Floats:
    """Nested lists as float32."""
    return np.array(values, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainCase:
    """Inputs of a linear chain; small integers (exact in float32, ties common) and -inf."""

    emissions_bty: Floats
    lengths_b: Ints
    start_y: Floats
    transitions_yy: Floats
    end_y: Floats

    @property
    def parameters(self) -> dict[str, Any]:
        """What `viterbi_decode` takes by keyword."""
        return {
            "start_y": self.start_y,
            "transitions_yy": self.transitions_yy,
            "end_y": self.end_y,
        }


def zero_chain(batch: int, steps: int, tags: int, lengths: list[int] | None = None) -> ChainCase:
    """All scores tied."""
    return ChainCase(
        emissions_bty=np.zeros((batch, steps, tags), np.float32),
        lengths_b=np.array(lengths or [steps] * batch),
        start_y=np.zeros(tags, np.float32),
        transitions_yy=np.zeros((tags, tags), np.float32),
        end_y=np.zeros(tags, np.float32),
    )


def random_chain(seed: int, batch: int, steps: int, tags: int) -> ChainCase:
    """Normal scores, lengths 0..T with one of 1 and one of T."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    lengths[-1] = min(1, steps) if batch > 1 else steps
    return ChainCase(
        emissions_bty=rng.standard_normal((batch, steps, tags)).astype(np.float32),
        lengths_b=lengths,
        start_y=rng.standard_normal(tags).astype(np.float32),
        transitions_yy=rng.standard_normal((tags, tags)).astype(np.float32),
        end_y=rng.standard_normal(tags).astype(np.float32),
    )


def _scores(shape: tuple[int, ...], lowest: int) -> st.SearchStrategy[Floats]:
    def decode(drawn: Ints) -> Floats:
        return np.where(drawn < -2, -np.inf, drawn).astype(np.float32)

    return arrays(np.int8, shape, elements=st.integers(lowest, 2)).map(decode)


@st.composite
def chains(draw: Callable[..., Any], max_steps: int = 7, max_tags: int = 4) -> ChainCase:
    """Chains small enough for every path to be tried; about a sixth of the moves forbidden."""
    batch, steps, tags = (draw(st.integers(1, n)) for n in (3, max_steps, max_tags))
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    return ChainCase(
        emissions_bty=draw(_scores((batch, steps, tags), -2)),
        lengths_b=np.array(lengths),
        start_y=draw(_scores((tags,), -3)),
        transitions_yy=draw(_scores((tags, tags), -3)),
        end_y=draw(_scores((tags,), -2)),
    )


@lru_cache(maxsize=64)
def _all_paths(steps: int, tags: int) -> Ints:
    # The last tag varies slowest, so the first maximum is the one the tie rule prefers.
    grid = np.indices((tags,) * steps).reshape(steps, -1)
    return grid[::-1].T


def all_paths(case: ChainCase, b: int) -> tuple[Doubles, Ints]:
    """Scores (float64) and tags of every path of one sequence, preferred ones first among ties."""
    length = int(case.lengths_b[b])
    paths = _all_paths(length, len(case.start_y))
    emissions = case.emissions_bty[b].astype(np.float64)
    totals = case.start_y[paths[:, 0]] + case.end_y[paths[:, -1]].astype(np.float64)
    totals = totals + emissions[np.arange(length), paths].sum(1)
    totals += case.transitions_yy[paths[:, :-1], paths[:, 1:]].sum(1)
    return totals, paths


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentCase:
    """Units of several posts with small integer scores."""

    lengths_b: list[int]
    spans_b: list[list[tuple[int, int]]]  # (start, end) of each unit, sorted by end
    scores_uc: Floats

    @property
    def units(self) -> Units:
        """The case as the decoders take it."""
        spans = [span for post in self.spans_b for span in post]
        return Units(
            np.cumsum([0, *map(len, self.spans_b)]),
            np.array([span[0] for span in spans], np.int32),
            np.array([span[1] for span in spans], np.int32),
            self.scores_uc,
        )

    def post_units(self, b: int) -> list[tuple[int, int, int]]:
        """(start, end, row of scores) of the units of one post."""
        first = sum(map(len, self.spans_b[:b]))
        return [(*span, first + i) for i, span in enumerate(self.spans_b[b])]


def dense_case(words: int, classes: int, value: float, posts: int = 1) -> SegmentCase:
    """Every unit of every post, all with one score."""
    spans = [(start, end) for end in range(words) for start in range(end + 1)]
    scores = np.full((posts * len(spans), classes), value, np.float32)
    return SegmentCase(lengths_b=[words] * posts, spans_b=[spans] * posts, scores_uc=scores)


@st.composite
def segment_cases(
    draw: Callable[..., Any], max_words: int = 8, max_units: int = 12, lowest: int = -3
) -> SegmentCase:
    """Posts whose segmentations can all be tried; `lowest` -3 includes forbidden units."""
    lengths = draw(st.lists(st.integers(0, max_words), min_size=1, max_size=3))
    spans = []
    for words in lengths:
        choices = [(start, end) for end in range(words) for start in range(end + 1)]
        picked = draw(
            st.lists(st.sampled_from(choices), unique=True, max_size=max_units)
            if choices
            else st.just([])
        )
        # Sorted by end only: the order within an end must not matter.
        spans.append(sorted(picked, key=lambda span: span[1]))
    classes = draw(st.integers(1, 2))
    scores = draw(_scores((sum(map(len, spans)), classes), lowest))
    return SegmentCase(lengths_b=lengths, spans_b=spans, scores_uc=scores)


def all_segmentations(case: SegmentCase, b: int) -> list[Segments]:
    """Every segmentation of a post as (start, end, class), preferred ones first among ties."""
    ending: dict[int, list[int]] = {}
    for start, end, _ in case.post_units(b):
        ending.setdefault(end, []).append(start)
    classes = range(case.scores_uc.shape[1])

    def segment(stop: int) -> Iterator[Segments]:
        if not stop:
            yield ()
            return
        yield from segment(stop - 1)
        for start in sorted(ending.get(stop - 1, [])):
            for label in classes:
                for before in segment(start):
                    yield (*before, (start, stop - 1, label))

    # Decisions are compared from the end, so those of the prefix come last in the order.
    return list(segment(case.lengths_b[b]))


def segment_scores(case: SegmentCase, b: int, answers: list[Segments]) -> Doubles:
    """Score of each segmentation, float64."""
    row = {(start, end): u for start, end, u in case.post_units(b)}
    scores = case.scores_uc.astype(np.float64)
    return np.array(
        [sum(scores[row[start, end], c] for start, end, c in answer) for answer in answers]
    )
