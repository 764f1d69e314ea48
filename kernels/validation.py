"""Checks shared by every decoder: shapes, dtypes, ranges, and what is not a number.

Shape letters: B batch, T steps, Y tags, U units, C entity classes.

A decoder does not search its inputs for NaN before it starts: NaN and +inf survive every addition
and every maximum, so they show in the path scores. `explain_bad_scores` then finds the culprit.
"""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError, ShapeError
from amlr.kernels.arrays import AnyFloats, AnyInts, Floats, Indices

INF = float("inf")
FLOAT32 = np.dtype(np.float32)
INTP = np.dtype(np.intp)


BACKENDS = ("numpy", "cuda")


def check_backend(name: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        InputError: No such backend.
    """
    if name not in BACKENDS:
        raise InputError(f"no decoder backend {name!r}; use {' or '.join(BACKENDS)}")


class Chain(NamedTuple):
    """Checked inputs of a linear chain, ready for a kernel.

    Attributes:
        emissions_bty: Tag scores, float32.
        lengths_b: Valid steps, intp, each in 0..T.
        start_y: Score of starting with a tag, float32.
        transitions_yy: Score of tag i (row) followed by tag j (column), -inf where not allowed.
        end_y: Score of ending with a tag, float32.
    """

    emissions_bty: Floats
    lengths_b: Indices
    start_y: Floats
    transitions_yy: Floats
    end_y: Floats


def check_chain(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    start_y: npt.ArrayLike | None,
    transitions_yy: npt.ArrayLike | None,
    end_y: npt.ArrayLike | None,
    allowed_yy: npt.ArrayLike | None,
) -> Chain:
    """Bring the inputs of a linear chain into one form.

    Raises:
        ShapeError: A shape, dtype or length does not fit the others, or a part is missing.
    """
    if start_y is None or transitions_yy is None or end_y is None:
        raise ShapeError("a linear chain needs start_y, transitions_yy and end_y")
    emissions = _as_float32("emissions_bty", emissions_bty)
    if emissions.ndim != 3:
        raise ShapeError(
            f"emissions_bty must have shape (B, T, Y), got {emissions.shape}; "
            "add a batch axis for a single sequence: emissions[None]"
        )
    batch, steps, tags = emissions.shape
    if not tags:
        raise ShapeError("emissions_bty has no tags (Y = 0); pass at least one tag score per step")
    lengths = check_lengths(lengths_b, batch, steps)
    start = _as_float32("start_y", start_y)
    transitions = _as_float32("transitions_yy", transitions_yy)
    end = _as_float32("end_y", end_y)
    if start.shape != (tags,) or end.shape != (tags,) or transitions.shape != (tags, tags):
        raise ShapeError(
            f"with Y = {tags} tags in emissions_bty, start_y and end_y must have shape ({tags},) "
            f"and transitions_yy ({tags}, {tags}); got {start.shape}, {end.shape} and "
            f"{transitions.shape}; use the parameters of the same token head"
        )
    if allowed_yy is not None:
        allowed = np.asarray(allowed_yy)
        if allowed.shape != (tags, tags) or allowed.dtype.kind not in "bui":
            raise ShapeError(
                f"allowed_yy must be a boolean (or 0/1 integer) array of shape ({tags}, {tags}), "
                f"got {allowed.dtype} {allowed.shape}; True marks a move from row to column"
            )
        transitions = np.where(allowed != 0, transitions, np.float32(-np.inf))
    return Chain(emissions, lengths, start, transitions, end)


def check_lengths(lengths_b: npt.ArrayLike, batch: int, longest: int | None = None) -> Indices:
    """Lengths as intp, each in 0..longest.

    Raises:
        ShapeError: Wrong shape or dtype, or a length out of range.
    """
    lengths = np.asarray(lengths_b)
    if lengths.shape != (batch,) or (lengths.dtype.kind not in "iu" and batch):
        raise ShapeError(
            f"lengths_b must be {batch} integers, one per sequence, "
            f"got {lengths.dtype} of shape {lengths.shape}"
        )
    if lengths.dtype is not INTP:
        lengths = lengths.astype(np.intp)
    if batch > 16:
        low, high = int(lengths.min()), int(lengths.max())
    else:  # below about sixteen values the built-ins beat NumPy's reductions
        values: Sequence[int] = lengths.tolist() or (0,)
        low = high = values[0]
        if batch > 1:
            low, high = min(values), max(values)
    if low < 0 or (longest is not None and high > longest):
        bound = f"0..{longest}" if longest is not None else "0 or more"
        raise ShapeError(
            f"lengths must lie in {bound}, got {low}..{high}; "
            "count the valid steps of each sequence, 0 for an empty one"
        )
    return lengths


def _as_float32(name: str, array: npt.ArrayLike) -> Floats:
    found = np.asarray(array)
    if found.dtype is FLOAT32:
        return found
    if found.dtype.kind not in "fiu":
        raise ShapeError(f"{name} must hold numbers, got dtype {found.dtype}; pass float32 scores")
    return found.astype(np.float32)


def as_scores(name: str, array: npt.ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    """An array as float32 of a given shape (None: any size), free of NaN and +inf.

    Raises:
        ShapeError: Wrong shape or dtype, NaN or +inf.
    """
    found = _as_float32(name, array)
    wanted_shape = tuple(
        [have if want is None else want for want, have in zip(shape, found.shape, strict=False)]
    )
    if found.ndim != len(shape) or wanted_shape != found.shape:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ShapeError(f"{name} must have shape ({wanted}), got {found.shape}")
    if found.size and not np.maximum.reduce(found, None) < INF:
        raise_not_finite(name, found)
    return found


def raise_not_finite(name: str, array: AnyFloats) -> NoReturn:
    """Raise the error for the first NaN or +inf of an array."""
    place = tuple(int(i) for i in np.argwhere(~(array < INF))[0])
    raise ShapeError(
        f"{name} holds {array[place]} at index {place}; scores must be finite or -inf (not "
        "allowed): look for overflow in the model's last layer, or a corrupt input"
    )


def explain_bad_scores(chain: Chain) -> NoReturn:
    """Say which input made a path score NaN or +inf.

    Raises:
        ShapeError: Always.
    """
    _, steps, _ = chain.emissions_bty.shape
    valid = np.arange(steps) < chain.lengths_b[:, None]
    arrays = {
        "emissions_bty": np.where(valid[:, :, None], chain.emissions_bty, np.float32(0)),
        "start_y": chain.start_y,
        "transitions_yy": chain.transitions_yy,
        "end_y": chain.end_y,
    }
    for name, array in arrays.items():
        if not np.all(array < INF):
            raise_not_finite(name, array)
    raise ShapeError(
        "a path score overflowed float32 although every input is finite; "
        "scale the emissions down before decoding"
    )


def check_chain_values(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    start_y: npt.ArrayLike | None,
    transitions_yy: npt.ArrayLike | None,
    end_y: npt.ArrayLike | None,
    allowed_yy: npt.ArrayLike | None,
) -> Chain:
    """As `check_chain`, with every number checked and the steps past each length set to 0.

    Raises:
        ShapeError: As `check_chain`, or a score that is used is NaN or +inf.
    """
    chain = check_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    _, steps, _ = chain.emissions_bty.shape
    valid = np.arange(steps) < chain.lengths_b[:, None]
    emissions = np.where(valid[:, :, None], chain.emissions_bty, np.float32(0))
    clean = chain._replace(emissions_bty=emissions)
    parts = (emissions, chain.start_y, chain.transitions_yy, chain.end_y)
    if not all(np.all(part < INF) for part in parts):
        explain_bad_scores(clean)
    return clean


def check_path(name: str, path_bt: npt.ArrayLike, chain: Chain) -> AnyInts:
    """Tags of a chain's valid steps, as a decoder returned them.

    Raises:
        ShapeError: Another shape, or a valid step without a tag of the chain.
    """
    path = np.asarray(path_bt)
    batch, steps, tags = chain.emissions_bty.shape
    valid = np.arange(steps) < chain.lengths_b[:, None]
    if path.shape != (batch, steps) or np.any(valid & ((path < 0) | (path >= tags))):
        raise ShapeError(
            f"{name} must have shape {(batch, steps)} and hold 0..{tags - 1} at valid steps, "
            f"got {path.shape}; pass what viterbi_decode returned for the same batch"
        )
    return path


def check_unit_table(
    post_offsets: npt.ArrayLike, start_u: npt.ArrayLike, end_u: npt.ArrayLike, units: int
) -> tuple[AnyInts, AnyInts, AnyInts]:
    """Offsets, starts and ends as checked integer arrays.

    Raises:
        ShapeError: Shapes disagree, offsets are not sorted, or a unit is empty.
    """
    start, end = np.asarray(start_u), np.asarray(end_u)
    for name, array in (("start_u", start), ("end_u", end)):
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ShapeError(f"{name} must be 1-D integers, got {array.dtype} {array.shape}")
    if start.shape != (units,) or end.shape != (units,):
        raise ShapeError(
            f"start_u and end_u must have one entry per row of the scores ({units}), "
            f"got {start.shape} and {end.shape}"
        )
    offsets = check_offsets("post_offsets", post_offsets, units)
    if units and (start.min() < 0 or (end < start).any()):
        unit = int(((start < 0) | (end < start)).argmax())
        raise ShapeError(
            f"unit {unit} spans words {start[unit]}..{end[unit]}; "
            "ends are inclusive, so 0 <= start <= end"
        )
    return offsets, start, end


def check_offsets(name: str, offsets: npt.ArrayLike, total: int) -> AnyInts:
    """Where the rows of each post begin and end, rising from 0 to a total.

    Raises:
        ShapeError: No integers, or they do not rise from 0 to the total.
    """
    array = np.asarray(offsets)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ShapeError(f"{name} must be 1-D integers, got {array.dtype} {array.shape}")
    if not array.size or array[0] != 0 or array[-1] != total or (array[1:] < array[:-1]).any():
        raise ShapeError(
            f"{name} must rise from 0 to the number of rows ({total}), got "
            f"{array.tolist() if array.size < 9 else f'{array[0]}..{array[-1]}'}; "
            "build it as the cumulative sum of rows per post, with a leading 0"
        )
    return array


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        ShapeError: It is not.
    """
    if not 0 < temperature < INF:
        raise ShapeError(f"temperature must be positive and finite, got {temperature}")


def check_errors(**errors: npt.ArrayLike) -> None:
    """Refuse radii, errors and weights, by name, that are negative or not finite.

    Raises:
        ShapeError: One is.
    """
    for name, value in errors.items():
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) < INF)):
            raise ShapeError(f"{name} must be finite and not negative, got {value!r}")
