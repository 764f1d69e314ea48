"""The fastest of several tiers on this host: timed once, remembered, and said.

On one CPU bfloat16 wins, on the next it has no instructions for it, and for one post alone another
library than for a batch; no record made elsewhere can tell. All candidates give float32's entities:
they are float32, or a low tier whose answers are certified (or the user has allowed changes), so
only time decides.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from amlr.runtime.bundle import Bundle
from amlr.runtime.certified import Certified
from amlr.runtime.manifest import Variant
from amlr.runtime.options import EngineOptions
from amlr.runtime.providers.registry import CPUS
from amlr.runtime.radii import PICTURE, TEXT
from amlr.runtime.results import Post
from amlr.runtime.strategies import Strategy
from amlr.runtime.tier_memory import Memory
from amlr.runtime.tier_timing import BATCH_POSTS, Choice, Contestant, TierTime, time_tiers
from amlr.runtime.tiers import (
    Skipped,
    Tier,
    kinds_in_float32,
    open_first,
    reason_of,
    try_tier,
)

if TYPE_CHECKING:
    from amlr.runtime.engine import Engine

# For each tier; three runs of everything are always made.
TIMING_S = 0.1
# With `max_changed` many variants may serve; by the export's record the others are slower.
MOST_TIMED = 4
# A later candidate must be faster by more than timing noise.
CLEARLY_FASTER = 0.95
_FLOAT32 = "fp32"
_KINDS = (TEXT, PICTURE)
E = TypeVar("E", bound="Engine")


def open_fastest(
    bundle: Bundle,
    tiers: Sequence[Tier],
    low_tiers: Sequence[Tier],
    options: EngineOptions,
    *,
    open_tier: Callable[[Tier, bool], E],
    put_first: Callable[[E, Tier, bool], Certified],
) -> tuple[E, Choice, tuple[Skipped, ...]]:
    """Open the first device that serves, or else what is fastest on CPUs.

    Args:
        bundle: Their bundle.
        tiers: What may serve alone, in order of preference, devices first.
        low_tiers: What may answer before float32 does.
        options: Of the engine.
        open_tier: Opens one; checks it at once, or leaves that to its first use.
        put_first: Puts a low tier before an engine's float32; the flag says whether that is
            checked already.

    Returns:
        The engine, the record of the choice, and the tiers not taken.

    Raises:
        AmlrError: As `open_first`.
    """
    skipped: list[Skipped] = []
    race = _Race(bundle, options, skipped)

    def open_checked(tier: Tier) -> E:
        return open_tier(tier, True)

    cpus = [tier for tier in tiers if tier.provider in CPUS]
    devices = [tier for tier in tiers if tier not in cpus]
    engine = race.device(devices, open_checked, has_more=bool(cpus))
    if engine is not None:
        low = race.low(engine, low_tiers, put_first)
        return engine, race.choice(tiers, low), tuple(skipped)
    cpus, slow = _quickest_by_record(cpus)
    skipped += slow
    memory = Memory(bundle, [*cpus, *low_tiers], options)
    # A device may be there today that was not there when the choice was made.
    remembered = memory.recall() if all(t.provider in CPUS for t in low_tiers) else None
    if remembered is not None:
        tier, low, choice = remembered
        opened = try_tier(
            bundle, tier, lambda tier: _reopen(tier, low, choice, open_tier, put_first)
        )
        if not isinstance(opened, Exception):
            others = [t for t in (*cpus, *low_tiers) if t is not tier and t is not low]
            skipped += [other.passed_over("slower when it was timed") for other in others]
            return opened, choice, tuple(skipped)
        # What served once no longer does: a library was changed under the same version.
    engine = race.float32(cpus, open_checked)
    low = race.low(engine, low_tiers, put_first)
    choice = race.choice(tiers, low)
    memory.keep(race.tier, low, choice)
    return engine, choice, tuple(skipped)


def _reopen(
    tier: Tier,
    low: Tier | None,
    choice: Choice,
    open_tier: Callable[[Tier, bool], E],
    put_first: Callable[[E, Tier, bool], Certified],
) -> E:
    """Open what was chosen before; behind a low tier, float32 is checked at its first post."""
    engine = open_tier(tier, low is None)
    if low is not None:
        try:
            certified = put_first(engine, low, False)
            certified.least_posts = choice.least_posts
            certified.restrict_to(choice.kinds)
            engine.strategy = certified
        except BaseException:
            engine.close()
            raise
    return engine


class _Race:
    """One candidate after another; the best so far and one other are in memory."""

    def __init__(self, bundle: Bundle, options: EngineOptions, skipped: list[Skipped]) -> None:
        self._bundle, self._options, self._skipped = bundle, options, skipped
        self._times: dict[tuple[str, str], TierTime] = {}
        self._least_posts = 1
        self._kinds: tuple[str, ...] = ()
        self.tier: Tier

    def device(
        self, tiers: Sequence[Tier], open_tier: Callable[[Tier], E], *, has_more: bool
    ) -> E | None:
        """The first device that serves; None where there is none and others may be tried."""
        if not has_more and tiers:
            self.tier, engine = open_first(self._bundle, tiers, open_tier, self._skipped)
            return engine
        for tier in tiers:
            opened = try_tier(self._bundle, tier, open_tier)
            if not isinstance(opened, Exception):
                self.tier = tier
                return opened
            self._skipped.append(tier.passed_over(reason_of(opened)))
        return None

    def float32(self, tiers: Sequence[Tier], open_tier: Callable[[Tier], E]) -> E:
        """The fastest tier of the CPU that serves alone."""
        self.tier, engine = open_first(self._bundle, tiers, open_tier, self._skipped)
        if not self._bundle.golden:
            return engine
        for other in tiers[tiers.index(self.tier) + 1 :]:
            try:
                opened = try_tier(self._bundle, other, open_tier)
            except BaseException:
                engine.close()
                raise
            if isinstance(opened, Exception):
                self._skipped.append(other.passed_over(reason_of(opened)))
                continue
            best, measured = self._time(
                _contestant(self.tier, engine, engine.strategy),
                _contestant(other, opened, opened.strategy),
            )
            if measured.ratio_to(best) < CLEARLY_FASTER:
                engine.close()
                self._skipped.append(self.tier.passed_over(f"slower here: {best}"))
                self.tier, engine = other, opened
            else:
                opened.close()
                self._skipped.append(other.passed_over(f"not clearly faster here: {measured}"))
        return engine

    def low(
        self,
        engine: E,
        tiers: Sequence[Tier],
        put_first: Callable[[E, Tier, bool], Certified],
    ) -> Tier | None:
        """Put the low tier before float32 with which it is fastest; None leaves float32 alone."""
        must, taken, failures = self._options.escalates, None, []
        float32, share = engine.strategy, 1.0
        for tier in tiers:
            try:
                opened = try_tier(self._bundle, tier, lambda tier: put_first(engine, tier, True))
            except BaseException:
                engine.close()
                raise
            if isinstance(opened, Exception):
                failures.append(opened)
                self._skipped.append(tier.passed_over(reason_of(opened)))
                continue
            kinds = tuple(kind for kind in _KINDS if kind in opened.radii)
            is_better = must and taken is None
            if self._bundle.golden:
                alone, measured = self._time_low(engine, float32, opened, tier)
                shares = _shares_of_time(alone, measured, tier.variant)
                if not must:
                    kinds = tuple(kind for kind in kinds if shares[kind] < CLEARLY_FASTER)
                measured = measured.plus(expected_climbs(tier.variant, kinds), alone)
                self._times[tier.provider, tier.name] = measured
                share_here = sum(shares[k] if k in kinds else 1.0 for k in _KINDS) / len(_KINDS)
                is_better = is_better or share_here < CLEARLY_FASTER * share
                if is_better:
                    share = share_here
                    # One post alone may take as long in low precision as in float32.
                    is_worth_it = measured.alone_ms < CLEARLY_FASTER * alone.alone_ms
                    opened.least_posts = 1 if must or is_worth_it else BATCH_POSTS
                else:
                    reason = f"not clearly faster here: {measured}"
                    self._skipped.append(tier.passed_over(reason))
            if is_better:
                opened.restrict_to(kinds)
                engine.strategy.close()
                engine.strategy, taken = opened, tier
                self._least_posts, self._kinds = opened.least_posts, kinds
            else:
                opened.close()
        if must and taken is None:
            engine.close()
            raise failures[0]
        return taken

    def choice(self, tiers: Sequence[Tier], low: Tier | None) -> Choice:
        """The record of what was taken."""
        reason = f"fastest of {len(self._times)} timed here"
        if len(self._times) < 2:
            reason = "the only one asked for" if len(tiers) == 1 else "the only one that opened"
        precision = self.tier.variant.precision
        if low is not None:
            precision = f"{low.variant.precision}+{precision}"
            reason = describe_low(low, self.tier, self._kinds) + reason
            reason += kinds_in_float32(low.variant, self._kinds)
            if self._least_posts > 1:
                reason += f"; calls of fewer than {self._least_posts} posts in float32"
        return Choice(
            provider=self.tier.provider,
            precision=precision,
            reason=reason,
            times=tuple(self._times.values()) if len(self._times) > 1 else (),
            least_posts=self._least_posts,
            kinds=self._kinds,
        )

    def _time(self, *contestants: Contestant) -> list[TierTime]:
        pictures = self._options.checks_pictures
        times = time_tiers(contestants, self._bundle, TIMING_S, pictures=pictures)
        for (tier, _, _), measured in zip(contestants, times, strict=True):
            self._times[tier.provider, tier.name] = measured
        return times

    def _time_low(
        self, engine: "Engine", float32: Strategy, certified: Certified, tier: Tier
    ) -> tuple[TierTime, TierTime]:
        """Time float32, and beside it a low tier as if nothing climbed.

        The few golden posts cannot tell what share climbs; that is on the bundle's record.
        """
        before = engine.strategy
        low = _contestant(tier, engine, certified)
        if certified.pictures is float32.pictures:
            low = low._replace(encode=None)
        with certified.without_climbing():
            alone, measured = self._time(_contestant(self.tier, engine, float32), low)
        engine.strategy = before
        if low.encode is None:
            measured = replace(measured, picture_ms=alone.picture_ms)
        return alone, measured


def _contestant(tier: Tier, engine: "Engine", strategy: Strategy) -> Contestant:
    def tag(posts: Sequence[Post]) -> Any:
        engine.strategy = strategy
        return engine.tag_batch(posts)

    return Contestant(tier, tag, strategy.pictures.provider.encode_images)


def describe_low(low: Tier, tier: Tier, kinds: Collection[str]) -> str:
    """How two tiers serve posts of some kinds together, for people."""
    return (
        f"{low.variant.precision} on {low.provider} first, float32 on {tier.provider} for the "
        f"{100 * expected_climbs(low.variant, kinds):.0f} % whose answers are not certified: "
    )


def expected_climbs(variant: Variant, kinds: Collection[str]) -> float:
    """Share of posts whose answers are not certified, as the export found it on unseen posts.

    Args:
        variant: What the low tier runs.
        kinds: Of the posts; all where none is given.
    """
    records = variant.parity.get("certificates") or {}
    of_kinds = [records[k] for k in _KINDS if k in records and (k in kinds or not kinds)]
    posts = sum(record["posts"] for record in of_kinds)
    certified = sum(record["certified"] * record["posts"] for record in of_kinds)
    return 1.0 - certified / posts if posts else 1.0


def _shares_of_time(float32: TierTime, low: TierTime, variant: Variant) -> dict[str, float]:
    """What share of float32's time posts take in batches, low precision first, by their kind."""
    share = low.batch_ms / float32.batch_ms
    shares = {kind: share + expected_climbs(variant, [kind]) for kind in _KINDS}
    if CLEARLY_FASTER * low.picture_ms > float32.picture_ms:
        # What known pictures gain, new ones would lose.
        shares[PICTURE] = math.inf
    return shares


def _quickest_by_record(tiers: Sequence[Tier]) -> tuple[list[Tier], list[Skipped]]:
    """Tiers worth timing in their order, float32 first, so that nothing slower is taken unseen."""
    ordered = sorted(tiers, key=lambda tier: (not _is_float32(tier), _recorded(tier)))
    kept = [*ordered[:MOST_TIMED], *(t for t in ordered[MOST_TIMED:] if _is_float32(t))]
    others = [tier for tier in ordered if tier not in kept]
    return kept, [tier.passed_over("not timed: slower by the bundle's record") for tier in others]


def _is_float32(tier: Tier) -> bool:
    return tier.variant.precision == _FLOAT32


def _recorded(tier: Tier) -> float:
    """What the export measured; decides only which tiers are timed."""
    ms = tier.variant.parity.get("ms_per_post")
    return float(ms) if isinstance(ms, int | float) else math.inf
