"""Low-precision variants of a bundle that is being written: made, measured, admitted.

A variant enters the manifest with what it changed on posts that were not used to make it, and with
the radii within which its answers can be certified. `precision="auto"` takes bf16 where they can.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from amlr.errors import BackendUnavailableError, ExportError, ParityError
from amlr.export.ladder.int8 import record_feeds, write_int8
from amlr.export.ladder.narrow import write_narrowed
from amlr.export.parity import Answer, ask, compare, decoded_answers
from amlr.export.posts import CalibrationPosts, strict_f1
from amlr.export.radii import Pair, radii_record
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle
from amlr.export.steps import Step, counted
from amlr.kernels.arrays import Bools, Doubles
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.golden import check_golden
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.results import Post

CALIBRATION_POSTS = 96
WARM_UP = 32
# Share of all posts with a picture whose entities may change for want of it.
BUDGET = 0.005
SAFETY = 2.0
# A post without any other answer has an endless margin, which JSON cannot hold.
_LARGEST_MARGIN = 1e6
# Share of the regions' spread by which bfloat16 may move them.
LARGEST_PICTURE_ERROR = 0.03
_INVENTED = 8
# Graphs whose wide products bfloat16 runs in pieces.
NARROWED = ("text", "text_packed", "image")
LOWERED = ("text", "text_packed", "image", "fusion", "fusion_packed", "fusion_closed")
# Of one precision: the precision, and the provider where it is for one alone.
VARIANTS = {
    "bf16": ("bf16", "openvino"),
    "int8-openvino": ("int8", "openvino"),
    "int8": ("int8", None),
}
_CPUS = {"openvino": "openvino", None: "onnxruntime-cpu"}
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
    # A held-out post is answered twice, its picture new and known.
    once = every + len(posts.held_out)
    exact = Step(label=f"measuring float32 on {every} posts", run=lambda: ladder.exact, posts=once)
    steps.append(exact)
    # The same with everything low, and once with the picture alone low.
    has_pictures = any(item.post.image for item in (*posts.tuning, *posts.held_out))
    measured = once + (every if has_pictures else 0)
    for name, (precision, _) in VARIANTS.items():
        if precision in precisions:
            run = partial(ladder.measure, name)
            label = f"measuring {name} on {every} posts"
            steps.append(Step(label=label, run=run, posts=measured))
    label = "measuring float32 without pictures"
    return [*steps, Step(label=label, run=ladder.save, posts=every)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timed:
    """Answers of a CPU variant, and what they cost on one thread.

    Attributes:
        answers: To each post.
        cold_ms: CPU milliseconds a post from text and picture file to raw scores.
        hit_ms: The same from text to entities, with the pictures encoded before.
    """

    answers: list[Answer]
    cold_ms: float
    hit_ms: float


def time_answers(engine: Engine, posts: Sequence[Post]) -> Timed:
    """Run an engine over posts, once without their pictures encoded and once with."""
    # Compiling, and the first visits of shapes, are paid once in a process's life.
    list(engine.pipeline.score(posts[:WARM_UP]))
    engine.pipeline.images.reset()
    start = time.process_time()
    scored = list(counted(engine.pipeline.score(posts)))
    middle = time.process_time()
    list(counted(engine.tag_batch(posts)))
    end = time.process_time()
    per_post = 1e3 / max(1, len(posts))
    return Timed(
        answers=decoded_answers(engine, scored),
        cold_ms=(middle - start) * per_post,
        hit_ms=(end - middle) * per_post,
    )


class _Ladder:
    """Makes and measures variants on one thread, float32 on the same posts beside them."""

    def __init__(self, staged: StagedBundle, posts: CalibrationPosts) -> None:
        self._staged, self._posts = staged, posts
        self._int8: dict[str, str] = {}
        self._measured: dict[str, Variant] = {}

    @cached_property
    def _bundle(self) -> Bundle:
        # Opened when it is complete in float32.
        return self._staged.open()

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
        feeds = record_feeds(self._bundle, posts)
        folder = self._staged.folder
        sources = {
            name: folder / self._fp32.graphs[name] for name in feeds if name in self._fp32.graphs
        }
        files = write_int8(sources, feeds, folder / "onnx" / "int8")
        self._int8 = {n: path.relative_to(folder).as_posix() for n, path in files.items()}

    def measure(self, name: str) -> None:
        """Measure one of `VARIANTS`; log it where its provider is not installed."""
        precision, provider = VARIANTS[name]
        variant = self._variant(precision, provider)
        try:
            if precision == "bf16":
                # Refused here, where the provider is absent, before it writes files.
                self._engine(variant).close()
                variant = self._narrowed(variant)
            self._measured[name] = self._judged(name, variant)
        except BackendUnavailableError as error:
            log.info(f"  {name} left out: {error}")

    def save(self) -> None:
        """Write the variants into the manifest, and what float32 does without pictures."""
        # Manifest order is the order in which `auto` tries: the fastest first.
        ordered = dict(
            sorted(self._measured.items(), key=lambda item: item[1].parity["ms_per_post"])
        )
        margin = self._picture_margin()
        fp32 = replace(self._fp32, parity={**self._fp32.parity, "when_needed": margin})
        # What an older export measured of the same variants is replaced.
        older = self._staged.manifest.variants
        kept = {name: older[name] for name in older if name not in ordered}
        self._staged.save(variants={**ordered, **kept, "fp32": fp32})

    def _variant(self, precision: str, provider: str | None) -> Variant:
        """The variant that runs posts in one precision, for a provider or for all of them."""
        graphs = self._fp32.graphs | (self._int8 if precision == "int8" else {})
        compute: dict[str, str] = {}
        if provider == "openvino":
            # What int8 leaves in float is worth bfloat16 as well, but for pictures.
            low = precision == "bf16" and self._picture_bears_bf16()
            names = (name for name in LOWERED if name in graphs and (low or name != "image"))
            compute = dict.fromkeys(names, "bf16")
        return Variant(precision=precision, provider=provider, graphs=graphs, compute=compute)

    def _narrowed(self, variant: Variant) -> Variant:
        """The variant with graphs of its own where products of the model's width are faster."""
        folder, graphs = self._staged.folder, dict(variant.graphs)
        for name in NARROWED:
            if variant.compute.get(name) == "bf16":
                path = write_narrowed(folder / graphs[name])
                if path is not None:
                    graphs[name] = path.relative_to(folder).as_posix()
        return replace(variant, graphs=graphs)

    def _picture_bears_bf16(self) -> bool:
        """Whether the picture encoder bears bfloat16, which small convolutional ones do not."""
        golden = self._bundle.golden
        pixels = [post.pixels_chw for post in golden if post.pixels_chw is not None]
        if not pixels:
            return False
        batch = np.stack(pixels[:4])
        regions = []
        for provider, compute in ((None, {}), ("openvino", {"image": "bf16"})):
            variant = replace(self._fp32, provider=provider, compute=compute)
            try:
                with self._engine(variant) as engine:
                    regions.append(np.stack(engine.pipeline.provider.encode_images(batch)))
            except BackendUnavailableError:
                return False
        moved = np.sqrt(np.square(regions[1] - regions[0]).mean())
        return bool(moved <= LARGEST_PICTURE_ERROR * regions[0].std())

    def _engine(self, variant: Variant) -> Engine:
        """An engine on one thread.

        Raises:
            BackendUnavailableError: The variant's provider is not installed.
        """
        options = ProviderOptions(threads=1)
        provider = open_provider(_CPUS[variant.provider], self._bundle, variant, options)
        # No variant for the engine: files of a bundle in the making have no hashes yet, and one
        # engine's pictures must not be taken for another's.
        return Engine(self._bundle, provider, image_cache_mb=2000)

    def _ask(self, engine: Engine) -> tuple[list[Answer], Timed]:
        """Answers to the tuning posts, and to the others with their time."""
        tuning, held_out = self._posts.halves
        return ask(engine, tuning), time_answers(engine, held_out)

    @cached_property
    def exact(self) -> tuple[list[Answer], Timed]:
        """Answers of float32, with which the variants are compared."""
        with self._engine(self._fp32) as engine:
            return self._ask(engine)

    def _judged(self, name: str, variant: Variant) -> Variant:
        """The variant with its record and its tolerance at load.

        Raises:
            BackendUnavailableError: The variant's provider is not installed.
            ExportError: The variant fails the golden check at any tolerance.
        """
        with self._engine(variant) as engine:
            tuned, timed = self._ask(engine)
            tolerance = _golden_tolerance(engine, variant.precision)
        exact_tuned, exact = self.exact
        parity = compare(exact.answers, timed.answers)
        log.info(
            f"  {name}: {parity.changed_entities} of {parity.entities} entities changed over "
            f"{parity.posts} posts, {timed.cold_ms:.2f} ms a post, "
            f"{timed.hit_ms:.2f} on a known picture"
        )
        tuning, held_out = self._posts.halves
        pairs = [
            self._pair(variant, tuning, exact_tuned, tuned),
            self._pair(variant, held_out, exact.answers, timed.answers),
        ]
        record: dict[str, Any] = {
            **parity.to_dict(),
            "source": self._posts.source,
            **radii_record(self._bundle, *pairs, given=self._posts.given),
            "ms_per_post": round(timed.cold_ms, 3),
            "hit_ms_per_post": round(timed.hit_ms, 3),
            "fp32_ms_per_post": round(exact.cold_ms, 3),
            "fp32_hit_ms_per_post": round(exact.hit_ms, 3),
        }
        gains = float(parity.errors_p2[:, 0].max(initial=0.0))
        if np.isfinite(gains):
            record["max_abs_error"]["unit_gains"] = gains
        f1s = [strict_f1(self._posts.held_out, side.answers) for side in (exact, timed)]
        if None not in f1s:
            record["f1"] = dict(zip(("fp32", "variant"), f1s, strict=True))
        return replace(variant, parity=record, tolerance=tolerance)

    def _pair(
        self, variant: Variant, posts: list[Post], exact: list[Answer], low: list[Answer]
    ) -> Pair:
        """Answers of float32 and of a variant, and of one whose pictures alone are low."""
        picture_only: list[Answer] = []
        if any(answer.image_used for answer in exact):
            picture_low = replace(
                variant,
                graphs={**self._fp32.graphs, "image": variant.graphs["image"]},
                compute={n: kind for n, kind in variant.compute.items() if n == "image"},
            )
            with self._engine(picture_low) as engine:
                picture_only = ask(engine, posts)
        return Pair(posts=posts, exact=exact, low=low, picture_only=picture_only)

    def _picture_margin(self) -> dict[str, Any]:
        """How large a margin lets float32 do without the picture, and what that changes."""
        exact_tuned, exact = self.exact
        halves: list[tuple[Doubles, Bools]] = []
        for posts, expected in zip(self._posts.halves, (exact_tuned, exact.answers), strict=True):
            with self._engine(self._fp32) as engine:
                without = ask(engine, [replace(post, image=None) for post in posts])
            rows = [
                row
                for row, post in enumerate(posts)
                if post.image is not None and without[row].scores is not None
            ]
            scores = [scores for row in rows if (scores := without[row].scores) is not None]
            changed = [expected[row].entities != without[row].entities for row in rows]
            margins = Decoder.of(self._bundle).margins(scores)
            halves.append((margins, np.array(changed, np.bool_)))
        return _fit_margin(*halves[0], *halves[1])


