"""The engine's tiers under test: which provider and precision, loaded as a user would."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amlr.benchmarks.parity import FP32_TOLERANCE
from amlr.benchmarks.peers.base import PeerSpec
from amlr.benchmarks.rows import ENGINE_PREFIX
from amlr.errors import AmlrError
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Manifest
from amlr.runtime.providers.registry import admitted_variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A loaded engine and how to start the same in a worker process.

    Attributes:
        spec: For the worker.
        engine: Loaded here, for parity.
        tolerance: Largest allowed error of raw logits; None judges by entities alone.
        why: How it was chosen.
    """

    spec: PeerSpec
    engine: Engine
    tolerance: float | None
    why: str


def open_tiers(
    path: Path,
    providers: Sequence[str],
    precisions: Sequence[str],
    threads: int,
    notes: list[str],
) -> list[Tier]:
    """Load every asked combination of provider and precision.

    Args:
        path: The bundle.
        providers: `auto` or provider names.
        precisions: `auto`, `exact` or precision names.
        threads: CPU threads.
        notes: Takes a line on each combination that cannot run here.

    Returns:
        Tiers, the one users get first. When `auto` picks a low precision, the exact tier of the
        same provider is added for comparison.

    Raises:
        AmlrError: Only one combination was asked for and it cannot be loaded.
    """
    wanted = [(provider, precision) for provider in providers for precision in precisions]
    tiers: list[Tier] = []
    seen: set[str] = set()

    def add(provider: str, precision: str, why: str) -> Tier | None:
        # The golden check stays off here: parity itself is about to be measured and reported.
        check = "full" if "auto" in (provider, precision) else "off"
        engine = Engine.load(path, provider, precision, threads=threads, check=check)
        spec = _spec(engine)
        if spec.label in seen:
            engine.close()
            return None
        seen.add(spec.label)
        tolerance = FP32_TOLERANCE if engine.precision == "fp32" else None
        tiers.append(Tier(spec=spec, engine=engine, tolerance=tolerance, why=why))
        notes.extend(
            f"auto passed over {s.provider} {s.precision}: {s.reason}" for s in engine.skipped
        )
        return tiers[-1]

    for provider, precision in wanted:
        try:
            tier = add(provider, precision, f"asked for: {provider}, {precision}")
        except AmlrError as error:
            if len(wanted) == 1:
                raise
            notes.append(f"no tier {provider} {precision}: {error}")
            continue
        if tier is not None and precision == "auto" and tier.engine.precision != "fp32":
            add(tier.engine.provider, "exact", "the exact tier of the same provider")
    return tiers


def _spec(engine: Engine) -> PeerSpec:
    return PeerSpec(
        name=ENGINE_PREFIX + engine.provider,
        kind="engine",
        precision=engine.precision,
        options=(
            ("provider", engine.provider),
            ("variant", _variant(engine.manifest, engine.provider, engine.precision)),
        ),
    )


def _variant(manifest: Manifest, provider: str, precision: str) -> str:
    return admitted_variants(manifest, provider, precision)[0][0]
