"""What is measured of a CPU variant: changed entities, radii and what they certify, time."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import ExportError, ParityError
from amlr.export.parity import Answer, ask, compare, decoded_answers
from amlr.export.posts import CalibrationPost, CalibrationPosts, strict_f1
from amlr.export.radii import Pair, by_kind, count_photos, radii_record
from amlr.export.steps import counted
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.golden import check_golden
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import PICTURE, PICTURE_ONLY

WARM_UP = 32
# Share of all posts with a picture whose entities may change for want of it.
BUDGET = 0.005
SAFETY = 2.0
# A post without any other answer has an endless margin, which JSON cannot hold.
_LARGEST_MARGIN = 1e6
_CPUS = {"openvino": "openvino", None: "onnxruntime-cpu"}
log = logging.getLogger(__name__)
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Posts = tuple[CalibrationPost, ...]


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


def time_answers(engine: Engine, posts: Posts) -> Timed:
    """Run an engine over posts, once without their pictures encoded and once with."""
    requests = [item.post for item in posts]
    # Compiling, and the first visits of shapes, are paid once in a process's life.
    list(engine.pipeline.score(requests[:WARM_UP]))
    engine.pipeline.images.reset()
    start = time.process_time()
    scored = list(counted(engine.pipeline.score(requests)))
    middle = time.process_time()
    list(counted(engine.tag_batch(requests)))
    end = time.process_time()
    per_post = 1e3 / max(1, len(requests))
    return Timed(
        answers=decoded_answers(engine, scored),
        cold_ms=(middle - start) * per_post,
        hit_ms=(end - middle) * per_post,
    )


class Measurements:
    """Runs variants of one bundle over calibration posts, float32 on the same posts beside them."""

    def __init__(self, bundle: Bundle, posts: CalibrationPosts) -> None:
        self.bundle, self._posts = bundle, posts
        self._fp32 = bundle.manifest.variants["fp32"]
        self._exact: dict[Posts, Timed] = {}

    def engine(self, variant: Variant) -> Engine:
        """An engine on one thread.

        Raises:
            BackendUnavailableError: The variant's provider is not installed.
        """
        provider = open_provider(
            _CPUS[variant.provider], self.bundle, variant, ProviderOptions(threads=1)
        )
        # No variant for the engine: files of a bundle in the making have no hashes yet, and one
        # engine's pictures must not be taken for another's.
        return Engine(self.bundle, provider, image_cache_mb=2000)

    def run(self, variant: Variant, posts: Posts) -> Timed:
        """Answers of a variant."""
        with self.engine(variant) as engine:
            return time_answers(engine, posts)

    def exact(self, posts: Posts) -> Timed:
        """Answers of float32, kept for the next variant."""
        if posts not in self._exact:
            self._exact[posts] = self.run(self._fp32, posts)
        return self._exact[posts]

    def measured(self, name: str, variant: Variant) -> Variant:
        """The variant with its record and its tolerance at load.

        Raises:
            BackendUnavailableError: The variant's provider is not installed.
            ExportError: The variant fails the golden check at any tolerance.
        """
        posts, exact = self._posts, self.exact(self._posts.held_out)
        with self.engine(variant) as engine:
            timed = time_answers(engine, posts.held_out)
            tuning = time_answers(engine, posts.tuning).answers
            tolerance = _golden_tolerance(engine, variant.precision)
        parity = compare(exact.answers, timed.answers)
        log.info(
            f"  {name}: {parity.changed_entities} of {parity.entities} entities changed over "
            f"{parity.posts} posts, {timed.cold_ms:.2f} ms a post, "
            f"{timed.hit_ms:.2f} on a known picture"
        )
        record: dict[str, Any] = {
            **parity.to_dict(),
            "source": posts.source,
            **self._radii(variant, tuning, timed.answers),
            "ms_per_post": round(timed.cold_ms, 3),
            "hit_ms_per_post": round(timed.hit_ms, 3),
            "fp32_ms_per_post": round(exact.cold_ms, 3),
            "fp32_hit_ms_per_post": round(exact.hit_ms, 3),
        }
        gains = float(parity.errors_p2[:, 0].max(initial=0.0))
        if np.isfinite(gains):
            record["max_abs_error"]["unit_gains"] = gains
        f1s = [strict_f1(posts.held_out, side.answers) for side in (exact, timed)]
        if None not in f1s:
            record["f1"] = dict(zip(("fp32", "variant"), f1s, strict=True))
        return replace(variant, parity=record, tolerance=tolerance)

    def _radii(
        self, variant: Variant, tuning: list[Answer], held_out: list[Answer]
    ) -> dict[str, Any]:
        """The record of the variant's certificates.

        Args:
            variant: The variant.
            tuning: Its answers to the tuning half.
            held_out: Its answers to the held half.
        """
        posts = self._posts
        limits = self.bundle.manifest.limits
        exact = self.exact(posts.tuning).answers
        return radii_record(
            self._by_kind(variant, posts.tuning, tuning),
            self._by_kind(variant, posts.held_out, held_out),
            Decoder.of(self.bundle),
            given=posts.given,
            photos=count_photos([item.post for item in posts.tuning], exact, limits),
        )

    def _by_kind(self, variant: Variant, posts: Posts, low: list[Answer]) -> dict[str, Pair]:
        """Answers of float32 and of a variant to posts of each kind."""
        exact = self.exact(posts).answers
        kinds = by_kind(Pair(exact=exact, low=low))
        if kinds[PICTURE].exact:
            picture_only = replace(
                variant,
                graphs={**self._fp32.graphs, "image": variant.graphs["image"]},
                compute={n: kind for n, kind in variant.compute.items() if n == "image"},
            )
            answers = self.run(picture_only, posts).answers
            kinds[PICTURE_ONLY] = Pair(exact=exact, low=answers).where(True)
        return kinds

    def picture_margin(self) -> dict[str, Any]:
        """How large a margin lets float32 do without the picture, and what that changes."""
        halves: list[tuple[Doubles, Bools]] = []
        for posts in (self._posts.tuning, self._posts.held_out):
            bare = [replace(item.post, image=None) for item in posts]
            with self.engine(self._fp32) as engine:
                without = ask(engine, bare)
            rows = [
                row
                for row, item in enumerate(posts)
                if item.post.image is not None and without[row].scores is not None
            ]
            scores = [scores for row in rows if (scores := without[row].scores) is not None]
            margins = Decoder.of(self.bundle).margins(scores)
            exact = self.exact(posts).answers
            changed = [exact[row].entities != without[row].entities for row in rows]
            halves.append((margins, np.array(changed, np.bool_)))
        return fit_margin(*halves[0], *halves[1])


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


def fit_margin(
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