def _golden_tolerance(engine: Engine, precision: str) -> float:
    """Tolerance at load: what the golden posts need here, with room for another CPU.

    Raises:
        ExportError: No tolerance is enough.
    """
    tolerance = 0.01
    while tolerance < 1e3:
        try:
            check_golden(engine.pipeline, tolerance, entities=False)
            return 2 * tolerance
        except ParityError:
            tolerance *= 1.5
    raise ExportError(f"the {precision} variant is off by more than any tolerance")


def _fit_margin(
    margins: Doubles, changed: Bools, other_margins: Doubles, other_changed: Bools
) -> dict[str, Any]:
    """Choose the smallest margin whose changes stay within the budget, and try it on other posts.

    Args:
        margins: Margin of each tuning post's answer without its picture.
        changed: Whether the picture changes that answer.
        other_margins: Margins of the other posts.
        other_changed: Whether the picture changes their answers.

    Returns:
        Margin, budget, and for the other posts their number, the share whose picture is left out
        and how many of those change. Empty where no post has a picture.
    """
    if not len(margins) or not len(other_margins):
        return {}
    margins = np.minimum(margins, _LARGEST_MARGIN)
    other_margins = np.minimum(other_margins, _LARGEST_MARGIN)
    order = np.argsort(-margins)
    spent = np.cumsum(changed[order])
    within = np.flatnonzero(spent <= BUDGET * len(margins))
    # Up to and including the last post within the budget; all its equals are in or out together.
    least = float(margins[order][within[-1]]) if len(within) else float(margins.max())
    # A few hundred posts do not show the rare large change; other posts have larger ones.
    margin = SAFETY * least
    skipped = other_margins > margin
    return {
        "margin": margin,
        "budget": BUDGET,
        "posts": len(other_margins),
        "skipped": round(float(skipped.mean()), 4),
        "changed": int(other_changed[skipped].sum()),
    }
