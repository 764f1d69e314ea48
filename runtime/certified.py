"""Low precision first, float32 where an answer is not certain: float32's entities for less work.

Three stages. The low tier answers; what its certificate clears is returned. The rest, where there
is a picture, get float32 text and fusion on the picture the low tier already encoded; what a second
certificate, with the radii of that picture alone, clears is returned. What is left is computed in
float32 altogether, and so are posts that are not like those of the calibration (`Radii.covers`).

Radii are measured, so they may be wrong for what nobody measured. A sentinel therefore computes a
small share of the certified answers again, and takes the low tier out of service if one differs.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import Batch, Scores
from amlr.runtime.decode import Decoder
from amlr.runtime.joined_calls import JoinedCalls
from amlr.runtime.pipeline import Pipeline, ScoredPost, ahead, post_chunks
from amlr.runtime.providers.base import ImageFeatures, Provider
from amlr.runtime.radii import PICTURE, PICTURE_ONLY, TEXT, Radii
from amlr.runtime.results import Entity, Post
from amlr.runtime.sentinel import Sentinel
from amlr.runtime.strategies import Answer
from amlr.runtime.text import EncodedText
from amlr.runtime.windows import PostScores

LOG = logging.getLogger("amlr.runtime")
Scorer = Callable[[Sequence[Post]], list[ScoredPost]]
LOW, MIDDLE, EXACT = STAGES = ("low", "picture", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedStats:
    """What became of the posts since the engine was loaded.

    Attributes:
        low: Posts certified in low precision.
        picture: Posts certified in float32 on the low-precision picture.
        exact: Posts computed in float32 altogether.
        checked: Certified answers that the sentinel computed again.
        changed: Of these, answers whose entities differed.
        beyond: Of these, posts with an error beyond its radius.
        in_service: Whether the low tier still answers.
    """

    low: int = 0
    picture: int = 0
    exact: int = 0
    checked: int = 0
    changed: int = 0
    beyond: int = 0
    in_service: bool = True

    def __str__(self) -> str:
        """One line for people."""
        posts = max(1, self.low + self.picture + self.exact)
        state = "" if self.in_service else "; the low tier is out of service"
        return (
            f"certified: {100 * self.low / posts:.1f} % of the posts in low precision, "
            f"{100 * self.picture / posts:.1f} % on its picture; {self.checked} checked, "
            f"{self.changed} changed, {self.beyond} beyond the radius{state}"
        )


class Certified:
    """Two tiers whose answers are float32's.

    Attributes:
        precision: Of both tiers.
        radii: Of the low tier, by kind of post; kinds that are missing go to float32.
        first: Sees every post first.
        pictures: Encodes new pictures.
        least_posts: Calls of fewer posts go to float32 at once.
    """

    def __init__(
        self,
        exact: Pipeline,
        low: Pipeline,
        radii: Mapping[str, Radii],
        *,
        sentinel: float = 0.0,
        callers: int = 1,
        prepare_exact: Callable[[], None] | None = None,
    ) -> None:
        """Join two tiers.

        Args:
            exact: The float32 tier; its owner closes it.
            low: The low tier; closed here, with its provider.
            radii: Of the low tier, by kind of post.
            sentinel: Share of certified answers that are computed again in float32.
            callers: Calls of the float32 tier that may run beside each other.
            prepare_exact: Called once, before the float32 tier is first used.
        """
        self._low = self.first = low
        self._exact = exact
        self.least_posts = 1
        self.radii = dict(radii)
        self.pictures = low if PICTURE in radii and low.images is not exact.images else exact
        names = low.provider.precision, exact.provider.precision
        self.precision = "+".join(names)
        self._tiers = {
            LOW: (low.provider.name, names[0]),
            MIDDLE: (exact.provider.name, self.precision),
            EXACT: (exact.provider.name, names[1]),
        }
        # The picture of the middle stage is the low tier's, so the two share one cache of them.
        mixed = MixedProvider(low.provider, exact.provider)
        middle = Pipeline(exact.bundle, mixed, pictures=low)
        # Few posts of each call climb: those of calls that wait for each other share a batch.
        self._scorers: dict[str, Scorer] = {
            LOW: _scorer(low),
            MIDDLE: JoinedCalls(_scorer(middle), at_a_time=callers),
            EXACT: JoinedCalls(_scorer(exact), at_a_time=callers),
        }
        self._prepare_exact = prepare_exact
        self._preparing, self._lock = threading.Lock(), threading.Lock()
        self._sentinel = Sentinel(sentinel)
        self._counts = dict.fromkeys(STAGES, 0)

    @property
    def stats(self) -> CertifiedStats:
        """What became of the posts so far."""
        with self._lock:
            return CertifiedStats(
                **self._counts, **self._sentinel.counts(), in_service=bool(self.radii)
            )

    def reset(self) -> None:
        """Start counting anew: posts of a check or a timing are nobody's."""
        with self._lock:
            self._counts = dict.fromkeys(STAGES, 0)
        self._sentinel.reset()

    def restrict_to(self, kinds: Collection[str]) -> None:
        """Leave posts of other kinds to float32, which is faster for them."""
        needs = {PICTURE_ONLY: PICTURE}
        self.radii = {k: radii for k, radii in self.radii.items() if needs.get(k, k) in kinds}
        if PICTURE not in kinds:
            self.pictures = self._exact

    @contextmanager
    def without_climbing(self) -> Iterator[None]:
        """Certify everything, to time the low tier alone; nothing is watched or counted."""
        radii, sentinel = self.radii, self._sentinel
        nothing = _Anything(units=0.0, tokens=0.0, posts=0, steps=0, blocks=frozenset())
        self.radii = dict.fromkeys(radii, nothing)
        self._sentinel = Sentinel(0.0)
        try:
            yield
        finally:
            self.radii, self._sentinel = radii, sentinel
            self.reset()

    def close(self) -> None:
        """Release the low tier."""
        self._low.close()
        self._low.provider.close()

    def scores(self, post: Post, decoder: Decoder) -> ScoredPost:
        """Raw float32 scores of one post."""
        return self._score(EXACT, [post])[0]

    def answers(self, posts: Sequence[Post], decoder: Decoder) -> Iterator[list[Answer]]:
        """Answers in order."""
        chunks = [posts[start:stop] for start, stop in post_chunks(posts)]
        scored = ((chunk, self._low_scores(chunk, decoder)) for chunk in chunks)
        overlaps = self.first.overlaps and len(chunks) > 1
        # While a chunk is certified and climbs, low precision reads the next.
        with closing(ahead(scored) if overlaps else scored) as ready:
            for chunk, low in ready:
                yield self._chunk(chunk, low, decoder)

    def _radii_for(self, posts: Sequence[Post]) -> Mapping[str, Radii]:
        return self.radii if len(posts) >= self.least_posts else {}

    def _low_scores(self, posts: Sequence[Post], decoder: Decoder) -> dict[int, ScoredPost]:
        """What low precision says of the posts, by place, that it may answer.

        These are scores, or entities and certificates where the tier's provider finds both itself.
        """
        radii = self._radii_for(posts)
        rows = _rows_for_low(posts, radii)
        chosen = [posts[row] for row in rows]
        chunks = self._low.score_chunks(chosen, decode=decoder.settings, radii=radii)
        return dict(zip(rows, chain.from_iterable(chunks), strict=True))

    def _chunk(
        self, posts: Sequence[Post], low: Mapping[int, ScoredPost], decoder: Decoder
    ) -> list[Answer]:
        # Read again: the low tier may have left service since it read this chunk.
        radii = self._radii_for(posts)
        answers = self._certified(low, LOW, radii, decoder)
        rows = _rows_for_middle(posts, answers, radii)
        middle = self._scores_of(MIDDLE, posts, rows)
        answers |= self._certified(middle, MIDDLE, radii, decoder)
        # What the sentinel looks at is computed together with what climbs.
        checked = self._sentinel.choose([row for row, (_, a) in answers.items() if a.certified])
        rows = [row for row in range(len(posts)) if row not in answers] + checked
        for row, post in self._scores_of(EXACT, posts, rows).items():
            if row in checked:
                stage, answer = answers[row]
                low_post = answer.scored
                if low_post.decoded is not None:
                    # Its scores did not leave the device.
                    (low_post,) = self._score(LOW, [posts[row]])
                self._check(low_post, post, radii[_kind(stage, low_post)], decoder)
            answers[row] = EXACT, self._answer(post, EXACT)
        with self._lock:
            for stage, _ in answers.values():
                self._counts[stage] += 1
        return [answers[row][1] for row in range(len(posts))]

    def exact(self) -> Pipeline:
        """The float32 tier, checked."""
        if self._prepare_exact is not None:
            with self._preparing:
                if self._prepare_exact is not None:
                    self._prepare_exact()
                    self._prepare_exact = None
        return self._exact

    def _score(self, stage: str, posts: Sequence[Post]) -> list[ScoredPost]:
        if not posts:
            return []
        if stage != LOW:
            self.exact()
        return self._scorers[stage](posts)

    def _scores_of(
        self, stage: str, posts: Sequence[Post], rows: Sequence[int]
    ) -> dict[int, ScoredPost]:
        """Scores of some posts by their place."""
        return dict(zip(rows, self._score(stage, [posts[row] for row in rows]), strict=True))

    def _certified(
        self,
        scored: Mapping[int, ScoredPost],
        stage: str,
        radii: Mapping[str, Radii],
        decoder: Decoder,
    ) -> dict[int, tuple[str, Answer]]:
        """Answers that float32 would give as well, by place, each with the stage that gave it."""
        answers: dict[int, tuple[str, Answer]] = {}
        doubtful: list[tuple[int, ScoredPost, PostScores]] = []
        for row, post in scored.items():
            if post.decoded is not None:
                if post.decoded.found.certified and _kind(stage, post) in radii:
                    (decoded,) = decoder.entities([post.decoded])
                    answers[row] = stage, self._answer(post, stage, decoded)
            elif post.scores is not None and (stage == LOW or post.image_used):
                doubtful.append((row, post, post.scores))
            else:
                # Without scores there is no answer that could differ. Without a picture, or with
                # one that cannot be used, the middle stage is all float32.
                sure = EXACT if stage == MIDDLE else LOW
                answers[row] = sure, self._answer(post, sure)
        allowed = [radii.get(_kind(stage, post)) for _, post, _ in doubtful]
        entities = decoder.certified_entities(
            [scores for _, _, scores in doubtful],
            [
                r if r and r.covers(scores.encoded) else None
                for r, (_, _, scores) in zip(allowed, doubtful, strict=True)
            ],
        )
        for (row, post, _), of_post in zip(doubtful, entities, strict=True):
            if of_post is not None:
                answers[row] = stage, self._answer(post, stage, of_post)
        return answers

    def _answer(
        self, post: ScoredPost, stage: str, entities: tuple[Entity, ...] | None = None
    ) -> Answer:
        provider, precision = self._tiers[stage]
        return Answer(
            scored=post,
            provider=provider,
            precision=precision,
            entities=entities,
            certified=True if entities is not None else None,
        )

    def _check(self, low: ScoredPost, exact: ScoredPost, radii: Radii, decoder: Decoder) -> None:
        """Compare an answer with float32's; retire the low tier if it cannot be trusted."""
        if low.scores is None or exact.scores is None:
            return
        reason = self._sentinel.compare(low.scores, exact.scores, radii, decoder)
        if reason and self.radii:
            self.radii = {}
            LOG.warning("%s is out of service, float32 answers alone: %s", self._tiers[LOW], reason)


