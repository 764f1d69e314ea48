"""Low precision first, float32 where an answer is not certain: the same entities for less work.

Three stages. The low tier answers; what its certificate clears is returned. The rest, where there
is a picture, get float32 text and fusion on the picture the low tier already encoded; what a second
certificate, with the radii of that picture alone, clears is returned. What is left is computed in
float32 altogether, and so are posts of a kind that the calibration did not hold: with or without a
picture, or any where its posts were invented.
"""

import math
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amlr.errors import BundleError
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import usable_cores
from amlr.runtime.engine import Engine
from amlr.runtime.escalation_certificate import (
    PICTURE,
    PICTURE_ONLY,
    TEXT,
    calibrated_radii,
    certified_by_kind,
)
from amlr.runtime.golden import check_golden
from amlr.runtime.manifest import Variant
from amlr.runtime.pipeline import Pipeline, ScoredPost, post_chunks
from amlr.runtime.providers.base import ImageFeatures, Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.results import Post, Result
from amlr.runtime.tier_choice import open_fastest
from amlr.runtime.tiers import CPUS, Skipped, Tier, open_first
from amlr.runtime.warmup import warm_up

STAGES = ("low", "picture", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationStats:
    """Posts answered by each stage since the engine was made.

    Attributes:
        low: Cleared in low precision.
        picture: Cleared in float32 on the low-precision picture.
        exact: Computed in float32 altogether.
    """

    low: int = 0
    picture: int = 0
    exact: int = 0


class EscalatingEngine(Engine):
    """An `Engine` whose answers are float32's, most of them computed in low precision.

    `raw` gives float32's numbers.
    """

    def __init__(
        self,
        bundle: Bundle,
        low: Provider,
        exact: Provider,
        *,
        variant: Variant,
        threads: int = 1,
        image_cache_mb: float = 256,
    ) -> None:
        """Join two tiers.

        Args:
            bundle: The bundle.
            low: Runs `variant`.
            exact: Runs the float32 variant.
            variant: Low-precision variant with measured radii.
            threads: Pictures decoded at a time.
            image_cache_mb: Budget for encoded pictures, of each tier.
        """
        fp32 = bundle.manifest.variants["fp32"]
        super().__init__(
            bundle, exact, variant=fp32, threads=threads, image_cache_mb=image_cache_mb
        )
        self._low_provider = low
        self._radii = calibrated_radii(variant.parity)
        budget = int(image_cache_mb * 1e6)
        self._low = Pipeline(
            bundle, low, variant=variant, threads=threads, image_cache_bytes=budget
        )
        # The picture of the middle stage is the low tier's, so the two share one cache of them.
        self._middle = Pipeline(bundle, _Mixed(low, exact), variant=variant, threads=1)
        self._middle.images = self._low.images
        self._counts = dict.fromkeys(STAGES, 0)
        self._count_lock = threading.Lock()

    @property
    def precision(self) -> str:
        """Both tiers."""
        return f"{self._low_provider.precision}+fp32"

    @property
    def stats(self) -> EscalationStats:
        """How many posts each stage answered."""
        with self._count_lock:
            return EscalationStats(**self._counts)

    def _tag(self, post: Post) -> Result:
        ((scored, stage),) = next(self._stages([post]))
        if scored.error is not None:
            raise scored.error
        return self._staged_results([(scored, stage)])[0]

    def _tag_batch(self, posts: list[Post]) -> list[Result]:
        results: list[Result] = []
        for chunk in self._stages(posts):
            results.extend(self._staged_results(chunk))
        return results

    def check(self, variant: Variant, *, images: bool) -> None:
        """Run the golden posts on the low tier, whose entities may differ, and warm up both.

        Raises:
            ParityError: It is not what the bundle says it is.
        """
        check_golden(self._low, variant.tolerance, images=images, entities=False)
        for pipeline in (self._pipeline, self._low):
            warm_up(pipeline, pictures=images)
            pipeline.images.reset()

    def close(self) -> None:
        """Release both tiers."""
        if not self._closed:
            self._low.close()
            self._low_provider.close()
        super().close()

    def _stages(self, posts: Sequence[Post]) -> Iterator[list[tuple[ScoredPost, str]]]:
        for start, stop in post_chunks(posts):
            chunk = posts[start:stop]
            answers: dict[int, tuple[ScoredPost, str]] = {}
            for stage, pipeline in (
                ("low", self._low),
                ("picture", self._middle),
                ("exact", self._pipeline),
            ):
                rows = self._rows_of(stage, chunk, answers)
                scored = list(pipeline.score([chunk[row] for row in rows]))
                cleared = self._cleared(scored, stage)
                for row, post, is_clear in zip(rows, scored, cleared, strict=True):
                    # A picture that cannot be used leaves the middle stage all in float32.
                    is_exact = stage == "picture" and not post.image_used
                    if is_clear or is_exact:
                        answers[row] = (post, "exact" if is_exact else stage)
            in_order = [answers[row] for row in range(len(chunk))]
            self._count(in_order)
            yield in_order

    def _rows_of(self, stage: str, chunk: Sequence[Post], answers: Collection[int]) -> list[int]:
        """Posts without an answer that a stage may answer."""
        rows = [row for row in range(len(chunk)) if row not in answers]
        if stage == "exact":
            return rows
        with_picture = [isinstance(post, Post) and post.image is not None for post in chunk]
        if stage == "picture":
            # Without a picture this stage would be float32 already.
            return [row for row in rows if with_picture[row] and PICTURE_ONLY in self._radii]
        return [row for row in rows if (PICTURE if with_picture[row] else TEXT) in self._radii]

    def _cleared(self, scored: Sequence[ScoredPost], stage: str) -> npt.NDArray[np.bool_]:
        """Whether each post's answer is float32's, as far as radii can tell."""
        # Without scores there is no answer that could differ.
        cleared = np.ones(len(scored), np.bool_)
        having = [i for i, post in enumerate(scored) if post.scores is not None]
        if stage == "exact" or not having:
            return cleared
        seen = PICTURE if stage == "low" else PICTURE_ONLY
        cleared[having] = certified_by_kind(
            [post.scores for post in scored if post.scores is not None],
            [seen if scored[i].image_used else TEXT for i in having],
            self._radii,
            self.decoder,
            self._bundle.decoder,
            labels=self.manifest.labels,
            tags=self.manifest.tags,
        )
        return cleared

    def _count(self, answers: Sequence[tuple[ScoredPost, str]]) -> None:
        with self._count_lock:
            for _, stage in answers:
                self._counts[stage] += 1

    def _staged_results(self, answers: Sequence[tuple[ScoredPost, str]]) -> list[Result]:
        results = self._results([post for post, _ in answers])
        names = {"low": self._low_provider.precision, "exact": self._provider.precision}
        return [
            replace(result, precision=names.get(stage, self.precision))
            for result, (_, stage) in zip(results, answers, strict=True)
        ]


def open_escalating(
    bundle: Bundle,
    names: Sequence[str],
    options: ProviderOptions,
    image_cache_mb: float,
    check: str,
) -> EscalatingEngine:
    """Open the cheapest measured low tier that can run here, and the fastest float32 beside it.

    Args:
        bundle: The bundle.
        names: Providers to try, in order.
        options: Settings of the host.
        image_cache_mb: Budget for encoded pictures, of each tier.
        check: As in `Engine.load`.

    Raises:
        BundleError: No variant has measured radii.
        BackendUnavailableError: None that has can run here.
        ParityError: Float32 fails the golden check here.
    """
    # Escalation pays on CPUs; devices have their own ways.
    cpus = [name for name in names if name in CPUS]
    tiers = [
        Tier(provider=owner, name=name, variant=variant)
        for owner in cpus
        for name, variant in bundle.manifest.variants.items()
        if "radii" in variant.parity and variant.provider in (None, owner)
    ]
    if not tiers:
        raise BundleError(
            "no variant of this bundle has measured radii, which escalation needs; "
            "export it with: amlr-export --precision fp32,int8"
        )
    # The cheapest tier is not the one that climbs least, nor the fastest one: it is measured.
    tiers.sort(key=lambda tier: (cpus.index(tier.provider), _expected_ms(tier.variant)))
    fp32 = bundle.manifest.variants["fp32"]
    skipped: list[Skipped] = []
    tier, low = open_first(
        bundle,
        tiers,
        lambda tier: open_provider(tier.provider, bundle, tier.variant, options),
        skipped,
    )
    try:
        exact, choice, others = open_fastest(
            bundle,
            [Tier(provider=owner, name="fp32", variant=fp32) for owner in cpus],
            lambda tier: Engine._open(bundle, tier, options, image_cache_mb, check),
            threads=options.threads,
            cache_dir=options.cache_dir,
            pictures=check == "full",
        )
    except BaseException:
        low.close()
        raise
    exact.pipeline.close()
    engine = EscalatingEngine(
        bundle,
        low,
        exact.pipeline.provider,
        variant=tier.variant,
        threads=options.threads or usable_cores(),
        image_cache_mb=image_cache_mb,
    )
    engine.skipped = (*skipped, *others)
    engine.choice = replace(
        choice,
        precision=engine.precision,
        reason=f"{tier.provider} {tier.variant.precision} first, as it costs least by the bundle's "
        f"record; float32 on {choice.provider}: {choice.reason}{_uncalibrated(tier.variant)}",
    )
    if check != "off":
        try:
            engine.check(tier.variant, images=check == "full")
        except BaseException:
            engine.close()
            raise
    return engine


def _uncalibrated(variant: Variant) -> str:
    """What the calibration did not hold, for the reason of the choice."""
    radii = calibrated_radii(variant.parity)
    lacking = {TEXT: "without a picture", PICTURE: "with a picture"}
    kinds = [name for kind, name in lacking.items() if kind not in radii]
    if not kinds:
        return ""
    return (
        f"; posts {' and '.join(kinds)} are computed in float32, as the bundle was not calibrated "
        "on real ones; export it with --calib and such posts"
    )


def _expected_ms(variant: Variant) -> float:
    """What a post costs on average with this low tier, as the export measured it."""
    found = variant.parity.get("escalation", {}).get("ms_per_post")
    return float(found) if isinstance(found, int | float) else math.inf


class _Mixed:
    """Pictures of one provider, text and fusion of another."""

    def __init__(self, pictures: Provider, scores: Provider) -> None:
        self._pictures, self._scores = pictures, scores
        # The picture cache's key, so that both pipelines find the same pictures.
        self.name, self.precision = pictures.name, pictures.precision
        self.batch_sizes = scores.batch_sizes

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[ImageFeatures]:
        """Pictures in low precision."""
        return self._pictures.encode_images(pixels_bchw)

    def score(self, batch: Batch, images: Sequence[ImageFeatures | None]) -> Scores:
        """Scores in float32."""
        return self._scores.score(batch, images)

    def close(self) -> None:
        """Both are closed by their owners."""
