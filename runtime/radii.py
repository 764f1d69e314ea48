"""How far a low-precision variant's scores are from float32's, as its calibration measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from amlr.errors import BundleError

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
