"""Viterbi decoding of a linear-chain CRF in NumPy: the reference every other decoder must match.

Shape letters: B batch, T steps, Y tags.

One order of additions, for every backend, all in float32:

    alpha[0, j] = start[j] + em[0, j]
    alpha[t, j] = max_i(alpha[t-1, i] + trans[i, j]) + em[t, j]
    score       = max_j(alpha[len-1, j] + end[j])

One tie rule: the lowest last tag, then from the end backwards the lowest tag that reaches the best.
"""

import math
import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import AnyFloats, Floats, Indices, Ints32
from amlr.kernels.validation import (
    INF,
    Chain,
    check_backend,
    check_chain,
    explain_bad_scores,
)

_CACHE_LINE = 64


def viterbi_decode(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
    backend: str = "numpy",
) -> tuple[Ints32, Floats]:
    """Find the best tag path of each sequence.

    Args:
        emissions_bty: Tag scores, shape (B, T, Y), float32 or float16; -inf forbids a tag. Values
            past a sequence's length are ignored, whatever they are.
        lengths_b: Valid steps, shape (B,), each in 0..T.
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y), boolean; None allows all.
        backend: "numpy" or "cuda"; both return the same path and score.

    Returns:
        Tags (B, T) int32, -1 past the end; path scores (B,) float32. An empty sequence scores 0. A
        sequence without any allowed path scores -inf, and its tags mean nothing.

    Raises:
        ShapeError: A shape or length does not fit, or a score that is used is NaN or +inf.
        InputError: No such backend.
        BackendUnavailableError: CUDA cannot be used here.

    Example:
        >>> tags, scores = viterbi_decode(
        ...     [[[1, 0], [0, 3]]], [2], start_y=[0, 0], transitions_yy=[[0, 0], [0, 0]],
        ...     end_y=[0, 0])
        >>> tags.tolist(), scores.tolist()
        ([[0, 1]], [4.0])
    """
    check_backend(backend)
    if backend == "cuda":
        # Loaded when asked for: the device layer doubles the import time of this package.
        from amlr.kernels.cuda import default_decoders

        return default_decoders().viterbi_decode(
            emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy
        )
    chain = check_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    batch, steps, _ = chain.emissions_bty.shape
    if not batch or not steps:
        return np.full((batch, steps), -1, np.int32), np.zeros(batch, np.float32)
    # NaN and inf - inf are found in the scores; NumPy need not warn about each step.
    with np.errstate(invalid="ignore", over="ignore"):
        tags, scores = _decode_one(chain) if batch == 1 else _decode(chain)
    if not scores[scores.argmax()] < INF:  # arg-max, like max, finds a NaN first
        explain_bad_scores(chain)
    return tags, scores


