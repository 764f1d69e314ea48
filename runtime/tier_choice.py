"""The fastest of several verified tiers on this host: timed once, remembered, and said.

On one CPU bfloat16 wins, on the next int8, and for one post alone another library than for a batch;
no record made elsewhere can tell. All candidates give the same entities by the record of parity, so
only time decides.

Float32 and the tier that the export found fastest are timed whatever it takes, and a choice that
left tiers untimed is not remembered: a moment when the machine was busy must not decide for good.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from amlr.runtime.bundle import Bundle
from amlr.runtime.tier_memory import Memory
from amlr.runtime.tier_timing import Choice, TierTime, time_tier
from amlr.runtime.tiers import CPUS, Skipped, Tier, open_first, reason_of, try_tier

if TYPE_CHECKING:
    from amlr.runtime.engine import Engine

BUDGET_S = 1.5
# Where the choice is kept on disk, its time is spent once a machine: enough for all tiers.
KEPT_BUDGET_S = 10.0
# What is always timed, float32 among them; the rest while there is time.
ALWAYS_TIMED = 2
# A later candidate must be faster by more than timing noise.
CLEARLY_FASTER = 0.95
_FLOAT32 = "fp32"
E = TypeVar("E", bound="Engine")


def open_fastest(
    bundle: Bundle,
    tiers: Sequence[Tier],
    open_tier: Callable[[Tier], E],
    *,
    threads: int | None,
    cache_dir: Path | None,
    pictures: bool = True,
) -> tuple[E, Choice, tuple[Skipped, ...]]:
    """Open the first device that serves, or else the fastest CPU tier.

    Args:
        bundle: Their bundle.
        tiers: In order of preference, devices first.
        open_tier: Opens and checks one.
        threads: As asked for; part of what a remembered choice depends on.
        cache_dir: Where the choice is remembered; None remembers it in this process only.
        pictures: Whether to time the image graph too, which loads it.

    Returns:
        The engine, the record of the choice, and the tiers not taken.

    Raises:
        AmlrError: As `open_first`.
    """
    skipped: list[Skipped] = []
    cpus = [tier for tier in tiers if tier.provider in CPUS]
    if len(cpus) < 2 or not bundle.golden:
        tier, engine = open_first(bundle, tiers, open_tier, skipped)
        return engine, _untimed(tier, tiers), tuple(skipped)
    for tier in tiers:
        if tier not in cpus:
            opened = try_tier(bundle, tier, open_tier)
            if not isinstance(opened, Exception):
                return opened, _untimed(tier, tiers), tuple(skipped)
            skipped.append(tier.passed_over(reason_of(opened)))
    memory = Memory(bundle, cpus, threads, pictures, cache_dir)
    remembered = memory.recall()
    if remembered is not None:
        tier, choice = remembered
        opened = try_tier(bundle, tier, open_tier)
        if not isinstance(opened, Exception):
            skipped += [t.passed_over("slower when it was timed") for t in cpus if t is not tier]
            return opened, choice, tuple(skipped)
        # What served once no longer does: a library was changed under the same version.
    budget = BUDGET_S if cache_dir is None else KEPT_BUDGET_S
    tier, engine, choice = _race(bundle, cpus, open_tier, skipped, pictures, budget)
    memory.keep(tier, choice)
    return engine, choice, tuple(skipped)


def _untimed(tier: Tier, tiers: Sequence[Tier]) -> Choice:
    reason = "the only one asked for" if len(tiers) == 1 else "the first that passed its check here"
    return Choice(provider=tier.provider, precision=tier.variant.precision, reason=reason)


def _race(
    bundle: Bundle,
    tiers: Sequence[Tier],
    open_tier: Callable[[Tier], E],
    skipped: list[Skipped],
    pictures: bool,
    budget_s: float,
) -> tuple[Tier, E, Choice]:
    """Open one after another within the budget; the best so far and one other are in memory."""
    waiting = _in_order_of_timing(tiers)
    end = time.perf_counter() + budget_s
    tier, engine = open_first(bundle, waiting, open_tier, skipped)
    waiting = waiting[waiting.index(tier) + 1 :]

    def timed(tier: Tier, engine: E) -> TierTime:
        share = (end - time.perf_counter()) / (len(waiting) + 1)
        seconds = min(share, BUDGET_S / len(tiers))
        return time_tier(engine, bundle, tier, seconds, pictures=pictures)

    best = timed(tier, engine) if waiting else None
    times = [] if best is None else [best]
    untimed = 0
    while best is not None and waiting:
        other = waiting.pop(0)
        if time.perf_counter() >= end and not _is_needed(other, times):
            untimed += 1
            skipped.append(other.passed_over("not timed: the time for choosing was used up"))
            continue
        try:
            opened = try_tier(bundle, other, open_tier)
        except BaseException:
            engine.close()
            raise
        if isinstance(opened, Exception):
            skipped.append(other.passed_over(reason_of(opened)))
            continue
        found = timed(other, opened)
        times.append(found)
        if found.total_ms < CLEARLY_FASTER * best.total_ms:
            engine.close()
            skipped.append(tier.passed_over(f"slower here: {best}"))
            tier, engine, best = other, opened, found
        else:
            opened.close()
            skipped.append(other.passed_over(f"not clearly faster here: {found}"))
    reason = "the only one that opened" if len(times) < 2 else f"fastest of {len(times)} timed here"
    if untimed:
        reason += f", incomplete: no time for {untimed} more"
    choice = Choice(
        provider=tier.provider,
        precision=tier.variant.precision,
        reason=reason,
        times=tuple(times),
        untimed=untimed,
    )
    return tier, engine, choice


def _in_order_of_timing(tiers: Sequence[Tier]) -> list[Tier]:
    """Float32 first, so that nothing slower than it is ever taken unseen; then by the record."""
    by_record = sorted(tiers, key=_expected_ms)
    return sorted(by_record, key=lambda tier: tier is not _first_float32(by_record))


def _first_float32(tiers: Sequence[Tier]) -> Tier | None:
    return next((tier for tier in tiers if tier.variant.precision == _FLOAT32), None)


def _is_needed(tier: Tier, times: Sequence[TierTime]) -> bool:
    """Whether a tier is timed although the time is used up."""
    lacks_float32 = all(found.precision != _FLOAT32 for found in times)
    is_float32 = tier.variant.precision == _FLOAT32
    return len(times) < ALWAYS_TIMED or (is_float32 and lacks_float32)


def _expected_ms(tier: Tier) -> float:
    """What the export measured; decides only in which order tiers are timed."""
    found = tier.variant.parity.get("ms_per_post")
    return float(found) if isinstance(found, int | float) else math.inf
