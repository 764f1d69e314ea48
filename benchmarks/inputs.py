"""What a measured call takes: text windows with their units, and the pixels of their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import Scores
from amlr.runtime.image import ImageLimits, ImageSpec, load_pixels
from amlr.runtime.results import Post
from amlr.runtime.text import TextEncoder, TextWindow
from amlr.runtime.units import UnitTable, aligned_units, scale_major_index

Floats = npt.NDArray[np.float32]
Picture = Literal["cold", "hit", "none", "block", "block-none"]
"""`cold`: pixels go through the image encoder. `hit`: its regions are at hand. `none`: no picture.
`block`: only the cross-modal block and the heads run, on random hidden states and regions;
`block-none`: the same without a picture.
"""
BLOCKS: tuple[Picture, ...] = ("block", "block-none")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelInput:
    """One window of one post, ready for a model.

    Attributes:
        window: Token ids and word positions.
        units: The word-aligned units that decoding needs.
        pixels_chw: Prepared picture (3, H, W) float32, or None.
        regions: What the peer's `encode` gave for the picture earlier, or None.
    """

    window: TextWindow
    units: UnitTable
    pixels_chw: Floats | None = None
    regions: Any = None

    @property
    def steps(self) -> int:
        """Tokens, special ones included."""
        return len(self.window.input_ids_t)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What inputs and outputs of a model look like, as its bundle says.

    Attributes:
        scales: K, the longest unit in tokens.
        pad_id: Token id that fills padding.
        image_size: Side of the picture in pixels.
        shapes: Whether the model reads word-shape ids.
        width: D.
        regions: P of one picture.
    """

    scales: int
    pad_id: int
    image_size: int
    shapes: bool
    width: int
    regions: int


def block_states(item: ModelInput, shape: ModelShape) -> tuple[Floats, Floats]:
    """Hidden states (T, D) and regions (P, D) to feed the block alone; a post has always the same.

    What they are does not change the time; random ones spare every system its encoders.
    """
    rng = np.random.default_rng(item.window.input_ids_t)
    hidden = rng.standard_normal((item.steps, shape.width), np.float32)
    return hidden, rng.standard_normal((shape.regions, shape.width), np.float32)


def build_inputs(
    posts: Sequence[Post], encoder: TextEncoder, scales: int, image: ImageSpec, limits: ImageLimits
) -> list[ModelInput]:
    """Tokenize posts and prepare their pictures; only the first window of a long post is kept.

    One window is one call of the model; keeping one per post makes "per post" mean the same for
    every peer.
    """
    encoded = encoder.encode([(post.text, post.words) for post in posts])
    inputs = []
    for post, text in zip(posts, encoded, strict=True):
        if not text.windows:
            continue
        window = text.windows[0]
        pixels = None if post.image is None else load_pixels(post.image, image, limits)
        units = aligned_units(window.first_n, window.last_n, scales)
        inputs.append(ModelInput(window=window, units=units, pixels_chw=pixels))
    return inputs


def pick(
    logits_buc: Floats, emissions_bty: Floats, inputs: Sequence[ModelInput], rows: Sequence[int]
) -> list[Scores]:
    """Scores of the wanted units and steps out of padded outputs over all units.

    Args:
        logits_buc: Scale-major logits of all units, (B, U, 1+C).
        emissions_bty: (B, T, Y).
        inputs: One input per entry of `rows`.
        rows: Row of each input in the arrays.
    """
    steps = emissions_bty.shape[1]
    scores = []
    for row, item in zip(rows, inputs, strict=True):
        index = scale_major_index(item.units.start_step_u, item.units.scale_u, steps)
        scores.append(
            Scores(
                unit_logits_mc=logits_buc[row, index], emissions_ny=emissions_bty[row, : item.steps]
            )
        )
    return scores
