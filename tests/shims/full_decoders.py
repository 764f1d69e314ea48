"""The CUDA decoders on host arrays with confidences and certificates, as the tests compare them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels import Units
from amlr.kernels.arrays import Floats
from amlr.kernels.cuda import HostDecoders, checked_chain, start_decoding
from amlr.kernels.launch_linear import LinearKernels
from amlr.kernels.launch_segmental import SegmentalKernels
from amlr.kernels.validation import check_errors, check_path, check_temperature, explain_bad_scores


class FullDecoders(HostDecoders):
    """`HostDecoders` for every kernel, not only for those of `backend="cuda"`."""

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
            emissions_bty: Tag scores (B, T, Y).
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
        chain = checked_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
        batch, steps, tags = chain.emissions_bty.shape
        path = check_path("tags_bt", tags_bt, chain).astype(np.int32)
        check_temperature(temperature)
        found = PathConfidence.zeros(batch, steps)
        if not batch or not steps:
            return found
        kernels = LinearKernels(self.library, tags=tags)
        with self.work() as work:
            outputs = {name: work.room(array) for name, array in found._asdict().items()}
            kernels.confidence(
                work.stream,
                work.chains(chain),
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
        check_errors(radius=radii)
        if radii.shape not in ((), units.scores_uc.shape):
            raise ShapeError(f"radius must have shape {units.scores_uc.shape}, got {radii.shape}")
        kernels = SegmentalKernels(self.library, tags=self.unit_tags)
        certified = np.zeros(len(lengths), np.int32)
        with self.work() as work:
            table, _, outputs = start_decoding(work, kernels, units, lengths)
            outputs.fetch()
            # Engines build the corner on the device, from raw scores; what decodes it is the same.
            corner = units.scores_uc + np.broadcast_to(radii, units.scores_uc.shape)
            for first, count in zip(units.post_offsets[:-1], outputs.counts_b, strict=True):
                unit, label = outputs.chosen_u2[first : first + count].T
                corner[unit, label] -= 2 * np.broadcast_to(radii, corner.shape)[unit, label]
            certified_at = work.room(certified)
            kernels.certify(
                work.stream,
                table,
                outputs.winner,
                worst=work.put(corner),
                certified=certified_at,
            )
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
        check_temperature(temperature)
        kernels = SegmentalKernels(self.library, tags=self.unit_tags)
        sure_u = np.zeros(len(units.scores_uc), np.float32)
        with self.work() as work:
            table, scores_at, outputs = start_decoding(work, kernels, units, lengths)
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
        firsts = units.post_offsets[:-1]
        confidences = [sure_u[a : a + n] for a, n in zip(firsts, outputs.counts_b, strict=True)]
        return outputs.entities(units), confidences


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
