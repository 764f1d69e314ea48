"""Low precision first, float32 where an answer is not certain: float32's entities for less work.

Three stages. The low tier answers; what its certificate clears is returned. The rest, where there
is a picture, get float32 text and fusion on the picture the low tier already encoded; what a second
certificate, with the radii of that picture alone, clears is returned. What is left is computed in
float32 altogether, and so are posts of a kind that the calibration did not hold: with or without a
picture, or any where its posts were invented.
"""

import math
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amlr.errors import BundleError
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.golden import check_golden
from amlr.runtime.manifest import Variant
from amlr.runtime.pipeline import Pipeline, ScoredPost, post_chunks
from amlr.runtime.providers.base import ImageFeatures, Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import PICTURE, PICTURE_ONLY, TEXT, calibrated_radii
from amlr.runtime.results import Post
from amlr.runtime.strategies import Answer
from amlr.runtime.tiers import CPUS, Skipped, Tier, open_first
from amlr.runtime.warmup import warm_up

STAGES = ("low", "picture", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedStats:
    """Posts answered by each stage since the strategy was made.

    Attributes:
        low: Certified in low precision.
        picture: Certified in float32 on the low-precision picture.
        exact: Computed in float32 altogether.
    """

    low: int = 0
    picture: int = 0
    exact: int = 0


class Certified:
    """Two tiers whose answers are float32's.

    Attributes:
        precision: Of both tiers.
        radii: Of the low tier, by kind of post; kinds that are missing go to float32.
    """

    def __init__(self, exact: Pipeline, low: Pipeline, variant: Variant) -> None:
        """Join two tiers.

        Args:
            exact: The float32 tier; its owner closes it.
            low: Runs `variant`; closed here, with its provider.
            variant: Low-precision variant with measured radii.
        """
        self._exact, self._low, self._variant = exact, low, variant
        self.radii = calibrated_radii(variant.parity)
        low_precision = low.provider.precision
        self.precision = f"{low_precision}+fp32"
        self._precisions = {
            "low": low_precision,
            "picture": self.precision,
            "exact": exact.provider.precision,
        }
        # The picture of the middle stage is the low tier's, so the two share one cache of them.
        mixed = MixedProvider(low.provider, exact.provider)
        self._middle = Pipeline(exact.bundle, mixed, variant=variant, threads=1)
        self._middle.images = low.images
        self._counts = dict.fromkeys(STAGES, 0)
        self._count_lock = threading.Lock()

    @property
    def stats(self) -> CertifiedStats:
        """How many posts each stage answered."""
        with self._count_lock:
            return CertifiedStats(**self._counts)

    def check(self, *, images: bool) -> None:
        """Run the golden posts on the low tier, whose entities may differ, and warm it up.

        Raises:
            ParityError: It is not what the bundle says it is.
        """
        check_golden(self._low, self._variant.tolerance, images=images, entities=False)
        warm_up(self._low, pictures=images)
        self._low.images.reset()

    def close(self) -> None:
        """Release the low tier."""
        self._low.close()
        self._low.provider.close()

    def scores(self, post: Post, decoder: Decoder) -> ScoredPost:
        """Raw float32 scores of one post."""
        return next(self._exact.score([post]))

    def answers(self, posts: Sequence[Post], decoder: Decoder) -> Iterator[list[Answer]]:
        """Answers in order."""
        for start, stop in post_chunks(posts):
            chunk = posts[start:stop]
            answers: dict[int, Answer] = {}
            for stage, pipeline in zip(STAGES, (self._low, self._middle, self._exact), strict=True):
                rows = self._rows_of(stage, chunk, answers)
                scored = list(pipeline.score([chunk[row] for row in rows]))
                certified = self._certify(scored, stage, decoder)
                for row, post, is_certain in zip(rows, scored, certified, strict=True):
                    # A picture that cannot be used leaves the middle stage all in float32.
                    is_exact = stage == "picture" and not post.image_used
                    if is_certain or is_exact:
                        answers[row] = self._answer(post, "exact" if is_exact else stage)
            yield [answers[row] for row in range(len(chunk))]

    def _answer(self, post: ScoredPost, stage: str) -> Answer:
        with self._count_lock:
            self._counts[stage] += 1
        # A post that failed, or has no words, has no answer to certify.
        certified = True if stage != "exact" and post.scores is not None else None
        return Answer(scored=post, precision=self._precisions[stage], certified=certified)

    def _rows_of(self, stage: str, chunk: Sequence[Post], answers: Collection[int]) -> list[int]:
        """Posts without an answer that a stage may answer."""
        rows = [row for row in range(len(chunk)) if row not in answers]
        if stage == "exact":
            return rows
        with_picture = [isinstance(post, Post) and post.image is not None for post in chunk]
        if stage == "picture":
            # Without a picture this stage would be float32 already.
            return [row for row in rows if with_picture[row] and PICTURE_ONLY in self.radii]
        return [row for row in rows if (PICTURE if with_picture[row] else TEXT) in self.radii]

    def _certify(
        self, scored: Sequence[ScoredPost], stage: str, decoder: Decoder
    ) -> npt.NDArray[np.bool_]:
        """Whether each post's answer is float32's, as far as radii can tell."""
        # Without scores there is no answer that could differ.
        certified = np.ones(len(scored), np.bool_)
        having = [i for i, post in enumerate(scored) if post.scores is not None]
        if stage == "exact" or not having:
            return certified
        seen = PICTURE if stage == "low" else PICTURE_ONLY
        certified[having] = decoder.certify(
            [post.scores for post in scored if post.scores is not None],
            [self.radii.get(seen if scored[i].image_used else TEXT) for i in having],
        )
        return certified


def open_low_tier(
    bundle: Bundle, names: Sequence[str], options: ProviderOptions, skipped: list[Skipped]
) -> tuple[Tier, Provider]:
    """Open the cheapest measured low tier that can run here.

    Args:
        bundle: The bundle.
        names: Providers to try, in order.
        options: Settings of the host.
        skipped: Receives the tiers that could not serve.

    Raises:
        BundleError: No variant has measured radii.
        BackendUnavailableError: None that has can run here.
    """
    # Certificates pay on CPUs; devices have their own ways.
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
    return open_first(
        bundle,
        tiers,
        lambda tier: open_provider(tier.provider, bundle, tier.variant, options),
        skipped,
    )


def uncalibrated(variant: Variant) -> str:
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
    record = variant.parity.get("escalation", {}).get("ms_per_post")
    return float(record) if isinstance(record, int | float) else math.inf


class MixedProvider:
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
