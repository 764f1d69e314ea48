"""Which tier was chosen before: in this process, and in `cache_dir` for later ones."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amlr import __version__
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import cpu_model
from amlr.runtime.tier_timing import Choice, TierTime
from amlr.runtime.tiers import Tier
from amlr.whole import write_whole

_SCHEMA = 2
_remembered: dict[str, dict[str, Any]] = {}


class Memory:
    """What was chosen from the same tiers before."""

    def __init__(
        self,
        bundle: Bundle,
        tiers: Sequence[Tier],
        threads: int | None,
        pictures: bool,
        cache_dir: Path | None,
    ) -> None:
        """Name the choice by everything it depends on."""
        self._tiers = tiers
        asked = [(tier.provider, tier.name) for tier in tiers]
        versions = [__version__, *map(_version, ("onnxruntime", "openvino"))]
        values = [_SCHEMA, bundle.manifest_sha256, cpu_model(), versions, threads, pictures, asked]
        self._key = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        self._file = None if cache_dir is None else cache_dir / f"tier-{self._key[:32]}.json"

    def recall(self) -> tuple[Tier, Choice] | None:
        """The tier chosen before, or None."""
        if self._key not in _remembered and self._file is not None:
            try:
                _remembered[self._key] = json.loads(self._file.read_text(encoding="utf-8"))
            # Absent, or damaged: time again.
            except (OSError, ValueError):
                return None
        try:
            values = _remembered[self._key]
            (tier,) = (t for t in self._tiers if [t.provider, t.name] == values["tier"])
            times = tuple(TierTime(**item) for item in values["times"])
        except (KeyError, TypeError, ValueError):
            return None
        reason = f"fastest of {len(times)} when timed before"
        precision = tier.variant.precision
        return tier, Choice(provider=tier.provider, precision=precision, reason=reason, times=times)

    def keep(self, tier: Tier, choice: Choice) -> None:
        """Remember a choice between tiers that were all timed; another start may have the time."""
        if len(choice.times) < 2 or choice.untimed:
            return
        values = {
            "tier": [tier.provider, tier.name],
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
