"""What every measured system follows: its specification, its calls, and the inputs of a call.

Shape letters: B posts, T steps, U units, C classes, Y tags, P regions, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.report.records import is_engine
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.image import load_pixels
from amlr.runtime.manifest import Manifest
from amlr.runtime.results import Post
from amlr.runtime.text import TextWindow
from amlr.runtime.units import UnitTable, aligned_units, scale_major_index

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Picture = Literal["cold", "hit", "none", "block", "block-none"]
"""`cold`: pixels go through the image encoder. `hit`: its regions are at hand. `none`: no picture.
`block`: only the cross-modal block and the heads run, on random hidden states and regions;
`block-none`: the same without a picture.
"""
BLOCKS: tuple[Picture, ...] = ("block", "block-none")
RESEARCH_STEPS = 50
"""Padded length of the published code on Twitter-2015, special tokens included."""
ESCALATION = "escalation"
"""Kind of a tier that needs decoding to know what to compute: it runs end to end only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """Which system a worker process becomes.

    Attributes:
        name: Name in reports, e.g. `research` or `amlr-onnxruntime`.
        kind: Key of the implementation.
        precision: Numeric precision asked for.
        provider: Of the engine.
        variant: Of the bundle, which the engine runs; empty where it chooses by post.
        preload: Shared library that the worker's loader puts first (LD_PRELOAD).
        about: One line for reports.
        packages: Import names it needs.
        exports: Whether it reads the one-graph ONNX exports.
        quick: Whether `--quick` runs it.
        mkl: Whether it needs the MKL preload.
    """

    name: str
    kind: str
    precision: str = "fp32"
    provider: str = ""
    variant: str = ""
    preload: str | None = None
    about: str = "the engine under test"
    packages: tuple[str, ...] = ("torch",)
    exports: bool = False
    quick: bool = True
    mkl: bool = False

    @property
    def label(self) -> str:
        """Unique key of a run: name and precision."""
        return f"{self.name}/{self.precision}"

    @property
    def is_engine(self) -> bool:
        """Whether it is a tier of the engine under test."""
        return is_engine(self.name)


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


class Peer(ABC):
    """A system that scores posts.

    `prepare` may do anything a long-running service does before requests arrive (copy pixels into
    tensors, encode pictures of a `hit`); what it returns is timed, and gives raw outputs that
    `scores` reads afterwards, off the clock.
    """

    @abstractmethod
    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """What this system can keep of pictures between requests: regions, or only the pixels."""

    @abstractmethod
    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Build the timed call for one batch of posts."""

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Raw logits of each post's units and steps, out of outputs over all units.

        Args:
            raw: Pairs of scale-major logits of all units, (B, U, 1+C), and emissions (B, T, Y),
                padded; together as many rows as there are posts.
            inputs: The posts.
        """
        rows = [row for pair in raw for row in zip(*pair, strict=True)]
        scores = []
        for (logits_uc, emissions_ty), item in zip(rows, inputs, strict=True):
            units = item.units
            index = scale_major_index(units.start_step_u, units.scale_u, len(emissions_ty))
            scores.append(
                Scores(unit_logits_mc=logits_uc[index], emissions_ny=emissions_ty[: item.steps])
            )
        return scores


def build_inputs(posts: Sequence[Post], bundle: Bundle) -> list[ModelInput]:
    """Tokenize posts and prepare their pictures; only the first window of a long post is kept.

    One window is one call of the model; keeping one per post makes "per post" mean the same for
    every peer.
    """
    manifest = bundle.manifest
    encoded = bundle.encoder.encode([(post.text, post.words) for post in posts])
    inputs = []
    for post, text in zip(posts, encoded, strict=True):
        if not text.windows:
            continue
        window = text.windows[0]
        pixels = None
        if post.image is not None:
            pixels = load_pixels(post.image, manifest.image, manifest.limits)
        units = aligned_units(window.first_n, window.last_n, manifest.scales)
        inputs.append(ModelInput(window=window, units=units, pixels_chw=pixels))
    return inputs


