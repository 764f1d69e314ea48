"""Low-precision variants of a bundle that is being written: made, measured, admitted.

A variant enters the manifest with what it changed on posts that were not used to make it, and with
the radii within which its answers can be certified. `precision="auto"` takes bf16 where they can.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from amlr.errors import BackendUnavailableError
from amlr.export.ladder.int8 import record_feeds, write_int8
from amlr.export.ladder.measure import Measurements
from amlr.export.posts import CalibrationPosts
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle
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
log = logging.getLogger(__name__)


def add_cpu_variants(
    bundle: StagedBundle, precisions: Sequence[str], posts: CalibrationPosts
) -> None:
    """Add CPU variants to a staged bundle, in the order in which `auto` tries them.

    Args:
        bundle: Complete in float32; changed in place.
        precisions: Of `CPU_PRECISIONS`.
        posts: Scales are chosen on one half of them, and variants measured on the other.

    Raises:
        ExportError: A graph is not valid, or a variant fails the golden check at any tolerance.
    """
    ladder = _Ladder(bundle, posts)
    if "int8" in precisions:
        ladder.write_int8()
    variants = ladder.variants(precisions)
    # Manifest order is the order in which `auto` tries: the fastest first.
    ordered = dict(sorted(variants.items(), key=lambda item: item[1].parity["ms_per_post"]))
    fp32 = bundle.manifest.variants["fp32"]
    margin = ladder.measurements.picture_margin()
    fp32 = replace(fp32, parity={**fp32.parity, "when_needed": margin})
    bundle.save(variants={**ordered, **bundle.manifest.variants, "fp32": fp32})


class _Ladder:
    def __init__(self, staged: StagedBundle, posts: CalibrationPosts) -> None:
        self._folder, self._bundle, self._posts = staged.folder, staged.open(), posts
        self._fp32 = staged.manifest.variants["fp32"]
        self._int8: dict[str, str] = {}
        self.measurements = Measurements(self._bundle, posts)

    def write_int8(self) -> None:
        """Quantize the graphs that CPUs run."""
        posts = [item.post for item in self._posts.tuning[:CALIBRATION_POSTS]]
        log.info(f"calibrating int8 on {len(posts)} posts of {self._posts.source}")
        if all(post.image is None for post in posts):
            # Without one picture the image graph would have no range of values at all.
            log.info("  they have no picture: invented ones are used; give --images for your own")
            posts += sample_posts(_INVENTED, images=_INVENTED)
        feeds = record_feeds(self._bundle, posts)
        sources = {
            name: self._folder / self._fp32.graphs[name]
            for name in feeds
            if name in self._fp32.graphs
        }
        files = write_int8(sources, feeds, self._folder / "onnx" / "int8")
        self._int8 = {n: path.relative_to(self._folder).as_posix() for n, path in files.items()}

    def variants(self, precisions: Sequence[str]) -> dict[str, Variant]:
        """Measured variants by name; logs those that are left out for want of their provider."""
        wanted: dict[str, Variant] = {}
        if "bf16" in precisions:
            levels = {"text": "bf16", "image": self._picture_level(), "fusion": "bf16"}
            wanted["bf16"] = self._variant(levels, "bf16", "openvino")
        if "int8" in precisions:
            low = dict.fromkeys(PARTS, "int8")
            wanted["int8-openvino"] = self._variant(low, "int8", "openvino")
            wanted["int8"] = self._variant(low, "int8", None)
        measured = {}
        for name, variant in wanted.items():
            try:
                measured[name] = self.measurements.measured(name, variant)
            except BackendUnavailableError as error:
                log.info(f"  {name} left out: {error}")
        return measured

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
        pixels = [post.pixels_chw for post in self._bundle.golden if post.pixels_chw is not None]
        if not pixels:
            return "fp32"
        batch = np.stack(pixels[:4])
        regions = []
        for provider, compute in ((None, {}), ("openvino", {"image": "bf16"})):
            variant = replace(self._fp32, provider=provider, compute=compute)
            try:
                with self.measurements.engine(variant) as engine:
                    regions.append(np.stack(engine.pipeline.provider.encode_images(batch)))
            except BackendUnavailableError:
                return "fp32"
        moved = np.sqrt(np.square(regions[1] - regions[0]).mean())
        return "bf16" if moved <= LARGEST_PICTURE_ERROR * regions[0].std() else "fp32"
