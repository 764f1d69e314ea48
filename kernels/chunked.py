"""One long sequence decoded in chunks that advance together, and the proof that nothing changed.

Shape letters: T steps, Y tags, S steps of a chunk, C chunks.

With a batch of one, NumPy's fixed cost per call is everything. Cutting the sequence into C chunks
and advancing all of them from every possible start tag needs T/C + C rounds instead of T. Sums are
then grouped differently, so rounding may differ from the step-by-step decoder; that matters only
where two candidates are nearly tied. `decode_chunks` therefore bounds both rounding errors and
returns a path only when every decision on it was won by more; otherwise the caller steps through.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.kernels.validation import INF, Doubles, Floats

_UNIT_ROUNDOFF = 2.0**-24


def decode_chunks(
    emissions_ty: Floats, start_y: Floats, transitions_yy: Floats, end_y: Floats
) -> tuple[npt.NDArray[np.intp], np.float32] | None:
    """Path and score exactly as the step-by-step decoder gives them, or None if in doubt.

    Args:
        emissions_ty: Tag scores of one sequence, shape (T, Y), T >= 2.
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
    """
    length, tags = emissions_ty.shape
    moves = length - 1
    size = -(-moves // round(1.2 * moves**0.5))  # a step costs about half as much again as a chunk
    chunks = -(-moves // size)
    tail = moves - (chunks - 1) * size - 1  # last step of the last, perhaps shorter, chunk
    partial = _advance(emissions_ty, transitions_yy, size, chunks)
    whole = partial[-1].transpose(2, 0, 1).copy()
    whole[-1] = partial[tail, :, :, -1]

    values = np.empty((chunks + 1, tags), np.float32)
    sums = np.empty((chunks, tags, tags), np.float32)  # chunk, tag after it, tag before it
    pointers = np.empty((chunks, tags), np.intp)
    spread_index, row_starts = spread_indices(tags)
    spread, cells = np.empty(tags * tags, np.float32), np.empty(tags, np.intp)
    add = np.add
    add(start_y, emissions_ty[0], values[0])
    for value, following, chunk, total, pointer in zip(
        values, values[1:], whole.reshape(chunks, -1), sums, pointers, strict=False
    ):
        flat = total.reshape(-1)
        value.take(spread_index, None, spread, "clip")
        add(chunk, spread, flat)
        total.argmax(1, pointer)
        add(pointer, row_starts, cells)
        flat.take(cells, None, following, "clip")

    # Every decision on the path keeps its candidates: the last tag, the tag before each chunk, and
    # then the tags inside the chunks, all chunks at once.
    decisions = np.empty((1 + chunks * size, tags), np.float32)
    add(values[-1], end_y, decisions[0])
    tag = int(decisions[0].argmax())
    tag_list = [tag]
    for row in reversed(pointers.tolist()):
        tag = row[tag]
        tag_list.append(tag)
    bounds = np.array(tag_list[::-1])
    order = np.arange(chunks)
    decisions[1 : 1 + chunks] = sums[order, bounds[1:]]
    inner = decisions[1 + chunks :].reshape(size - 1, chunks, tags)
    path = np.empty((size, chunks), np.intp)
    path[-1] = current = bounds[1:].copy()
    alphas = partial[:, :, bounds[:-1], order].swapaxes(1, 2).copy()
    into = np.ascontiguousarray(transitions_yy.T)
    for s in range(size - 2, -1, -1):
        if s + 1 == tail:
            current[-1] = bounds[-1]
        row = inner[s]
        into.take(current, 0, row, "clip")
        add(row, alphas[s], row)
        current = path[s]
        row.argmax(1, current)
    if tail < size - 1:
        if tail == 0:
            current[-1] = bounds[-1]
        inner[tail:, -1, 0], inner[tail:, -1, 1:] = 0, -INF  # no decisions: past the end

    best_two = np.partition(decisions, tags - 2, axis=1)
    gaps = best_two[:, -1] - best_two[:, -2]
    errors_c = _rounding_bounds(emissions_ty, transitions_yy, values, size)
    if not (gaps[0] > 2 * errors_c[-1] and (gaps[1:].reshape(size, chunks) > 2 * errors_c).all()):
        return None
    tags_t = np.empty(length, np.intp)
    tags_t[0] = bounds[0]
    tags_t[1:] = path.T.reshape(-1)[:moves]
    return tags_t, _path_score(tags_t, emissions_ty, start_y, transitions_yy, end_y)


@lru_cache(maxsize=64)
def spread_indices(tags: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices that repeat Y values Y times, and the first cell of each row of a (Y, Y) table."""
    cells = np.arange(tags * tags)
    return cells % tags, cells[::tags].copy()


