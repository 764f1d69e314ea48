"""How posts become answers: always with their pictures, or only where the text has not decided.

The third way, low precision whose answers are certified, is `amlr.runtime.certified`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from amlr.errors import BundleError
from amlr.runtime.decode import Decoder
from amlr.runtime.manifest import Manifest
from amlr.runtime.pipeline import Pipeline, ScoredPost
from amlr.runtime.results import Entity, Post, Problem

NOT_NEEDED = Problem(
    code="image_not_needed", message="the text alone decided; the picture was not looked at"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a strategy found for one post, before it becomes entities.

    Attributes:
        scored: Scores or entities, or why there are none.
        provider: The tier that gave it.
        precision: Of this tier.
        entities: Where the strategy had to decode anyway.
        certified: True where a low-precision answer was certified equal to float32's, else None.
    """

    scored: ScoredPost
    provider: str
    precision: str
    entities: tuple[Entity, ...] | None = None
    certified: bool | None = None


class Strategy(Protocol):
    """Answers posts on one or two tiers.

    Attributes:
        precision: Of its tiers, for people.
        first: Sees every post first.
        pictures: Encodes new pictures.
    """

    precision: str
    first: Pipeline
    pictures: Pipeline

    def answers(self, posts: Sequence[Post], decoder: Decoder) -> Iterator[list[Answer]]:
        """Answers in order, a chunk at a time, so that the caller need not hold all raw scores."""

    def scores(self, post: Post, decoder: Decoder) -> ScoredPost:
        """Raw float32 scores of one post, read with its picture where its answer was."""

    def exact(self) -> Pipeline:
        """What gives raw scores: float32 where there are two tiers."""

    def close(self) -> None:
        """Release what it holds besides the engine's own pipeline."""


class Always:
    """One tier looks at every post and every picture."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Answer through a pipeline, which its owner closes."""
        self.first = self.pictures = self._pipeline = pipeline
        self.precision = pipeline.provider.precision

    def answers(self, posts: Sequence[Post], decoder: Decoder) -> Iterator[list[Answer]]:
        """Answers in order."""
        for chunk in self._pipeline.score_chunks(posts, decode=decoder.settings):
            yield _answers(chunk, self._pipeline)

    def scores(self, post: Post, decoder: Decoder) -> ScoredPost:
        """Raw scores of one post."""
        return next(self._pipeline.score([post]))

    def exact(self) -> Pipeline:
        """The one pipeline."""
        return self._pipeline

    def close(self) -> None:
        """The pipeline is its owner's."""


class WhenNeeded(Always):
    """A post is first read without its picture.

    If its answer leads every other by more than the margin that the export measured, the picture is
    not encoded and the result says so; else the post is read again with it. Some answers do change:
    the export chose the margin for a budget of them.
    """

    def __init__(self, pipeline: Pipeline, least_margin: float) -> None:
        """Answer through a pipeline, which its owner closes.

        Args:
            pipeline: Scores posts.
            least_margin: Margin from which on the picture is left out.
        """
        super().__init__(pipeline)
        self._least_margin = least_margin

    def answers(self, posts: Sequence[Post], decoder: Decoder) -> Iterator[list[Answer]]:
        """Answers in order."""
        bare = [replace(p, image=None) if isinstance(p, Post) else p for p in posts]
        start = 0
        for chunk in self._pipeline.score_chunks(bare):
            originals = posts[start : start + len(chunk)]
            start += len(chunk)
            shown = [i for i, s in enumerate(chunk) if s.scores and originals[i].image is not None]
            margins = decoder.margins([s for i in shown if (s := chunk[i].scores) is not None])
            again = [i for i, m in zip(shown, margins, strict=True) if not m > self._least_margin]
            for i in set(shown) - set(again):
                chunk[i] = replace(chunk[i], warnings=(NOT_NEEDED,))
            seen = self._pipeline.score([originals[i] for i in again])
            for i, scored in zip(again, seen, strict=True):
                chunk[i] = scored
            yield _answers(chunk, self._pipeline)

    def scores(self, post: Post, decoder: Decoder) -> ScoredPost:
        """Raw scores of one post."""
        ((answer,),) = self.answers([post], decoder)
        return answer.scored


def _answers(chunk: Sequence[ScoredPost], pipeline: Pipeline) -> list[Answer]:
    tier = pipeline.provider
    return [Answer(scored=post, provider=tier.name, precision=tier.precision) for post in chunk]


def measured_margin(manifest: Manifest) -> float:
    """Margin above which pictures may be left out, as the export measured it.

    Raises:
        BundleError: It did not.
    """
    record = manifest.variants["fp32"].parity.get("when_needed", {})
    if not isinstance(record.get("margin"), int | float):
        raise BundleError(
            'this bundle has no margin for image="when-needed"; export it with '
            "amlr-export --precision and --calib posts that have pictures"
        )
    return float(record["margin"])
