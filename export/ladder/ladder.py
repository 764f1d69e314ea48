"""Low-precision variants of a bundle that is being written: made, measured, admitted.

A variant enters the manifest with what it changed on posts that were not used to make it, and with
the radii within which its answers can be certified. `precision="auto"` takes bf16 where they can.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from amlr.errors import BackendUnavailableError
from amlr.export.ladder.int8 import record_feeds, write_int8
from amlr.export.ladder.measure import Measurements
from amlr.export.posts import CalibrationPosts
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle
from amlr.export.steps import Step
from amlr.runtime.manifest import Variant

CALIBRATION_POSTS = 96
# Share of the regions' spread by which bfloat16 may move them.
LARGEST_PICTURE_ERROR = 0.03
_INVENTED = 8
# A post passes through three parts; padded and packed forms of one belong together.
PARTS = {
    "text": ("text", "text_packed"),
    "image": ("image",),
    "fusion": ("fusion", "fusion_packed", "fusion_closed"),
}
# Of one precision: the precision, and the provider where it is for one alone.
VARIANTS = {
    "bf16": ("bf16", "openvino"),
    "int8-openvino": ("int8", "openvino"),
    "int8": ("int8", None),
}
log = logging.getLogger(__name__)


def steps_of_cpu_variants(
    bundle: StagedBundle, precisions: Sequence[str], posts: CalibrationPosts
) -> list[Step]:
    """Steps that add CPU variants to a staged bundle, in the order in which `auto` tries them.

    Args:
        bundle: Changed in place; complete in float32 when the steps run.
        precisions: Of `CPU_PRECISIONS`.
        posts: Scales are chosen on one half of them, and variants measured on the other.

    Returns:
        The steps, which raise `ExportError` where a graph is not valid, or where a variant fails
        the golden check at any tolerance.
    """
    ladder = _Ladder(bundle, posts)
    every = len(posts.tuning) + len(posts.held_out)
    steps = []
    if "int8" in precisions:
        steps.append(Step(label="calibrating int8", run=ladder.write_int8, posts=None))
    # A post is answered twice, its picture new and known.
    exact = Step(label=f"measuring float32 on {every} posts", run=ladder.exact, posts=2 * every)
    steps.append(exact)
    # The same with everything low, and with the picture alone low.
    has_pictures = any(item.post.image for item in (*posts.tuning, *posts.held_out))
    measured = (4 if has_pictures else 2) * every
    for name, (precision, _) in VARIANTS.items():
        if precision in precisions:
            run = partial(ladder.measure, name)
            label = f"measuring {name} on {every} posts"
            steps.append(Step(label=label, run=run, posts=measured))
    label = "measuring float32 without pictures"
    return [*steps, Step(label=label, run=ladder.save, posts=every)]


class _Ladder:
    def __init__(self, staged: StagedBundle, posts: CalibrationPosts) -> None:
        self._staged, self._posts = staged, posts
        self._int8: dict[str, str] = {}
        self._measured: dict[str, Variant] = {}

    @cached_property
    def _measurements(self) -> Measurements:
        # The bundle is opened when it is complete in float32.
        return Measurements(self._staged.open(), self._posts)

    @property
    def _fp32(self) -> Variant:
        return self._staged.manifest.variants["fp32"]

    def write_int8(self) -> None:
        """Quantize the graphs that CPUs run."""
        posts = [item.post for item in self._posts.tuning[:CALIBRATION_POSTS]]
        log.info(f"  scales from {len(posts)} posts of {self._posts.source}")
        if all(post.image is None for post in posts):
            # Without one picture the image graph would have no range of values at all.
            log.info("  they have no picture: invented ones are used; give --images for your own")
            posts += sample_posts(_INVENTED, images=_INVENTED)
        feeds = record_feeds(self._measurements.bundle, posts)
        folder = self._staged.folder
        sources = {
            name: folder / self._fp32.graphs[name] for name in feeds if name in self._fp32.graphs
        }
        files = write_int8(sources, feeds, folder / "onnx" / "int8")
        self._int8 = {n: path.relative_to(folder).as_posix() for n, path in files.items()}

    def exact(self) -> None:
        """Answer all posts in float32, with which the variants are compared."""
        for posts in (self._posts.tuning, self._posts.held_out):
            self._measurements.exact(posts)

    def measure(self, name: str) -> None:
        """Measure one of `VARIANTS`; log it where its provider is not installed."""
        precision, provider = VARIANTS[name]
        levels = dict.fromkeys(PARTS, precision)
        if precision == "bf16":
            levels["image"] = self._picture_level()
        variant = self._variant(levels, precision, provider)
        try:
            self._measured[name] = self._measurements.measured(name, variant)
        except BackendUnavailableError as error:
            log.info(f"  {name} left out: {error}")

    def save(self) -> None:
        """Write the variants into the manifest, and what float32 does without pictures."""
        # Manifest order is the order in which `auto` tries: the fastest first.
        ordered = dict(
            sorted(self._measured.items(), key=lambda item: item[1].parity["ms_per_post"])
        )
        margin = self._measurements.picture_margin()
        fp32 = replace(self._fp32, parity={**self._fp32.parity, "when_needed": margin})
        self._staged.save(variants={**ordered, **self._staged.manifest.variants, "fp32": fp32})

    def _variant(self, levels: Mapping[str, str], precision: str, provider: str | None) -> Variant:
        """The variant that runs each of `PARTS` at its level."""
        graphs, compute = dict(self._fp32.graphs), {}
        for part, names in PARTS.items():
            for name in filter(graphs.__contains__, names):
                if levels[part] == "int8":
                    graphs[name] = self._int8.get(name, graphs[name])
                # What int8 leaves in float is worth bfloat16 as well.
                is_float = levels[part] == "fp32" or (levels[part] == "int8" and part == "image")
                if provider == "openvino" and not is_float:
                    compute[name] = "bf16"
        return Variant(precision=precision, provider=provider, graphs=graphs, compute=compute)

    def _picture_level(self) -> str:
        """`bf16` where the picture encoder bears it, which small convolutional ones do not."""
        golden = self._measurements.bundle.golden
        pixels = [post.pixels_chw for post in golden if post.pixels_chw is not None]
        if not pixels:
            return "fp32"
        batch = np.stack(pixels[:4])
        regions = []
        for provider, compute in ((None, {}), ("openvino", {"image": "bf16"})):
            variant = replace(self._fp32, provider=provider, compute=compute)
            try:
                with self._measurements.engine(variant) as engine:
                    regions.append(np.stack(engine.pipeline.provider.encode_images(batch)))
            except BackendUnavailableError:
                return "fp32"
        moved = np.sqrt(np.square(regions[1] - regions[0]).mean())
        return "bf16" if moved <= LARGEST_PICTURE_ERROR * regions[0].std() else "fp32"
