"""Which answers cannot have changed, whatever a variant's errors within its measured radii."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amlr.errors import BundleError
from amlr.kernels import box_redecode
from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.decode import build_units
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.windows import PostScores

# Posts without a picture; posts with one; those with float32 on the picture of the low tier.
TEXT, PICTURE, PICTURE_ONLY = KINDS = ("text", "picture", "picture-only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Radii:
    """How far a variant's scores were from float32 on calibration posts of one kind.

    Attributes:
        units: Radius of every z_class - z_none.
        tokens: Radius of every emission.
        posts: Posts behind these numbers, which are measured on them and hold for no others.
    """

    units: float
    tokens: float
    posts: int

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read them from a variant's record of parity.

        Raises:
            BundleError: They are missing or no numbers.
        """
        try:
            return cls(
                units=float(values["units"]),
                tokens=float(values["tokens"]),
                posts=int(values["posts"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the variant has no measured radii ({error}); export it again with --precision"
            ) from error

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers for the manifest."""
        return {"units": self.units, "tokens": self.tokens, "posts": self.posts}


def certified(
    posts: Sequence[PostScores],
    radii: Radii,
    settings: DecoderSettings,
    weights: DecoderWeights,
    *,
    labels: Sequence[str],
    tags: Sequence[str],
) -> npt.NDArray[np.bool_]:
    """Whether each post's answer survives every error within the radii.

    Args:
        posts: Raw scores of posts with at least one word.
        radii: Of the variant that made them.
        settings: Which decoder, with its bias and weight.
        weights: Transition scores of the linear chain.
        labels: Entity classes in the order of the logits.
        tags: Tags in the order of the emissions.
    """
    if not posts:
        return np.zeros(0, np.bool_)
    if settings.kind == "linear-chain":
        return _chain(posts, radii, weights, len(tags))
    units, lengths = build_units(posts, settings, labels=labels, tags=tags)
    weight = settings.weight if settings.kind == "joint" else 0.0
    radius = np.full((len(units.start_u), 1), radii.units)
    if units.has_logits_u is not None:
        # Runs without a unit have no logit that could be wrong.
        radius[~units.has_logits_u] = 0.0
    return box_redecode(
        units, lengths, radius=radius, token_radius=radii.tokens if weight else 0.0, weight=weight
    )


def _chain(
    posts: Sequence[PostScores], radii: Radii, weights: DecoderWeights, tags: int
) -> npt.NDArray[np.bool_]:
    lengths = np.array([len(post.encoded.word_spans_n2) for post in posts])
    emissions = np.zeros((len(posts), int(lengths.max()), tags), np.float32)
    for row, post in enumerate(posts):
        emissions[row, : lengths[row]] = post.word_emissions_ny
    return box_redecode(
        emissions,
        lengths,
        radius=radii.tokens,
        start_y=weights.start_y,
        transitions_yy=weights.transitions_yy,
        end_y=weights.end_y,
        allowed_yy=weights.allowed_yy,
    )


def certified_by_kind(
    posts: Sequence[PostScores],
    kinds: Sequence[str],
    radii: Mapping[str, Radii],
    settings: DecoderSettings,
    weights: DecoderWeights,
    *,
    labels: Sequence[str],
    tags: Sequence[str],
) -> npt.NDArray[np.bool_]:
    """As `certified`, each post by the radii of its kind; without any it is not certified.

    Args:
        posts: Raw scores of posts with at least one word.
        kinds: Kind of each, of `KINDS`.
        radii: By kind.
        settings: As in `certified`.
        weights: As in `certified`.
        labels: As in `certified`.
        tags: As in `certified`.
    """
    cleared = np.zeros(len(posts), np.bool_)
    for kind, radius in radii.items():
        rows = [row for row, of_post in enumerate(kinds) if of_post == kind]
        cleared[rows] = certified(
            [posts[row] for row in rows], radius, settings, weights, labels=labels, tags=tags
        )
    return cleared


def calibrated_radii(parity: Mapping[str, Any]) -> dict[str, Radii]:
    """Radii by kind of post in a variant's record; only those of real posts may certify.

    Returns:
        Empty where the posts were invented, or where the record does not say what they were.

    Raises:
        BundleError: They are no numbers.
    """
    calibration, radii = parity.get("calibration"), parity.get("radii")
    if not isinstance(calibration, dict) or calibration.get("given") is not True:
        return {}
    if not isinstance(radii, dict):
        return {}
    return {kind: Radii.from_dict(radii[kind]) for kind in KINDS if kind in radii}
