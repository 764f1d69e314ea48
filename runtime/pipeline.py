"""Posts to raw scores: texts, pictures, batches, one provider."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from amlr.errors import AmlrError, InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import usable_cores
from amlr.runtime.image import decode_pixels
from amlr.runtime.image_cache import ImageCache
from amlr.runtime.known_files import read_keyed
from amlr.runtime.manifest import DecoderSettings, Variant
from amlr.runtime.providers.base import DecodesItself, ImageFeatures, Provider
from amlr.runtime.radii import Radii
from amlr.runtime.results import Post, Problem, Raw, problem
from amlr.runtime.scoring import Decode, own_decoder, score_texts
from amlr.runtime.text import EncodedText
from amlr.runtime.windows import DecodedPost, PostScores

T = TypeVar("T")
# Posts in work at a time, and pictures read at a time: what bounds memory on any input.
CHUNK_POSTS = 128
CHUNK_CHARS = 200_000
CHUNK_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredPost:
    """Raw scores of one post, or why there are none.

    Attributes:
        scores: None where the post failed, has no words, or was decoded.
        decoded: Entities, where they were asked for and the provider found them itself.
        image_used: Whether a picture took part.
        warnings: What was wrong with the picture.
        error: Why the post failed.
    """

    scores: PostScores | None
    decoded: DecodedPost | None = None
    image_used: bool = False
    warnings: tuple[Problem, ...] = ()
    error: AmlrError | None = None

    def raw(self, bundle: Bundle) -> Raw:
        """The model's own numbers in the public form; empty arrays where there are no words.

        Raises:
            AmlrError: Why the post could not be scored.
        """
        if self.error is not None:
            raise self.error
        manifest, scores = bundle.manifest, self.scores
        nothing = np.zeros(0, np.int32)
        if scores is None:
            logits = np.zeros((0, len(manifest.classes)), np.float32)
            emissions = np.zeros((0, len(manifest.tags)), np.float32)
        else:
            logits, emissions = scores.unit_logits_uc, scores.emissions_ty
        shares = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return Raw(
            input_ids=scores.sequence.input_ids_t if scores else nothing.astype(np.int64),
            token_offsets=(
                bundle.encoder.token_offsets(scores.encoded) if scores else nothing.reshape(0, 2)
            ),
            unit_starts=scores.units.start_step_u if scores else nothing,
            unit_ends=scores.units.end_step_u if scores else nothing,
            unit_probs=shares / shares.sum(axis=1, keepdims=True),
            unit_logits=logits,
            emissions=emissions,
            classes=manifest.classes,
            tags=manifest.tags,
            image_used=self.image_used,
        )


class _Prepared(NamedTuple):
    """Posts before the engine: texts, features of their pictures, what was wrong with those."""

    texts: list[EncodedText | InputError]
    features: list[ImageFeatures | None]
    warnings: list[tuple[Problem, ...]]


class Pipeline:
    """Everything before decoding. Safe for several threads."""

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        *,
        variant: Variant | None = None,
        threads: int = 1,
        image_cache_bytes: int = 0,
        pictures: "Pipeline | None" = None,
    ) -> None:
        """Join a bundle and a provider.

        Args:
            bundle: The bundle.
            provider: Runs its graphs.
            variant: What the provider runs; None for a provider that is not of the bundle.
            threads: Pictures decoded at a time.
            image_cache_bytes: Budget of the picture cache.
            pictures: Whose encoded pictures to use, as its provider encodes for both; None for a
                cache of its own.
        """
        self.bundle, self.provider = bundle, provider
        # Asked once: a check of a protocol takes as long as scoring a word.
        self._decodes_itself = isinstance(provider, DecodesItself)
        if pictures is None:
            self.images = ImageCache(image_cache_bytes)
            manifest = bundle.manifest
            graph = bundle.graph_hash(variant, "image") if variant else ""
            preprocessing = manifest.image.preprocessing_hash()
            self._image_key = (preprocessing, graph, provider.name, provider.precision)
        else:
            self.images, self._image_key = pictures.images, pictures._image_key
        self._workers = ThreadPoolExecutor(threads, "amlr-image") if threads > 1 else None
        # Whether chunks may be in work beside each other; a device needs no core of its own.
        self.overlaps = self._decodes_itself or threads < usable_cores()

    def close(self) -> None:
        """Free the cache and the helper threads."""
        self.images.reset()
        if self._workers:
            self._workers.shutdown(wait=False)

    def score(self, posts: Sequence[Post], *, every: bool = False) -> Iterator[ScoredPost]:
        """Score posts in order, a bounded number at a time.

        Args:
            posts: Any number.
            every: All units instead of the word-aligned ones.
        """
        for chunk in self.score_chunks(posts, every=every):
            yield from chunk

    def score_chunks(
        self,
        posts: Sequence[Post],
        *,
        every: bool = False,
        decode: DecoderSettings | None = None,
        radii: Mapping[str, Radii] | None = None,
    ) -> Iterator[list[ScoredPost]]:
        """As `score`, a chunk at a time, so that the caller need not hold all raw scores.

        Args:
            posts: Any number.
            every: All units instead of the word-aligned ones.
            decode: Where the provider can decode by these itself, posts of one window come with
                entities instead of scores.
            radii: By kind of post: entities must then come with their certificates.
        """
        decoder = None
        if decode is not None and self._decodes_itself:
            decoder = own_decoder(self.provider, decode, radii)
        chunks = [posts[start:stop] for start, stop in post_chunks(posts)]
        overlaps = self.overlaps and len(chunks) > 1
        scored = self._scored(chunks, every, decoder, overlaps)
        # While the caller decodes a chunk, the next is scored and the one after that prepared.
        yield from ahead(scored) if overlaps else scored

    def _scored(
        self,
        chunks: Sequence[Sequence[Post]],
        every: bool,
        decode: Decode | None,
        overlaps: bool,
    ) -> Generator[list[ScoredPost]]:
        prepared = (self._prepare(chunk) for chunk in chunks)
        with closing(ahead(prepared) if overlaps else prepared) as ready:
            for chunk in ready:
                yield self._score_prepared(chunk, every, decode)

    def _prepare(self, posts: Sequence[Post]) -> _Prepared:
        """Texts and pictures of posts that are in work together."""
        texts = self._encode_texts(posts)
        with_image = [
            index
            for index, (post, text) in enumerate(zip(posts, texts, strict=True))
            if isinstance(text, EncodedText) and text.windows and post.image is not None
        ]
        features: list[ImageFeatures | None] = [None] * len(posts)
        warnings: list[tuple[Problem, ...]] = [()] * len(posts)
        step = max(CHUNK_IMAGES, self.provider.batch_sizes.pictures)
        for start in range(0, len(with_image), step):
            group = with_image[start : start + step]
            outcomes = self.encode_images([posts[index].image for index in group])
            for index, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, AmlrError):
                    warnings[index] = (problem(outcome),)
                else:
                    features[index] = outcome
        return _Prepared(texts, features, warnings)

    def _score_prepared(
        self, prepared: _Prepared, every: bool, decode: Decode | None
    ) -> list[ScoredPost]:
        texts, features, warnings = prepared
        merged = score_texts(
            self.bundle, self.provider, texts, features, every=every, decode=decode
        )
        return [
            ScoredPost(scores=None, error=text)
            if isinstance(text, AmlrError)
            else ScoredPost(scores=None, warnings=warnings[index], error=scores)
            if isinstance(scores, AmlrError)
            else ScoredPost(
                scores=scores if isinstance(scores, PostScores) else None,
                decoded=scores if isinstance(scores, DecodedPost) else None,
                image_used=features[index] is not None,
                warnings=warnings[index],
            )
            for index, (text, scores) in enumerate(zip(texts, merged, strict=True))
        ]

    def _encode_texts(self, posts: Sequence[Any]) -> list[EncodedText | InputError]:
        results: list[EncodedText | InputError] = []
        prepared = []
        for post in posts:
            try:
                if not isinstance(post, Post):
                    kind = type(post).__name__
                    raise InputError(f"expected a Post, got {kind}", "post_invalid")
                prepared.append(self.bundle.encoder.prepare(post.text, post.words))
                results.append(_PENDING)
            except InputError as error:
                results.append(error)
        encoded = iter(self.bundle.encoder.encode_prepared(prepared))
        return [next(encoded) if item is _PENDING else item for item in results]

    # Pictures --------------------------------------------------------------------------------

    def encode_images(self, sources: Sequence[Any]) -> list[ImageFeatures | AmlrError]:
        """Encoded pictures, from the cache where it has them; an error where one is unusable."""
        contents = self._map(self._read, sources)
        readable = [i for i, content in enumerate(contents) if not isinstance(content, AmlrError)]

        def compute(positions: list[int]) -> list[ImageFeatures | AmlrError]:
            return self._compute([contents[readable[position]] for position in positions])

        keys = [(contents[i][0], *self._image_key) for i in readable]
        found = self.images.get_many(keys, compute, lambda value: int(value.nbytes))
        results = list(contents)
        for index, outcome in zip(readable, found, strict=True):
            results[index] = outcome
        return results

    def _read(self, source: Any) -> "tuple[str, Any] | InputError":
        """Key of a picture and its content; in its place the path of a file whose key is known."""
        images, limits = self.images, self.bundle.manifest.limits
        try:
            return read_keyed(
                source, limits, images.files, lambda key: images.holds((key, *self._image_key))
            )
        except InputError as error:
            return error

    def _decode(self, keyed: tuple[str, Any]) -> "npt.NDArray[np.float32] | InputError":
        manifest = self.bundle.manifest
        key, content = keyed
        try:
            if isinstance(content, (str, Path)):
                # Its features left the cache since the key was looked up.
                read_key, content = read_keyed(content, manifest.limits, None)
                if read_key != key:
                    raise InputError(
                        "the picture file changed while it was read; tag the post again",
                        "image_unreadable",
                    )
            return decode_pixels(content, manifest.image, manifest.limits)
        except InputError as error:
            return error

    def _compute(self, contents: Sequence[tuple[str, Any]]) -> list[ImageFeatures | AmlrError]:
        results: list[Any] = self._map(self._decode, contents)
        good = [i for i, pixels in enumerate(results) if not isinstance(pixels, AmlrError)]
        size = self.provider.batch_sizes.pictures
        for start in range(0, len(good), size):
            group = good[start : start + size]
            encoded = self.provider.encode_images(np.stack([results[i] for i in group]))
            for index, features in zip(group, encoded, strict=True):
                results[index] = features
        return results

    def _map(self, function: Any, items: Sequence[Any]) -> list[Any]:
        if self._workers is None or len(items) < 2:
            return [function(item) for item in items]
        try:
            return list(self._workers.map(function, items))
        except RuntimeError:  # closed by another thread meanwhile; this call may still finish
            return [function(item) for item in items]


def ahead(items: Generator[T]) -> Generator[T]:
    """The items of a generator, each made by a helper thread while the caller uses the one before.

    Order and errors are those of the generator, and at most one item waits. A caller that leaves
    early waits for the item under way.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(1, "amlr-ahead") as helper:
        following = helper.submit(next, items, end)
        while (item := following.result()) is not end:
            following = helper.submit(next, items, end)
            yield cast("T", item)


def post_chunks(posts: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Bounds of runs of posts that are few enough and short enough to be in work together."""
    start = chars = 0
    for index, post in enumerate(posts):
        size = len(post.text) if isinstance(getattr(post, "text", None), str) else 0
        if index > start and (index - start == CHUNK_POSTS or chars + size > CHUNK_CHARS):
            yield start, index
            start, chars = index, 0
        chars += size
    if len(posts) > start:
        yield start, len(posts)


_PENDING = InputError("not yet tokenized")
