"""`Engine`: the public door of a bundle."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from amlr.errors import AmlrError, InputError
from amlr.runtime.answer_cache import AnswerCache, AnswerStats
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import usable_cores
from amlr.runtime.decode import decode_posts
from amlr.runtime.escalation_picture import measured_margin, score_when_needed
from amlr.runtime.golden import check_golden
from amlr.runtime.image import ImageSource
from amlr.runtime.image_cache import CacheStats
from amlr.runtime.manifest import DecoderSettings, Manifest, Variant
from amlr.runtime.pipeline import Pipeline, ScoredPost
from amlr.runtime.providers.base import Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider, provider_names
from amlr.runtime.raw import raw_of
from amlr.runtime.results import Post, Raw, Result, problem
from amlr.runtime.text import Spans
from amlr.runtime.tier_choice import open_fastest
from amlr.runtime.tier_timing import Choice
from amlr.runtime.tiers import Skipped, Tier, list_tiers
from amlr.runtime.warmup import warm_up

LOG = logging.getLogger("amlr.runtime")
IMAGES = ("always", "when-needed")
CHECKS = ("full", "text", "off")


class Engine:
    """Tags posts. One engine serves any number of threads, in the process that loaded it.

    Attributes:
        decoder: How scores become entities; may be replaced at any time, nothing is rebuilt.
        skipped: Tiers that were not taken, with the reason.
        choice: The tier in use, why, and what was timed.
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
        self._answers: AnswerCache | None = None
        self._picture_margin: float | None = None
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
    ) -> Self:
        """Open a bundle and take the best tier that proves itself on this host.

        Args:
            path: The bundle's folder.
            provider: `auto`, `onnxruntime`, or one by name; a name never falls back.
            precision: `auto` (the fastest float32 tier here; with `max_changed` above 0 the fastest
                variant measured within it), `exact` (fp32), `escalate` (low precision first,
                float32 where an answer is not certain), or one by name. Of several CPU tiers the
                fastest is timed, once for a `cache_dir`.
            threads: CPU threads of one call; None takes the physical cores.
            image_cache_mb: Budget for encoded pictures; 0 keeps none.
            cache_dir: Where a provider may keep compiled forms; the bundle is never written to.
            manifest_sha256: Hash of `manifest.json`, to pin the bundle against tampering.
            max_changed: Share of changed entities that `precision="auto"` accepts.
            check: `full` re-runs all golden posts; `text` only those without a picture, so that
                the image graph is not loaded before the first picture; `off` none.
            answer_cache: Answers to keep for posts that come again; 0 keeps none.
            image: `always` looks at every picture; `when-needed` leaves those out whose post the
                text decides by the margin that the export measured, and says so in a warning.

        Raises:
            BundleError: The bundle is missing, damaged or of another schema.
            BackendUnavailableError: No provider that was asked for can run here.
            ParityError: A provider chosen by name fails the golden check.
            InputError: An option is wrong.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        if image not in IMAGES:
            raise InputError(f"image must be one of {IMAGES}, got {image!r}")
        if check not in CHECKS:
            raise InputError(f"check must be one of {CHECKS}, got {check!r}")
        names = provider_names(provider)  # a wrong name is said before any file is read
        bundle = Bundle.open(path, manifest_sha256)
        note = bundle.manifest.image.steps_note()
        if note is not None:
            LOG.warning("%s was %s", bundle.path, note)
        options = ProviderOptions(
            threads=threads, cache_dir=None if cache_dir is None else Path(cache_dir)
        )
        margin = measured_margin(bundle.manifest) if image == "when-needed" else None
        if precision == "escalate":
            if margin is not None:
                raise InputError('image="when-needed" and precision="escalate" exclude each other')
            # Built on this class, so it cannot be imported before it.
            from amlr.runtime.escalation import open_escalating

            climbing = open_escalating(bundle, names, options, image_cache_mb, check)
            climbing._keep_answers(answer_cache)
            return cast("Self", climbing)
        engine, choice, skipped = open_fastest(
            bundle,
            list_tiers(bundle.manifest, provider, precision, max_changed),
            lambda tier: cls._open(bundle, tier, options, image_cache_mb, check),
            threads=threads,
            cache_dir=options.cache_dir,
            pictures=check == "full",
        )
        engine.choice, engine.skipped = choice, skipped
        try:
            if check != "off":
                warm_up(engine._pipeline, pictures=check == "full")
        except BaseException:
            engine.close()
            raise
        # Golden pictures are nobody's, and the counters belong to the user's.
        engine._pipeline.images.reset()
        engine._keep_answers(answer_cache)
        engine._picture_margin = margin
        return engine

    @classmethod
    def _open(
        cls,
        bundle: Bundle,
        tier: Tier,
        options: ProviderOptions,
        image_cache_mb: float,
        check: str,
    ) -> Self:
        variant = tier.variant
        provider = open_provider(tier.provider, bundle, variant, options)
        engine = cls(
            bundle,
            provider,
            variant=variant,
            threads=options.threads or usable_cores(),
            image_cache_mb=image_cache_mb,
        )
        try:
            if check != "off":
                # A variant that is known to change entities was asked for by name, or allowed to.
                known = variant.parity.get("changed_entities", 0)
                check_golden(
                    engine._pipeline,
                    variant.tolerance,
                    images=check == "full",
                    entities=not known,
                )
        except BaseException:
            engine.close()
            raise
        return engine

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
        """Name of the tier in use."""
        return self._provider.name

    @property
    def precision(self) -> str:
        """Precision in use."""
        return self._provider.precision

    @property
    def image_cache(self) -> CacheStats:
        """Counters of the picture cache."""
        return self._pipeline.images.stats()

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
        self._check_usable()
        post = Post(text, image, words)
        if self._answers is not None:
            (result,) = self._answers.tag_batch([post], self._answer_key(), self._tag_batch)
            if result.error is None:
                return result
        return self._tag(post)

    def tag_batch(self, posts: Iterable[Post]) -> list[Result]:
        """Tag any number of posts; order is kept, and a bad post fails alone in its `error`."""
        self._check_usable()
        posts = list(posts)
        if self._answers is not None:
            return self._answers.tag_batch(posts, self._answer_key(), self._tag_batch)
        return self._tag_batch(posts)

    @property
    def answer_cache(self) -> AnswerStats | None:
        """Counters of the answer cache; None where there is none."""
        return None if self._answers is None else self._answers.stats()

    def _tag(self, post: Post) -> Result:
        ((scored,),) = self._score([post])
        if scored.error is not None:
            raise scored.error
        return self._results([scored])[0]

    def _tag_batch(self, posts: list[Post]) -> list[Result]:
        results: list[Result] = []
        for chunk in self._score(posts):
            results.extend(self._results(chunk))
        return results

    def _score(self, posts: Sequence[Post]) -> Iterator[list[ScoredPost]]:
        if self._picture_margin is None:
            return self._pipeline.score_chunks(posts, decode=self.decoder)
        return score_when_needed(self._pipeline, posts, self._picture_margin, self.decoder)

    def _keep_answers(self, entries: int) -> None:
        if entries > 0:
            self._answers = AnswerCache(entries, self.manifest.limits)

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
            raw_of(scored, self.manifest)
            for scored in self._pipeline.score(list(posts), every=all_units)
        ]

    def close(self) -> None:
        """Release graphs and caches. Calls under way may still finish; later ones raise."""
        if not self._closed:
            self._closed = True
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

    def _results(self, posts: Sequence[ScoredPost]) -> list[Result]:
        found = [post.decoded or post.scores for post in posts]
        entities = iter(
            decode_posts(
                [post for post in found if post is not None],
                self.decoder,
                self._bundle.decoder,
                labels=self.manifest.labels,
                tags=self.manifest.tags,
            )
        )
        return [
            Result(
                entities=() if own is None else next(entities),
                image_used=post.image_used,
                provider=self.provider,
                precision=self.precision,
                warnings=post.warnings,
                error=None if post.error is None else problem(post.error),
            )
            for post, own in zip(posts, found, strict=True)
        ]
