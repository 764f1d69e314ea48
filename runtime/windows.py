"""One post's scores out of its windows: every number from the window that saw most around it.

Shape letters: T steps of the whole text (with its two special tokens), U units, N words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import Floats
from amlr.runtime.batching import Scores
from amlr.runtime.providers.base import Decoded
from amlr.runtime.text import EncodedText, TextWindow
from amlr.runtime.units import UnitTable, aligned_units_of, all_units


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PostScores:
    """Raw scores of one post, as if the text had been one sequence.

    Attributes:
        encoded: The text and its words.
        sequence: All steps and words of the text; the single window where there is only one.
        units: Scored units, steps and words counted over the whole text.
        unit_logits_uc: Raw logits, shape (U, 1+C).
        emissions_ty: Raw token scores, shape (T, Y).
    """

    encoded: EncodedText
    sequence: TextWindow
    units: UnitTable
    unit_logits_uc: Floats
    emissions_ty: Floats

    @property
    def word_emissions_ny(self) -> Floats:
        """Token scores at each word's first subword, shape (N, Y)."""
        return self.emissions_ty[self.sequence.first_n]

    @property
    def unit_gains_uc(self) -> Floats:
        """What a decoder weighs: each unit's classes less "none", shape (U, C)."""
        return self.unit_logits_uc[:, 1:] - self.unit_logits_uc[:, :1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedPost:
    """One post whose provider found the entities itself.

    Attributes:
        encoded: The text and its words; one window.
        found: What was found.
    """

    encoded: EncodedText
    found: Decoded


def window_units(window: TextWindow, scales: int, *, every: bool) -> UnitTable:
    """Units to score in one window: word-aligned ones, or every one."""
    return units_of_windows([window], scales, every=every)[0]


def units_of_windows(windows: Sequence[TextWindow], scales: int, *, every: bool) -> list[UnitTable]:
    """As `window_units` for several windows."""
    if every:
        return [all_units(len(window.input_ids_t), scales) for window in windows]
    return aligned_units_of([(window.first_n, window.last_n) for window in windows], scales)


def merge_windows(
    encoded: EncodedText,
    units: Sequence[UnitTable],
    scores: Sequence[Scores],
    *,
    scales: int,
    every: bool,
) -> PostScores:
    """Put a post's windows together.

    Args:
        encoded: The text with at least one window.
        units: Units of each window, from `window_units`.
        scores: Scores of each window.
        scales: K.
        every: Whether `units` are all units; those cut by every window's edge are then left out.
    """
    if len(encoded.windows) == 1:
        window = encoded.windows[0]
        return PostScores(
            encoded=encoded,
            sequence=window,
            units=units[0],
            unit_logits_uc=scores[0].unit_logits_mc,
            emissions_ty=scores[0].emissions_ny,
        )
    sequence, step_starts = _join(encoded.windows)
    steps = len(sequence.input_ids_t)
    table = window_units(sequence, scales, every=every)
    rows, order = _unit_rows(table, scales)
    unit_best = np.full(len(table), -1.0)
    step_best = np.full(steps, -1.0)
    logits = np.zeros((len(table), scores[0].unit_logits_mc.shape[1]), np.float32)
    emissions = np.zeros((steps, scores[0].emissions_ny.shape[1]), np.float32)
    for window, start, own, score in zip(encoded.windows, step_starts, units, scores, strict=True):
        left, right = _context(len(window.input_ids_t), start, steps)
        inside = np.flatnonzero((left >= 0) & (right >= 0))
        context = np.minimum(left, right)[inside]
        is_better = context > step_best[inside + start]
        source = inside[is_better]
        step_best[source + start] = context[is_better]
        emissions[source + start] = score.emissions_ny[source]

        context = np.minimum(left[own.start_step_u], right[own.end_step_u])
        key = (own.start_step_u + start) * scales + own.scale_u - 1
        row = order[np.minimum(np.searchsorted(rows, key), len(rows) - 1)] if len(rows) else key
        better = np.flatnonzero(context >= 0)
        better = better[context[better] > unit_best[row[better]]]
        unit_best[row[better]] = context[better]
        logits[row[better]] = score.unit_logits_mc[better]
    kept = unit_best >= 0
    return PostScores(
        encoded=encoded,
        sequence=sequence,
        units=UnitTable(
            start_word_u=table.start_word_u[kept],
            end_word_u=table.end_word_u[kept],
            start_step_u=table.start_step_u[kept],
            scale_u=table.scale_u[kept],
        ),
        unit_logits_uc=logits[kept],
        emissions_ty=emissions,
    )


def _unit_rows(table: UnitTable, scales: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Sorted keys of units and where each one is in the table."""
    key = table.start_step_u.astype(np.int64) * scales + table.scale_u - 1
    order = np.argsort(key)
    return key[order], order


def _context(
    steps: int, start: int, total: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps seen to the left and right of each step of a window that begins at `start`.

    At the text's own ends nothing is missing, so the context counts as endless. Special tokens
    inside the text belong to no place in it: -1.
    """
    left = np.arange(steps, dtype=np.float64) - 1
    right = left[::-1].copy()
    if start == 0:
        left[:] = np.inf
    if start + steps == total:
        right[:] = np.inf
    return left, right


def _join(windows: Sequence[TextWindow]) -> tuple[TextWindow, list[int]]:
    """All windows as one sequence, and the step of it at which each window begins."""
    ids, shapes, firsts, lasts = [], [], [], []
    starts: list[int] = []
    words = 0
    total = 1
    for window in windows:
        # Words before this window's first new one were already added by the window before.
        seen = words - window.word_start
        begin = int(window.first_n[seen])
        starts.append(total - begin)
        inside = slice(begin, len(window.input_ids_t) - 1)
        ids.append(window.input_ids_t[inside])
        shapes.append(window.shape_ids_t[inside])
        firsts.append(window.first_n[seen:] + starts[-1])
        lasts.append(window.last_n[seen:] + starts[-1])
        words += len(window.first_n) - seen
        total += inside.stop - begin
    first, last = windows[0], windows[-1]
    zero = np.zeros(1, np.int64)
    return (
        TextWindow(
            input_ids_t=np.concatenate([first.input_ids_t[:1], *ids, last.input_ids_t[-1:]]),
            shape_ids_t=np.concatenate([zero, *shapes, zero]),
            first_n=np.concatenate(firsts).astype(np.int32),
            last_n=np.concatenate(lasts).astype(np.int32),
            word_start=0,
        ),
        starts,
    )
