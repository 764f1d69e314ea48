"""How fast a tier is on this host, and the record of it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post
from amlr.runtime.tiers import Skipped, Tier

BATCH_POSTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTime:
    """Milliseconds of one tier; the smallest of a few runs.

    Attributes:
        alone_ms: A post by itself, pictures known.
        batch_ms: A post in a batch of eight, pictures known.
        picture_ms: A new picture, decoding its file not counted; 0 where pictures were not timed.
    """

    provider: str
    precision: str
    alone_ms: float
    batch_ms: float
    picture_ms: float

    def ratio_to(self, other: "TierTime") -> float:
        """Geometric mean of three ratios: a post alone, a post in a batch, a new picture.

        Each counts alike, as nobody knows yet which of them a user will have.
        """
        pairs = [
            (self.alone_ms, other.alone_ms),
            (self.batch_ms, other.batch_ms),
            (self.picture_ms, other.picture_ms),
        ]
        ratios = [mine / theirs for mine, theirs in pairs if mine and theirs]
        return math.prod(ratios) ** (1 / max(1, len(ratios)))

    def plus(self, climbs: float, other: "TierTime") -> "TierTime":
        """What a post costs of which a share is computed again on another tier, pictures known."""
        return replace(
            self,
            precision=f"{self.precision}+{other.precision}",
            alone_ms=round(self.alone_ms + climbs * other.alone_ms, 3),
            batch_ms=round(self.batch_ms + climbs * other.batch_ms, 3),
        )

    def __str__(self) -> str:
        """One phrase for people."""
        return (
            f"{self.provider} {self.precision}: {self.alone_ms:.2f} ms a post alone, "
            f"{self.batch_ms:.2f} in a batch, {self.picture_ms:.2f} a picture"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which tier serves, and why.

    Attributes:
        provider: Its provider.
        precision: Its precision.
        reason: For people.
        times: What was measured; empty where there was nothing to choose between.
        least_posts: Calls of fewer posts go to float32 at once, which is faster for them.
        kinds: Kinds of posts (`amlr.runtime.radii`) that low precision answers first.
    """

    provider: str
    precision: str
    reason: str
    times: tuple[TierTime, ...] = ()
    least_posts: int = 1
    kinds: tuple[str, ...] = ()


def describe_choice(choice: Choice, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines for people: which tier serves, what was timed, what was passed over."""
    yield f"tier: {choice.provider} {choice.precision} ({choice.reason})"
    for item in choice.times:
        yield f"  timed: {item}"
    for other in skipped:
        yield f"  not {other.provider} {other.precision}: {other.reason}"


class Contestant(NamedTuple):
    """A tier that is timed.

    Attributes:
        tier: What the record names.
        tag: Answers posts on it.
        encode: Encodes pictures on it; None where pictures are not timed.
    """

    tier: Tier
    tag: Callable[[Sequence[Post]], Any]
    encode: Callable[[Any], Any] | None


def time_tiers(
    contestants: Sequence[Contestant], bundle: Bundle, seconds: float, *, pictures: bool
) -> list[TierTime]:
    """Time tiers on the golden posts, in turns, so that a busy moment meets all of them.

    Args:
        contestants: What to time.
        bundle: Whose golden posts to run.
        seconds: About how long for each; three runs of everything are always made.
        pictures: Whether to run posts with their pictures.
    """
    golden = [g for g in bundle.golden if pictures or g.image is None] or list(bundle.golden)
    # Golden posts are short; three in one are about as long as a post.
    rows = [[golden[(row + more) % len(golden)] for more in range(3)] for row in range(len(golden))]
    posts = [
        Post(" ".join(g.text for g in three), three[0].image if pictures else None)
        for three in rows
    ]
    batch = (posts * BATCH_POSTS)[:BATCH_POSTS]
    alone = sorted(posts, key=lambda post: len(post.text))[len(posts) // 2]
    pixels = next((g.pixels_chw for g in golden if pictures and g.pixels_chw is not None), None)
    calls: list[tuple[int, int, Callable[[], Any]]] = [
        (row, place, partial(each.tag, part))
        for place, part in enumerate(([alone], batch))
        for row, each in enumerate(contestants)
    ]
    if pixels is not None:
        calls += [
            (row, 2, partial(each.encode, pixels[None]))
            for row, each in enumerate(contestants)
            if each.encode is not None
        ]
    shortest = np.full((len(contestants), 3), math.inf)
    end = time.perf_counter() + seconds * len(contestants)
    rounds = 0
    # The first round meets new shapes, and pictures that are not known yet.
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for row, place, call in calls:
            start = time.perf_counter()
            call()
            # The smallest: whatever else runs on the machine only adds.
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            shortest[row, place] = min(shortest[row, place], elapsed_ms)
    return [
        TierTime(
            provider=tier.provider,
            precision=tier.variant.precision,
            alone_ms=round(float(times[0]), 3),
            batch_ms=round(float(times[1]) / len(batch), 3),
            picture_ms=round(float(times[2]), 3) if math.isfinite(times[2]) else 0.0,
        )
        for (tier, _, _), times in zip(contestants, shortest, strict=True)
    ]
