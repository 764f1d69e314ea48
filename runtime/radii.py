"""How far a low-precision variant's scores are from float32's, and for which posts that holds.

The export measures it on real posts (`amlr-export --calib`). It holds for posts like them: of one
window, no longer than they were, and written in their scripts. Of other posts nothing is certified.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from amlr.errors import BundleError
from amlr.runtime.text import EncodedText

# Posts without a picture; posts with one; those with float32 on the picture of the low tier.
TEXT, PICTURE, PICTURE_ONLY = KINDS = ("text", "picture", "picture-only")
# Code points that count as one script: 0 is ASCII and Latin-1.
_BLOCK_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Radii:
    """Largest errors to expect of a variant's scores, for posts of one kind.

    Attributes:
        units: Radius of every z_class - z_none.
        tokens: Radius of every emission.
        posts: Calibration posts of this kind.
        steps: Subword steps of the longest of them.
        blocks: Blocks of 256 code points that their letters came from.
    """

    units: float
    tokens: float
    posts: int
    steps: int
    blocks: frozenset[int]

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
                steps=int(values["steps"]),
                blocks=frozenset(int(block) for block in values["blocks"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the variant has no measured radii ({error}); export it again with --calib"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for the manifest."""
        return {**asdict(self), "blocks": sorted(self.blocks)}

    def covers(self, encoded: EncodedText) -> bool:
        """Whether a post's text is like those of the calibration."""
        return (
            len(encoded.windows) == 1
            and len(encoded.windows[0].input_ids_t) <= self.steps
            and (encoded.text.isascii() or letter_blocks(encoded.text) <= self.blocks)
        )


def letter_blocks(text: str) -> set[int]:
    """Blocks of 256 code points that the letters of a text come from.

    Example:
        >>> sorted(letter_blocks("Zürich, Москва 2024 ☃"))
        [0, 4]
    """
    return {ord(character) >> _BLOCK_BITS for character in set(text) if character.isalpha()}


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
    # Records of older exports do not say which posts their radii hold for.
    known = {k: v for k, v in radii.items() if k in KINDS and isinstance(v, dict) and "steps" in v}
    return {kind: Radii.from_dict(known[kind]) for kind in KINDS if kind in known}
