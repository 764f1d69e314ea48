"""How fast a tier is on this host, and the record of it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post
from amlr.runtime.tiers import Skipped, Tier

if TYPE_CHECKING:
    from amlr.runtime.engine import Engine

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

    @property
    def total_ms(self) -> float:
        """What is compared: one post alone, one in a batch, one new picture."""
        return self.alone_ms + self.batch_ms + self.picture_ms

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
    """

    provider: str
    precision: str
    reason: str
    times: tuple[TierTime, ...] = ()
    least_posts: int = 1


def describe_choice(choice: Choice, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines for people: which tier serves, what was timed, what was passed over."""
    yield f"tier: {choice.provider} {choice.precision} ({choice.reason})"
    for item in choice.times:
        yield f"  timed: {item}"
    for other in skipped:
        yield f"  not {other.provider} {other.precision}: {other.reason}"


def time_tier(
    engine: "Engine", bundle: Bundle, tier: Tier, seconds: float, *, pictures: bool
) -> TierTime:
    """Time one tier on the golden posts.

    Args:
        engine: Serves the tier.
        bundle: Whose golden posts to run.
        tier: For the record.
        seconds: About how long; three runs of everything are always made.
        pictures: Whether to run posts with their pictures.
    """
    golden = [g for g in bundle.golden if pictures or g.image is None] or list(bundle.golden)
    posts = [Post(g.text, g.image if pictures else None, g.words) for g in golden]
    batch = (posts * BATCH_POSTS)[:BATCH_POSTS]
    pixels = next((g.pixels_chw for g in golden if pictures and g.pixels_chw is not None), None)
    calls: list[tuple[int, Callable[[], Any]]] = [
        (1, lambda post=post: engine.tag_batch([post]))  # type: ignore[misc]
        for post in posts
    ]
    calls.append((len(batch), lambda: engine.tag_batch(batch)))
    if pixels is not None:
        calls.append((1, lambda: engine.strategy.pictures.provider.encode_images(pixels[None])))
    shortest = [math.inf] * len(calls)
    end = time.perf_counter() + seconds
    rounds = 0
    # The first round meets new shapes, and pictures that are not known yet.
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for place, (count, call) in enumerate(calls):
            start = time.perf_counter()
            call()
            # The smallest: whatever else runs on the machine only adds.
            shortest[place] = min(shortest[place], 1e3 * (time.perf_counter() - start) / count)
    return TierTime(
        provider=tier.provider,
        precision=tier.variant.precision,
        alone_ms=round(float(np.mean(shortest[: len(posts)])), 3),
        batch_ms=round(shortest[len(posts)], 3),
        picture_ms=0.0 if pixels is None else round(shortest[-1], 3),
    )
