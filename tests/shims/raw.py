"""Launches on device pointers that the host functions would not make: gathered rows, bad units."""

from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.cuda import DeviceWork
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import Chains, LinearKernels
from amlr.kernels.launch_segmental import SegmentalKernels, UnitTable, Winner
from shims.cases import ChainCase


def decode_gathered(
    library: KernelLibrary, case: ChainCase, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Decode a case whose steps lie in any order among other rows, found through an index."""
    batch, steps, tags = case.emissions_bty.shape
    rng = np.random.default_rng(seed)
    rows = rng.permutation(batch * steps + 7)[: batch * steps].reshape(batch, steps)
    emissions = np.full((batch * steps + 7, tags), np.nan, np.float32)
    emissions[rows] = case.emissions_bty
    valid = np.arange(steps) < case.lengths_b[:, None]
    # Row numbers past the end must not be followed.
    rows_bt = np.where(valid, rows, 2**30).astype(np.int32)
    found_tags, scores = np.zeros((batch, steps), np.int32), np.zeros(batch, np.float32)
    kernels = LinearKernels(library, tags=tags)
    moves = case.transitions_yy
    if case.allowed_yy is not None:
        moves = np.where(case.allowed_yy, moves, np.float32(-np.inf))
    with library.device.current():
        work = DeviceWork(library.device)
        tags_at, scores_at = work.room(found_tags), work.room(scores)
        chains = Chains(
            emissions=work.put(emissions),
            lengths=work.put(case.lengths_b.astype(np.int32)),
            start=work.put(case.start_y.astype(np.float32)),
            transitions=work.put(moves.astype(np.float32)),
            end=work.put(case.end_y.astype(np.float32)),
            batch=batch,
            max_steps=steps,
            rows=work.put(rows_bt),
        )
        kernels.decode(work.stream, chains, tags=tags_at, scores=scores_at)
        work.fetch((found_tags, tags_at), (scores, scores_at))
        work.close()
    return found_tags, scores


def decode_units(
    library: KernelLibrary,
    post_offsets: list[int],
    spans: list[tuple[int, int]],
    scores_uc: npt.NDArray[np.float32],
    lengths: list[int],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Decode units that nobody has checked.

    Returns:
        Counts (B,), choice (U,) and scores (B,).
    """
    posts, (units, classes) = len(lengths), scores_uc.shape
    kernels = SegmentalKernels(library, tags=13)
    columns = np.array(spans, np.int32).reshape(-1, 2).T
    outputs: dict[str, npt.NDArray[Any]] = {
        "counts": np.zeros(posts, np.int32),
        "chosen": np.zeros((units, 2), np.int32),
        "choice": np.zeros(units, np.int32),
        "scores": np.zeros(posts, np.float32),
    }
    with library.device.current():
        work = DeviceWork(library.device)
        at = {name: work.put(array) for name, array in outputs.items()}  # not all is written
        table = UnitTable(
            post_offsets=work.put(np.array(post_offsets, np.int64)),
            start=work.put(columns[0]),
            end=work.put(columns[1]),
            lengths=work.put(np.array(lengths, np.int32)),
            posts=posts,
            units=units,
            classes=classes,
            max_words=max(lengths),
        )
        kernels.decode(work.stream, table, Winner(**at), scores=work.put(scores_uc))
        work.fetch(*((outputs[name], pointer) for name, pointer in at.items()))
        work.close()
    return outputs["counts"], outputs["choice"], outputs["scores"]
