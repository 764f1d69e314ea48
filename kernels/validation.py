"""Checks shared by every decoder: shapes, dtypes, ranges, and what is not a number.

Shape letters: B batch, T steps, Y tags, U units, C entity classes.

A decoder does not search its inputs for NaN before it starts: NaN and +inf survive every addition
and every maximum, so they show in the path scores. `explain_bad_scores` then finds the culprit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError, ShapeError

AnyFloats = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
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
    lengths_b: npt.NDArray[np.intp]
    start_y: Floats
    transitions_yy: Floats
    end_y: Floats


def check_chain(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None,
) -> Chain:
    """Bring the inputs of a linear chain into one form.

    Raises:
        ShapeError: A shape, dtype or length does not fit the others.
    """
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


def check_lengths(
    lengths_b: npt.ArrayLike, batch: int, longest: int | None = None
) -> npt.NDArray[np.intp]:
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
    if found.ndim != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, found.shape, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ShapeError(f"{name} must have shape ({wanted}), got {found.shape}")
    if found.size and not float(found.max()) < INF:
        raise_not_finite(name, found)
    return found


def raise_not_finite(name: str, array: npt.NDArray[np.floating[Any]]) -> NoReturn:
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


def mask_padding(chain: Chain) -> Chain:
    """The same chain with the steps past each length set to 0, after a full check for NaN."""
    _, steps, _ = chain.emissions_bty.shape
    valid = np.arange(steps) < chain.lengths_b[:, None]
    emissions = np.where(valid[:, :, None], chain.emissions_bty, np.float32(0))
    clean = chain._replace(emissions_bty=emissions)
    parts = (emissions, chain.start_y, chain.transitions_yy, chain.end_y)
    if not all(np.all(part < INF) for part in parts):
        explain_bad_scores(clean)
    return clean
