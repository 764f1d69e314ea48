"""CUDA decoders on host arrays: what `backend="cuda"` calls.

Shape letters: B batch or posts, T steps, Y tags, U units, C classes.

Each call copies its arrays to the device and back, so it pays only for large batches; an engine
keeps its numbers on the device and launches `amlr.kernels.launch` itself. Results equal the NumPy
decoders'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.cuda_work import DeviceWork, SegmentalOutputs
from amlr.kernels.device import open_device
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import LinearKernels
from amlr.kernels.launch_segmental import SegmentalKernels, UnitTable
from amlr.kernels.units import Units
from amlr.kernels.validation import (
    INF,
    Chain,
    Floats,
    check_chain,
    explain_bad_scores,
    raise_not_finite,
)


@lru_cache(maxsize=1)
def default_decoders() -> "HostDecoders":
    """Decoders on device 0 of the preferred binding, compiled at first use.

    Raises:
        BackendUnavailableError: No device, no binding or no compiler.
    """
    return HostDecoders(KernelLibrary(open_device()))


class HostDecoders:
    """Decoders that take and return host arrays; threads may share one, each call has a stream."""

    def __init__(self, library: KernelLibrary, *, unit_tags: int = 1) -> None:
        """Prepare decoders.

        Args:
            library: Where the kernels come from.
            unit_tags: Y of the segmental image; any serves, as only joint scores read emissions,
                so this names the one that a bundle holds.
        """
        self._library = library
        self._unit_tags = unit_tags

    def viterbi_decode(
        self,
        emissions_bty: npt.ArrayLike,
        lengths_b: npt.ArrayLike,
        start_y: npt.ArrayLike,
        transitions_yy: npt.ArrayLike,
        end_y: npt.ArrayLike,
        allowed_yy: npt.ArrayLike | None = None,
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """As `amlr.kernels.viterbi_decode`; float16 emissions are read as they are."""
        chain, emissions = _checked(
            emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy
        )
        batch, steps, tags = emissions.shape
        if not batch or not steps:
            return np.full((batch, steps), -1, np.int32), np.zeros(batch, np.float32)
        kernels = LinearKernels(self._library, tags=tags, half=emissions.dtype == np.float16)
        with self._work() as work:
            tags_bt = np.empty((batch, steps), np.int32)
            scores_b = np.empty(batch, np.float32)
            tags_at, scores_at = work.room(tags_bt), work.room(scores_b)
            kernels.decode(
                work.stream, work.chains(chain, emissions), tags=tags_at, scores=scores_at
            )
            work.fetch((tags_bt, tags_at), (scores_b, scores_at))
        if not float(scores_b.max()) < INF:
            explain_bad_scores(chain)
        return tags_bt, scores_b

    def path_confidence(
        self,
        emissions_bty: npt.ArrayLike,
        lengths_b: npt.ArrayLike,
        tags_bt: npt.ArrayLike,
        start_y: npt.ArrayLike,
        transitions_yy: npt.ArrayLike,
        end_y: npt.ArrayLike,
        allowed_yy: npt.ArrayLike | None = None,
        *,
        temperature: float = 1.0,
    ) -> "PathConfidence":
        """How sure each tag of a path is.

        Args:
            emissions_bty: Tag scores (B, T, Y), float32 or float16.
            lengths_b: Valid steps (B,).
            tags_bt: The path (B, T), as `viterbi_decode` returned it.
            start_y: Score of starting with a tag (Y,).
            transitions_yy: Score of tag i followed by tag j (Y, Y).
            end_y: Score of ending with a tag (Y,).
            allowed_yy: Moves that may be used (Y, Y); None allows all.
            temperature: Scores are divided by it.

        Raises:
            ShapeError: As `viterbi_decode`, or the path or temperature does not fit.
        """
        chain, emissions = _checked(
            emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy
        )
        batch, steps, tags = emissions.shape
        path = np.ascontiguousarray(tags_bt, np.int32)
        valid = np.arange(steps) < chain.lengths_b[:, None]
        if path.shape != (batch, steps) or np.any(valid & ((path < 0) | (path >= tags))):
            raise ShapeError(
                f"tags_bt must have shape {(batch, steps)} and hold 0..{tags - 1} at valid steps, "
                f"got {path.shape}; pass what viterbi_decode returned for the same batch"
            )
        if not 0 < temperature < INF:
            raise ShapeError(f"temperature must be positive and finite, got {temperature}")
        found = PathConfidence.zeros(batch, steps)
        if not batch or not steps:
            return found
        kernels = LinearKernels(self._library, tags=tags, half=emissions.dtype == np.float16)
        with self._work() as work:
            outputs = {name: work.room(array) for name, array in found._asdict().items()}
            kernels.confidence(
                work.stream,
                work.chains(chain, emissions),
                tags=work.put(path),
                forward=outputs["forward_bt"],
                link=outputs["link_bt"],
                backward=outputs["backward_bt"],
                confidence=outputs["confidence_bt"],
                log_total=outputs["log_total_b"],
                temperature=temperature,
            )
            work.fetch(*zip(found, outputs.values(), strict=True))
        if np.isnan(found.log_total_b).any():
            explain_bad_scores(chain)
        return found

    def segmental_decode(
        self, units: Units, lengths_b: npt.ArrayLike
    ) -> tuple[list[npt.NDArray[np.int32]], Floats]:
        """As `amlr.kernels.segmental_decode`."""
        lengths = units.check_lengths(lengths_b)
        kernels = SegmentalKernels(self._library, tags=self._unit_tags)
        with self._work() as work:
            _, _, outputs = _decoded(work, kernels, units, lengths)
            outputs.fetch()
        if outputs.scores_b.size and not float(outputs.scores_b.max()) < INF:
            raise_not_finite("the sum of scores_uc", outputs.scores_b)
        return outputs.entities(units), outputs.scores_b

    def certify(
        self, units: Units, lengths_b: npt.ArrayLike, radius: npt.ArrayLike
    ) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.bool_]]:
        """Decode, and decode the worst case within independent radii of g.

        Args:
            units: Scored units.
            lengths_b: Words of each post (B,).
            radius: Largest error of g, one for all or (U, C).

        Returns:
            Entities as `segmental_decode` returns them; certified (B,): no errors within the radii
            change the answer.

        Raises:
            ShapeError: As `segmental_decode`, or a radius is negative or has the wrong shape.
        """
        lengths = units.check_lengths(lengths_b)
        radii = np.asarray(radius, np.float64)
        if radii.shape not in ((), units.scores_uc.shape) or not np.all(radii >= 0):
            raise ShapeError(
                f"radius must be one number >= 0 or have shape {units.scores_uc.shape}, "
                f"got {radii.shape}"
            )
        kernels = SegmentalKernels(self._library, tags=self._unit_tags)
        certified = np.zeros(len(lengths), np.int32)
        with self._work() as work:
            table, scores_at, outputs = _decoded(work, kernels, units, lengths)
            worst = work.room(np.empty(units.scores_uc.shape, np.float64))
            certified_at = work.room(certified)
            stream, winner = work.stream, outputs.winner
            kernels.box_scores(
                stream,
                table,
                winner,
                scores=scores_at,
                worst=worst,
                radius=float(radii) if radii.ndim == 0 else 0.0,
                radii=work.put(radii) if radii.ndim else 0,
            )
            kernels.certify(stream, table, winner, worst=worst, certified=certified_at)
            outputs.fetch((certified, certified_at))
        return outputs.entities(units), certified.astype(np.bool_)

    def entity_confidence(
        self, units: Units, lengths_b: npt.ArrayLike, *, temperature: float = 1.0
    ) -> tuple[list[npt.NDArray[np.int32]], list[Floats]]:
        """Decode, and tell how sure each entity is.

        Args:
            units: Scored units.
            lengths_b: Words of each post (B,).
            temperature: Scores are divided by it.

        Returns:
            Entities as `segmental_decode` returns them; their marginal probabilities, per post
            (E,), as `amlr.kernels.entity_marginals` gives them for the chosen units.

        Raises:
            ShapeError: As `segmental_decode`, or the temperature is not positive and finite.
        """
        lengths = units.check_lengths(lengths_b)
        if not 0 < temperature < INF:
            raise ShapeError(f"temperature must be positive and finite, got {temperature}")
        kernels = SegmentalKernels(self._library, tags=self._unit_tags)
        sure_u = np.zeros(len(units.scores_uc), np.float32)
        with self._work() as work:
            table, scores_at, outputs = _decoded(work, kernels, units, lengths)
            sure_at = work.put(sure_u)  # the kernel writes chosen units only
            kernels.confidence(
                work.stream,
                table,
                outputs.winner,
                scores=scores_at,
                confidence=sure_at,
                temperature=temperature,
            )
            outputs.fetch((sure_u, sure_at))
        if outputs.scores_b.size and not float(outputs.scores_b.max()) < INF:
            raise_not_finite("the sum of scores_uc", outputs.scores_b)
        firsts = units.post_offsets[:-1]
        confidences = [sure_u[a : a + n] for a, n in zip(firsts, outputs.counts_b, strict=True)]
        return outputs.entities(units), confidences

    @contextmanager
    def _work(self) -> Iterator[DeviceWork]:
        device = self._library.device
        with device.current():
            work = DeviceWork(device)
            try:
                yield work
            finally:
                work.close()


class PathConfidence(NamedTuple):
    """How sure a path is.

    Attributes:
        confidence_bt: Probability of the path's tag at each step, 0 past the end.
        forward_bt: With the next two, logs: the probability of the path's tags of steps s..e is
            exp(forward[s] + link[s+1] + ... + link[e] + backward[e]).
        link_bt: See `forward_bt`.
        backward_bt: See `forward_bt`.
        log_total_b: Log of the partition sum.
    """

    confidence_bt: Floats
    forward_bt: Floats
    link_bt: Floats
    backward_bt: Floats
    log_total_b: Floats

    @classmethod
    def zeros(cls, batch: int, steps: int) -> "PathConfidence":
        """Room for a batch."""
        table = np.zeros((4, batch, steps), np.float32)
        return cls(table[0], table[1], table[2], table[3], np.zeros(batch, np.float32))

    def span(self, sequence: int, first: int, last: int) -> float:
        """Probability that all tags of the path from step first to last (inclusive) are right."""
        links = self.link_bt[sequence, first + 1 : last + 1].sum()
        ends = self.forward_bt[sequence, first] + self.backward_bt[sequence, last]
        return float(np.exp(ends + links))


def _decoded(
    work: DeviceWork, kernels: SegmentalKernels, units: Units, lengths: npt.NDArray[np.intp]
) -> tuple[UnitTable, int, SegmentalOutputs]:
    """Upload units and enqueue their decoding; the table, the scores' address, the outputs."""
    table, scores_at = work.table(units, lengths), work.put(units.scores_uc)
    outputs = SegmentalOutputs(work, len(lengths), len(units.scores_uc))
    kernels.decode(work.stream, table, outputs.winner, scores=scores_at)
    return table, scores_at, outputs


def _checked(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None,
) -> tuple[Chain, npt.NDArray[Any]]:
    """A checked chain, and the emissions in the dtype a kernel reads."""
    chain = check_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    # The kernels look for NaN in emissions only; these are small and seldom change.
    for part in (chain.start_y, chain.transitions_yy, chain.end_y):
        if not np.all(part < INF):
            explain_bad_scores(chain)
    given = np.asarray(emissions_bty)
    return chain, given if given.dtype == np.float16 else chain.emissions_bty