def _advance(emissions_ty: Floats, transitions_yy: Floats, size: int, chunks: int) -> Floats:
    """Best sums from each start tag, (S, tag, start tag, C): chunk c does moves c*S+1..c*S+S."""
    length, tags = emissions_ty.shape
    padded = np.zeros((chunks * size, tags), np.float32)
    padded[: length - 1] = emissions_ty[1:]
    width = tags * chunks
    # Repeated over start tags: one copy here, then a plain addition each step.
    emissions_syw = np.empty((size, tags, tags, chunks), np.float32)
    emissions_syw[:] = padded.reshape(chunks, size, tags).transpose(1, 2, 0)[:, :, None]
    partial = np.empty((size, tags, tags, chunks), np.float32)
    np.add(transitions_yy.T[:, :, None], emissions_syw[0], out=partial[0])
    moves = np.empty((tags, tags, width), np.float32)
    moves[:] = transitions_yy[:, :, None]
    candidates = np.empty((tags, tags, width), np.float32)
    add, reduce_max = np.add, np.maximum.reduce
    flat = partial.reshape(size, tags, width)
    for before, after, emission in zip(
        flat[:, :, None], flat[1:], emissions_syw.reshape(size, tags, width)[1:], strict=False
    ):
        add(before, moves, candidates)
        reduce_max(candidates, 0, None, after)
        add(after, emission, after)
    return partial


def _rounding_bounds(
    emissions_ty: Floats, transitions_yy: Floats, values: Floats, size: int
) -> Doubles:
    """How far both decoders' sums, together, can be from exact ones by the end of each chunk.

    Both round twice a step. The step-by-step decoder rounds sums of size at most |values[c]| plus
    the steps of the chunk so far; the chunked one only those steps, and |values[c + 1]| once.
    Sums that the rounding of larger ones would hide need no bound: a maximum is monotone.
    """
    step = _largest(emissions_ty) + _largest(transitions_yy)
    reach = np.maximum.reduce(np.abs(values), 1)
    if not reach.max() < INF:
        reach = np.array([_largest(row) for row in values])
    roundings = (2 * size + 2) * np.maximum(reach[:-1], reach[1:]) + 2 * size * (size + 1) * step
    bounds: Doubles = np.add.accumulate(roundings.astype(np.float64))
    bounds *= 1.01 * _UNIT_ROUNDOFF
    return bounds


def _largest(array: Floats) -> float:
    """Largest magnitude of the finite values."""
    sizes = np.abs(array)
    largest = float(np.maximum.reduce(sizes, None))
    return largest if largest < INF else float(sizes[sizes < INF].max(initial=0.0))


def _path_score(
    tags_t: npt.NDArray[np.intp],
    emissions_ty: Floats,
    start_y: Floats,
    transitions_yy: Floats,
    end_y: Floats,
) -> np.float32:
    """Score of a path, added from left to right as the step-by-step decoder adds."""
    length = len(tags_t)
    terms = np.empty(2 * length + 1, np.float32)
    terms[0] = start_y[tags_t[0]]
    terms[1::2] = emissions_ty[np.arange(length), tags_t]
    terms[2:-1:2] = transitions_yy[tags_t[:-1], tags_t[1:]]
    terms[-1] = end_y[tags_t[-1]]
    score: np.float32 = np.add.accumulate(terms)[-1]
    return score