def _scorer(pipeline: Pipeline) -> Scorer:
    return lambda posts: list(pipeline.score(posts))


def _is_pictured(post: Post) -> bool:
    return isinstance(post, Post) and post.image is not None


def _rows_for_low(posts: Sequence[Post], radii: Mapping[str, Radii]) -> list[int]:
    """Posts that low precision may answer."""
    kinds = [PICTURE if _is_pictured(post) else TEXT for post in posts]
    return [row for row, kind in enumerate(kinds) if kind in radii]


def _rows_for_middle(
    posts: Sequence[Post], answers: Collection[int], radii: Mapping[str, Radii]
) -> list[int]:
    """Posts without an answer, if the picture stage may answer one of them."""
    waiting = [row for row in range(len(posts)) if row not in answers]
    if PICTURE_ONLY not in radii or not any(_is_pictured(posts[row]) for row in waiting):
        return []
    # Without a picture the middle stage is float32 already: such posts share its batch.
    return waiting


def _kind(stage: str, post: ScoredPost) -> str:
    """Whose radii hold for a post's scores."""
    if stage == MIDDLE:
        return PICTURE_ONLY
    return PICTURE if post.image_used else TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Anything(Radii):
    """Radii that hold for every post."""

    def covers(self, encoded: EncodedText) -> bool:
        """Every one."""
        return True


class MixedProvider:
    """Pictures of one provider, text and fusion of another."""

    def __init__(self, pictures: Provider, scores: Provider) -> None:
        self._pictures, self._scores = pictures, scores
        self.name, self.precision = scores.name, scores.precision
        self.batch_sizes = scores.batch_sizes

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[ImageFeatures]:
        """Pictures of the one."""
        return self._pictures.encode_images(pixels_bchw)

    def score(self, batch: Batch, images: Sequence[ImageFeatures | None]) -> Scores:
        """Scores of the other."""
        return self._scores.score(batch, images)

    def close(self) -> None:
        """The pictures' provider is its owner's."""
        self._scores.close()
