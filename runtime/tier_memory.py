"""Which tier was chosen before: in this process, and in `cache_dir` for later ones."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from amlr import __version__
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import cpu_model
from amlr.runtime.options import EngineOptions
from amlr.runtime.providers.registry import CPU_PACKAGES
from amlr.runtime.tier_timing import Choice, TierTime
from amlr.runtime.tiers import Tier
from amlr.whole import write_whole

_SCHEMA = 5
_remembered: dict[str, dict[str, Any]] = {}


class Memory:
    """What was chosen from the same tiers before."""

    def __init__(
        self,
        bundle: Bundle,
        tiers: Sequence[Tier],
        options: EngineOptions,
    ) -> None:
        """Name the choice by everything it depends on.

        Args:
            bundle: Their bundle.
            tiers: All that may be taken, low ones too.
            options: Of the engine.
        """
        self._tiers = tiers
        values = [
            _SCHEMA,
            bundle.manifest_sha256,
            cpu_model(),
            [__version__, *map(_version, sorted(CPU_PACKAGES.values()))],
            [options.precision, options.threads, options.checks_pictures],
            [_place(tier) for tier in tiers],
        ]
        self._key = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        folder = options.cache_dir
        self._file = None if folder is None else folder / f"tier-{self._key[:32]}.json"

    def recall(self) -> tuple[Tier, Tier | None, Choice] | None:
        """The tier chosen before, the low one before it if any, and the record; or None."""
        if self._key not in _remembered and self._file is not None:
            try:
                _remembered[self._key] = json.loads(self._file.read_text(encoding="utf-8"))
            # Absent, or damaged: time again.
            except (OSError, ValueError):
                return None
        try:
            values = _remembered[self._key]
            by_place = {tuple(_place(tier)): tier for tier in self._tiers}
            tier = by_place[tuple(values["tier"])]
            low = None if values["low"] is None else by_place[tuple(values["low"])]
            times = tuple(TierTime(**item) for item in values["times"])
            precision, reason = str(values["precision"]), str(values["reason"])
            least_posts, kinds = int(values["least_posts"]), tuple(map(str, values["kinds"]))
        except (KeyError, TypeError, ValueError):
            return None
        choice = Choice(
            provider=tier.provider,
            precision=precision,
            reason=reason.replace("timed here", "when timed before"),
            times=times,
            least_posts=least_posts,
            kinds=kinds,
        )
        return tier, low, choice

    def keep(self, tier: Tier, low: Tier | None, choice: Choice) -> None:
        """Remember a choice between tiers that were timed."""
        if len(choice.times) < 2:
            return
        values = {
            "tier": _place(tier),
            "low": None if low is None else _place(low),
            "precision": choice.precision,
            "reason": choice.reason,
            "least_posts": choice.least_posts,
            "kinds": choice.kinds,
            "times": [asdict(item) for item in choice.times],
        }
        _remembered[self._key] = values
        if self._file is None:
            return
        try:
            write_whole(self._file, json.dumps(values))
        # A folder that cannot be written to costs the next start its timing, no more.
        except OSError:
            return


def _place(tier: Tier) -> list[str]:
    return [tier.provider, tier.name]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