def batch_of(inputs: Sequence[ModelInput], manifest: Manifest) -> Batch:
    """The posts as a batch of the runtime."""
    return Batch(
        [item.window for item in inputs],
        [item.units for item in inputs],
        scales=manifest.scales,
        pad_id=manifest.token_ids.pad_id,
    )


def padded_text(
    inputs: Sequence[ModelInput], manifest: Manifest, *, steps: int = 0
) -> dict[str, Array]:
    """Ids, mask and word shapes padded to the longest input, or to `steps` where that is more."""
    least = max(steps, manifest.scales)
    batch = batch_of(inputs, manifest)
    return dict(batch.padded_text(min_steps=least, shapes=manifest.shape_embedding))


def stack_pixels(inputs: Sequence[ModelInput]) -> Floats:
    """Pixels of every post, (B, 3, H, W)."""
    return np.stack([item.pixels_chw for item in inputs if item.pixels_chw is not None])


def hit_regions(inputs: Sequence[ModelInput], encode: Callable[[Floats], list[Any]]) -> list[Any]:
    """Regions of every post's picture: those at hand, or encoded now, off the clock."""
    return [
        item.regions
        if item.regions is not None or item.pixels_chw is None
        else encode(item.pixels_chw[None])[0]
        for item in inputs
    ]


def block_states(item: ModelInput, manifest: Manifest) -> tuple[Floats, Floats]:
    """Hidden states (T, D) and regions (P, D) to feed the block alone; a post has always the same.

    What they are does not change the time; random ones spare every system its encoders.
    """
    rng = np.random.default_rng(item.window.input_ids_t)
    hidden = rng.standard_normal((item.steps, manifest.width), np.float32)
    return hidden, rng.standard_normal((manifest.regions, manifest.width), np.float32)


def padded_states(
    inputs: Sequence[ModelInput], manifest: Manifest, *, steps: int = 0
) -> tuple[Floats, Floats]:
    """Hidden states (B, T, D), padded with zeros, and regions (B, P, D) for the block alone."""
    states = [block_states(item, manifest) for item in inputs]
    longest = max(max(len(hidden) for hidden, _ in states), steps, manifest.scales)
    hidden_btd = np.zeros((len(inputs), longest, manifest.width), np.float32)
    for row, (hidden, _) in enumerate(states):
        hidden_btd[row, : len(hidden)] = hidden
    return hidden_btd, np.stack([regions for _, regions in states])


def padded_feed(
    inputs: Sequence[ModelInput],
    manifest: Manifest,
    picture: Picture,
    encode: Callable[[Floats], list[Any]],
) -> dict[str, Array]:
    """Inputs of the plain one-graph model for one padded batch.

    Args:
        inputs: The posts.
        manifest: Of the model's bundle.
        picture: Decides `seen`: pixels (B, 3, H, W), regions (B, P, D), or nothing.
        encode: Gives the regions of a `hit`.
    """
    if picture in BLOCKS:
        hidden, regions = padded_states(inputs, manifest)
        return {"hidden": hidden} | ({"seen": regions} if picture == "block" else {})
    feed = padded_text(inputs, manifest)
    if picture == "cold":
        feed["seen"] = stack_pixels(inputs)
    elif picture == "hit":
        feed["seen"] = np.stack(hit_regions(inputs, encode))
    return feed


def max_error(expected: list[list[Scores]], actual: list[list[Scores]]) -> float:
    """Largest absolute difference of any raw logit between two sets of outputs."""
    worst = 0.0
    for a_batch, b_batch in zip(expected, actual, strict=True):
        for a, b in zip(a_batch, b_batch, strict=True):
            for left, right in (
                (a.unit_logits_mc, b.unit_logits_mc),
                (a.emissions_ny, b.emissions_ny),
            ):
                error = float(np.abs(left - right).max(initial=0.0))
                worst = max(worst, float("inf") if np.isnan(error) else error)
    return worst
