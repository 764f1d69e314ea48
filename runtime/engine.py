"""`Engine`: the public door of a bundle."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from amlr.errors import AmlrError, InputError
from amlr.runtime.answer_cache import AnswerCache, AnswerStats
from amlr.runtime.bundle import Bundle
from amlr.runtime.certified import Certified, CertifiedStats, MixedProvider
from amlr.runtime.cpu import usable_cores
from amlr.runtime.decode import MAX_ALTERNATIVES, Decoder
from amlr.runtime.golden import check_golden
from amlr.runtime.image import ImageSource
from amlr.runtime.image_cache import CacheStats
from amlr.runtime.known_files import KnownFiles
from amlr.runtime.manifest import DecoderSettings, Manifest, Variant
from amlr.runtime.options import EngineOptions
from amlr.runtime.pipeline import Pipeline
from amlr.runtime.providers.base import Provider
from amlr.runtime.providers.registry import CPUS, open_provider, provider_names
from amlr.runtime.radii import PICTURE_ONLY, calibrated_radii
from amlr.runtime.results import Alternative, Post, Raw, Result, error_of, problem
from amlr.runtime.strategies import Always, Answer, Strategy, WhenNeeded, measured_margin
from amlr.runtime.text import Spans
from amlr.runtime.tier_choice import open_fastest
from amlr.runtime.tier_timing import Choice
from amlr.runtime.tiers import Skipped, Tier, list_low_tiers, list_tiers
from amlr.runtime.warmup import warm_up

LOG = logging.getLogger("amlr.runtime")


class Engine:
    """Tags posts. One engine serves any number of threads, in the process that loaded it.

    Attributes:
        decoder: How scores become entities; may be replaced at any time, nothing is rebuilt.
        skipped: Tiers that were not taken, with the reason.
        choice: The tier in use, why, and what was timed.
        strategy: How posts become answers.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        *,
        variant: Variant | None = None,
        threads: int = 1,
        image_cache_mb: float = 256,
    ) -> None:
        """Serve a bundle through a provider that is ready; users call `load`."""
        self.decoder: DecoderSettings = bundle.manifest.decoder
        self.skipped: tuple[Skipped, ...] = ()
        self.choice = Choice(
            provider=provider.name, precision=provider.precision, reason="given by the caller"
        )
        self._bundle, self._provider = bundle, provider
        self._pipeline = Pipeline(
            bundle,
            provider,
            variant=variant,
            threads=threads,
            image_cache_bytes=int(image_cache_mb * 1e6),
        )
        self.strategy: Strategy = Always(self._pipeline)
        self._answers: AnswerCache | None = None
        self._pid = os.getpid()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        provider: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        image_cache_mb: float = 256,
        cache_dir: str | Path | None = None,
        manifest_sha256: str | None = None,
        *,
        max_changed: float = 0.0,
        check: str = "full",
        answer_cache: int = 0,
        image: str = "always",
        sentinel: float = 0.005,
        trust_file_times: bool = False,
    ) -> Self:
        """Open a bundle and take the fastest tier that passes its check on this host.

        Args:
            path: The bundle's folder.
            provider: `auto` or a name; `EngineOptions` describes all options in full.
            precision: `auto`, `exact` (float32), `escalate`, or one or two names (`bf16+fp32`).
            threads: CPU threads of one call; None takes the physical cores.
            image_cache_mb: Budget for encoded pictures; 0 keeps none.
            cache_dir: Folder for compiled graphs and the choice of a tier; None keeps nothing.
            manifest_sha256: Hash of `manifest.json`, to pin the bundle against tampering.
            max_changed: Share of changed entities that `precision="auto"` accepts.
            check: Golden posts to run at load: `full`, `text` (without picture) or `off`.
            answer_cache: Answers to keep for repeated posts; 0 keeps none.
            image: `always` reads every picture, `when-needed` if the text leaves a small margin.
            sentinel: Share of the certified answers that are computed again in float32.
            trust_file_times: Recognise a picture file by its size and times, without reading it.

        Raises:
            BundleError: The bundle is missing, damaged or of another schema.
            BackendUnavailableError: No provider that was asked for can run here.
            ParityError: A provider chosen by name fails the golden check.
            InputError: An option is wrong.
        """
        options = EngineOptions(
            provider=provider,
            precision=precision,
            threads=threads,
            image_cache_mb=image_cache_mb,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            max_changed=max_changed,
            check=check,
            answer_cache=answer_cache,
            image=image,
            sentinel=sentinel,
            trust_file_times=trust_file_times,
        )
        provider_names(provider)  # refuses unknown ones before files are read
        return cls._load(Bundle.open(path, manifest_sha256), options)

    @classmethod
    def _load(cls, bundle: Bundle, options: EngineOptions) -> Self:
        note = bundle.manifest.image.steps_note()
        if note is not None:
            LOG.warning("%s was %s", bundle.path, note)
        margin = measured_margin(bundle.manifest) if options.image == "when-needed" else None
        low_tiers, uncertified = list_low_tiers(bundle.manifest, options)
        engine, choice, skipped = open_fastest(
            bundle,
            list_tiers(bundle.manifest, options),
            low_tiers,
            options,
            open_tier=lambda tier, is_checked: cls._open(bundle, tier, options, is_checked),
            put_first=lambda engine, tier, is_checked: engine._low_tier(tier, options, is_checked),
        )
        engine.choice, engine.skipped = choice, (*skipped, *uncertified)
        try:
            engine._warm_up(options)
        except BaseException:
            engine.close()
            raise
        if options.answer_cache > 0:
            files = engine._pipeline.images.files
            engine._answers = AnswerCache(options.answer_cache, bundle.manifest.limits, files)
        if margin is not None:
            engine.strategy = WhenNeeded(engine._pipeline, margin)
        return engine

    def _warm_up(self, options: EngineOptions) -> None:
        """Run a few posts where users' posts will go, so that none of them is slow."""
        if options.check != "off":
            warm_up(self.strategy.first, pictures=options.checks_pictures)
        files = KnownFiles() if options.trust_file_times else None
        for cache in (self.strategy.first.images, self._pipeline.images):
            cache.files = files
            cache.reset()  # statistics count only the user's pictures

    def _low_tier(self, tier: Tier, options: EngineOptions, is_checked: bool) -> Certified:
        """Open a low tier before this float32, which if unchecked is at its first use."""
        threads = options.threads or usable_cores()
        float32, radii = self.manifest.variants["fp32"], calibrated_radii(tier.variant.parity)
        if not {tier.provider, self.provider} <= set(CPUS):
            # A picture on a device is of no use anywhere else.
            radii.pop(PICTURE_ONLY, None)
        provider = open_provider(tier.provider, self._bundle, tier.variant, options.for_provider)
        # A picture in float32 is encoded once for both, by whichever is faster.
        shares_pictures = PICTURE_ONLY in radii and tier.variant.has_image_of(float32)
        if shares_pictures:
            provider = MixedProvider(self._provider, provider)
            radii.pop(PICTURE_ONLY)
        low = Pipeline(
            self._bundle,
            provider,
            variant=tier.variant,
            threads=threads,
            image_cache_bytes=int(options.image_cache_mb * 1e6),
            pictures=self._pipeline if shares_pictures else None,
        )
        try:
            if options.check != "off":
                # Its entities may differ: certificates are there for that.
                tolerance, images = tier.variant.tolerance, options.checks_pictures
                check_golden(low, tolerance, images=images, entities=False)
        except BaseException:
            low.close()
            provider.close()
            raise
        return Certified(
            self._pipeline,
            low,
            radii,
            sentinel=options.sentinel,
            callers=max(1, usable_cores() // threads),
            prepare_exact=None if is_checked else lambda: self._check(float32, options),
        )

    @classmethod
    def _open(cls, bundle: Bundle, tier: Tier, options: EngineOptions, is_checked: bool) -> Self:
        variant = tier.variant
        provider = open_provider(tier.provider, bundle, variant, options.for_provider)
        engine = cls(
            bundle,
            provider,
            variant=variant,
            threads=options.threads or usable_cores(),
            image_cache_mb=options.image_cache_mb,
        )
        try:
            if is_checked:
                engine._check(variant, options)
        except BaseException:
            engine.close()
            raise
        return engine

    def _check(self, variant: Variant, options: EngineOptions) -> None:
        if options.check == "off":
            return
        # A variant that is known to change entities was asked for by name, or allowed to.
        known = variant.parity.get("changed_entities", 0)
        check_golden(
            self._pipeline, variant.tolerance, images=options.checks_pictures, entities=not known
        )

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._bundle.manifest

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._bundle

    @property
    def pipeline(self) -> Pipeline:
        """Everything before decoding, for checks that look inside."""
        return self._pipeline

    @property
    def provider(self) -> str:
        """Name of the tier in use; where answers are certified, of the float32 one."""
        return self._provider.name

    @property
    def precision(self) -> str:
        """Precision in use, of both tiers where answers are certified."""
        return self.strategy.precision

    @property
    def image_cache(self) -> CacheStats:
        """Counters of the picture cache."""
        return self.strategy.pictures.images.stats()

    def tag(
        self, text: str, image: ImageSource | None = None, words: Spans | None = None
    ) -> Result:
        """Tag one post.

        Args:
            text: Any text; long ones are read in overlapping windows.
            image: Path, bytes, Pillow image or None. An unusable one only gives a warning.
            words: Character spans of the words, or None for the word rule.

        Raises:
            InputError: The text or the words cannot be used.
        """
        (result,) = self.tag_batch([Post(text, image, words)])
        if result.error is not None:
            raise error_of(result.error)
        return result

    def tag_batch(self, posts: Iterable[Post]) -> list[Result]:
        """Tag any number of posts; order is kept, and a bad post fails alone in its `error`."""
        self._check_usable()
        posts = list(posts)
        if self._answers is not None:
            return self._answers.tag_batch(posts, self._answer_key(), self._tag_batch)
        return self._tag_batch(posts)

    def alternatives(self, post: Post, n: int = 5) -> list[Alternative]:
        """The n best different answers to one post, best first; the first is the one of `tag`.

        Args:
            post: The post.
            n: How many, 1..16; fewer come back where there are no more.

        Raises:
            InputError: The post cannot be used, or n is out of range.
        """
        self._check_usable()
        if not isinstance(n, int) or not 1 <= n <= MAX_ALTERNATIVES:
            raise InputError(f"n must be a whole number in 1..{MAX_ALTERNATIVES}, got {n!r}")
        decoder = Decoder.of(self._bundle, self.decoder)
        scored = self.strategy.scores(post, decoder)
        if scored.error is not None:
            raise scored.error
        if scored.scores is None:  # without words there is one answer
            return [Alternative(entities=(), score=0.0)]
        return decoder.alternatives(scored.scores, n)

    @property
    def certificates(self) -> CertifiedStats | None:
        """Counters of certified answers; None where one tier gives all answers."""
        return self.strategy.stats if isinstance(self.strategy, Certified) else None

    @property
    def answer_cache(self) -> AnswerStats | None:
        """Counters of the answer cache; None where there is none."""
        return None if self._answers is None else self._answers.stats()

    def _tag_batch(self, posts: list[Post]) -> list[Result]:
        decoder = Decoder.of(self._bundle, self.decoder)
        results: list[Result] = []
        for chunk in self.strategy.answers(posts, decoder):
            results.extend(self._results(chunk, decoder))
        return results

    def _answer_key(self) -> str:
        """All an answer depends on besides the post; the decoder may be replaced at any time."""
        return repr((self._bundle.manifest_sha256, self.provider, self.precision, self.decoder))

    def raw(self, posts: Iterable[Post], all_units: bool = False) -> list[Raw]:
        """Raw model outputs of each post.

        Args:
            posts: Posts.
            all_units: Every unit, special tokens included, instead of the word-aligned ones. Of a
                text longer than one window, those that no window holds whole are left out.

        Raises:
            InputError: A post cannot be used.
        """
        self._check_usable()
        return [
            scored.raw(self._bundle)
            for scored in self.strategy.exact().score(list(posts), every=all_units)
        ]

    def close(self) -> None:
        """Release graphs and caches. Calls under way may still finish; later ones raise."""
        if not self._closed:
            self._closed = True
            self.strategy.close()
            self._pipeline.close()
            self._provider.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise AmlrError("this engine is closed; load the bundle again with Engine.load")
        # Threads and locks of the engine library do not survive a fork: calls would hang.
        if os.getpid() != self._pid:
            raise AmlrError(
                "this engine was loaded before a fork and cannot be used in the child; "
                "call Engine.load in each process, after the fork"
            )

    def _results(self, answers: Sequence[Answer], decoder: Decoder) -> list[Result]:
        found = [
            (answer.scored.decoded or answer.scored.scores) if answer.entities is None else None
            for answer in answers
        ]
        entities = iter(decoder.entities([each for each in found if each is not None]))
        return [
            Result(
                entities=(answer.entities or ()) if each is None else next(entities),
                image_used=answer.scored.image_used,
                provider=answer.provider,
                precision=answer.precision,
                certified=answer.certified,
                warnings=answer.scored.warnings,
                error=None if answer.scored.error is None else problem(answer.scored.error),
            )
            for answer, each in zip(answers, found, strict=True)
        ]