class _Buffers(threading.local):
    """Scratch memory of one thread, kept between calls: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self.flat: dict[str, Floats] = {}

    def take(self, name: str, *shape: int) -> Floats:
        """An uninitialised float32 array; valid until the next call with the same name."""
        size = math.prod(shape)
        flat = self.flat.get(name)
        if flat is None or flat.size < size:
            raw = np.empty(4 * size + _CACHE_LINE, np.uint8)
            # Vector stores that straddle two cache lines cost up to a fifth of the time.
            skip = -raw.ctypes.data % _CACHE_LINE
            flat = self.flat[name] = raw[skip : skip + 4 * size].view(np.float32)
        return flat[:size].reshape(shape)


_buffers = _Buffers()


def _decode(chain: Chain) -> tuple[Ints32, Floats]:
    """Forward maxima of all sequences in lock-step, then one trace.

    The batch is the last axis, so the maximum over the previous tag is an elementwise SIMD
    reduction over axis 0. Only alphas are stored: the arg-max is found again along the one chosen
    path. Steps past a sequence's end are computed and never read, which is cheaper than masking.
    """
    emissions, lengths, start, transitions, end = chain
    batch, steps, tags = emissions.shape
    alphas_tyb = _buffers.take("alphas", steps, tags, batch)
    np.copyto(alphas_tyb, emissions.transpose(1, 2, 0))
    candidates_yyb = _buffers.take("candidates", tags, tags, batch)
    moves_yyb = transitions[:, :, None]
    if batch >= 8:
        wide = _buffers.take("moves", tags, tags, batch)
        np.copyto(wide, moves_yyb)
        moves_yyb = wide
    advance(alphas_tyb, start, moves_yyb, candidates_yyb)
    rows = np.arange(batch)
    final_by = alphas_tyb[lengths - 1, :, rows] + end
    last = final_by.argmax(1)
    scores = final_by[rows, last]
    path_bt = _trace(alphas_tyb, lengths, transitions, last)
    if int(lengths.min()) < steps:
        path_bt[np.arange(steps) >= lengths[:, None]] = -1
        scores[lengths == 0] = 0
    return path_bt, scores


def advance(
    alphas_tyb: AnyFloats, start: AnyFloats, moves_yyb: AnyFloats, candidates_yyb: AnyFloats
) -> None:
    """Turn emissions (T, Y, B) into the best scores of all prefixes, in place, in their dtype."""
    add, reduce_max = np.add, np.maximum.reduce
    best = np.empty_like(alphas_tyb[0])
    add(start[:, None], alphas_tyb[0], out=alphas_tyb[0])
    for previous, alpha in zip(alphas_tyb[:, :, None, :], alphas_tyb[1:], strict=False):
        add(previous, moves_yyb, candidates_yyb)
        reduce_max(candidates_yyb, 0, out=best)
        add(best, alpha, alpha)


def _trace(
    alphas_tyb: Floats,
    lengths: Indices,
    transitions: Floats,
    last: Indices,
) -> Ints32:
    """Best tags (B, T), each sequence entering at its own last step; later steps are arbitrary."""
    steps, tags, batch = alphas_tyb.shape
    alphas_tby = _buffers.take("transposed", steps, batch, tags)
    np.copyto(alphas_tby, alphas_tyb.transpose(0, 2, 1))
    into_yy = np.ascontiguousarray(transitions.T)
    candidates = _buffers.take("candidates", batch, tags)
    path_tb = np.empty((steps, batch), np.intp)
    ends_tb = lengths - 1 == np.arange(steps)[:, None]
    enters = ends_tb.any(1).tolist()
    add, arg_max, take = np.add, candidates.argmax, into_yy.take
    path_tb[-1] = previous = last
    for t in range(steps - 2, -1, -1):
        current = path_tb[t]
        take(previous, 0, candidates, "clip")
        add(candidates, alphas_tby[t], candidates)
        arg_max(1, current)
        if enters[t]:
            np.copyto(current, last, where=ends_tb[t])
        previous = current
    return path_tb.T.astype(np.int32)


def _decode_one(chain: Chain) -> tuple[Ints32, Floats]:
    """One sequence: the same sums on two axes, where fixed costs per call are all that matters."""
    emissions, lengths, start, transitions, end = chain
    length = int(lengths[0])
    path = np.empty((1, emissions.shape[1]), np.int32)
    path[0, length:] = -1
    if not length:
        return path, np.zeros(1, np.float32)
    emissions_ty = emissions[0, :length]
    path[0, :length], score = _decode_steps(emissions_ty, start, transitions, end)
    return path, np.array([score])


def _decode_steps(
    emissions_ty: Floats, start: Floats, transitions: Floats, end: Floats
) -> tuple[Indices, np.float32]:
    """Best path of one sequence, step by step.

    On a few dozen numbers a call of `take`, or an addition of equal shapes, costs a third of a
    broadcast addition or a reduction; so alpha is spread out by `take`, and the maximum is read
    where `argmax` found it.
    """
    steps, tags = emissions_ty.shape
    spread_index, row_starts = _spread_indices(tags)
    into = np.ascontiguousarray(transitions.T).reshape(-1)  # next tag, previous tag
    spread, sums = np.empty(tags * tags, np.float32), np.empty(tags * tags, np.float32)
    best, alpha = np.empty(tags, np.float32), np.empty(tags, np.float32)
    cells = np.empty(tags, np.intp)
    pointers = np.empty((steps, tags), np.intp)
    add, spread_alpha, read = np.add, alpha.take, sums.take
    arg_max = sums.reshape(tags, tags).argmax
    add(start, emissions_ty[0], alpha)
    for pointer, emission in zip(pointers[1:], emissions_ty[1:], strict=True):
        spread_alpha(spread_index, None, spread, "clip")
        add(spread, into, sums)
        arg_max(1, pointer)
        add(pointer, row_starts, cells)
        read(cells, None, best, "clip")
        add(best, emission, alpha)
    final = alpha + end
    tag = int(final.argmax())
    score = final[tag]
    path = [tag]
    for row in pointers[:0:-1].tolist():
        tag = row[tag]
        path.append(tag)
    return np.array(path[::-1]), score


@lru_cache(maxsize=16)
def _spread_indices(tags: int) -> tuple[Indices, Indices]:
    """Tag of each cell of a flat (Y, Y) table's columns, and the first cell of each row."""
    columns = np.tile(np.arange(tags), tags)
    return columns, np.arange(tags) * tags
