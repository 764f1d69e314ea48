"""The engine's tiers under test: which provider and precision, loaded as a user would."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amlr.benchmarks.report.records import ENGINE_PREFIX, AutoRecord, VariantRecord
from amlr.benchmarks.systems.base import ESCALATION, PeerSpec
from amlr.errors import AmlrError
from amlr.export.parity import FP32_TOLERANCE
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.options import EngineOptions
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.registry import admitted_variants, open_provider
from amlr.runtime.tier_timing import describe_choice
from amlr.runtime.tiers import Tier as ServingTier
from amlr.runtime.tiers import list_tiers, open_first


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A loaded engine and how to start the same in a worker process.

    Attributes:
        spec: For the worker.
        engine: Loaded here, for parity.
        promised: Whether this tier is said to give float32's entities: float32 itself, and low
            precisions whose answers are certified. Others are measured, not judged.
    """

    spec: PeerSpec
    engine: Engine
    promised: bool

    @property
    def tolerance(self) -> float | None:
        """Largest allowed error of raw logits; None judges by entities alone."""
        return FP32_TOLERANCE if self.promised else None


@dataclass(slots=True, kw_only=True)
class Tiers:
    """All tiers of a run.

    Attributes:
        tiers: The one users get first.
        notes: Combinations that cannot run here, and why.
        auto: What `auto` took and the reasons, or None where nobody asked.
    """

    tiers: list[Tier] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    auto: AutoRecord | None = None

    def close(self) -> None:
        """Release all engines."""
        for tier in self.tiers:
            tier.engine.close()


def open_tiers(
    path: Path, providers: Sequence[str], precisions: Sequence[str], threads: int
) -> Tiers:
    """Load every asked combination of provider and precision.

    When `auto` picks a low precision, the exact tier of the same provider is added for comparison.

    Raises:
        AmlrError: Only one combination was asked for and it cannot be loaded.
    """
    opened = Tiers()
    seen: set[str] = set()

    def add(provider: str, precision: str) -> Tier | None:
        tier = _open(path, provider, precision, threads)
        if precision == "auto":
            opened.auto = opened.auto or _explained(tier.engine)
        if tier.spec.label in seen:
            tier.engine.close()
            return None
        seen.add(tier.spec.label)
        opened.tiers.append(tier)
        return tier

    wanted = [(provider, precision) for provider in providers for precision in precisions]
    for provider, precision in wanted:
        try:
            tier = add(provider, precision)
        except AmlrError as error:
            if len(wanted) == 1:
                raise
            opened.notes.append(f"no tier {provider} {precision}: {error}")
            continue
        if tier is not None and precision == "auto" and tier.engine.precision != "fp32":
            add(tier.engine.provider, "exact")
    return opened


def explain_auto(path: Path, threads: int) -> AutoRecord:
    """What `auto` takes on this host, and why, without keeping it."""
    with Engine.load(path, threads=threads) as engine:
        return _explained(engine)


def _explained(engine: Engine) -> AutoRecord:
    # What the export measured of each variant: `auto` goes by it.
    names = ("entities", "changed_entities", "posts", "f1", "source", "ms_per_post")
    return AutoRecord(
        provider=engine.provider,
        precision=engine.precision,
        reasons=list(describe_choice(engine.choice, engine.skipped)),
        variants=[
            VariantRecord(variant=name, **{key: variant.parity.get(key) for key in names})
            for name, variant in engine.manifest.variants.items()
            if variant.precision != "fp32"
        ],
    )


def _open(path: Path, provider: str, precision: str, threads: int) -> Tier:
    options = EngineOptions(provider=provider, precision=precision)
    if precision == "auto" or options.escalates:
        # The golden check only decides for `auto`; parity itself is about to be measured.
        check = "full" if precision == "auto" else "off"
        engine = Engine.load(path, provider, precision, threads=threads, check=check)
        if engine.certificates is not None:
            return _tier(engine, provider, "")
        admitted = admitted_variants(engine.manifest, engine.provider, "auto")
        name = next(n for n, v in admitted if v.precision == engine.precision)
        return _tier(engine, engine.provider, name)
    bundle = Bundle.open(path)
    # What was made for this very provider comes first; nothing is timed, so that runs compare.
    choices = sorted(
        list_tiers(bundle.manifest, options),
        key=lambda choice: choice.variant.provider is None,
    )
    first = [choice for choice in choices if choice.provider == choices[0].provider]
    others = [choice for choice in choices if choice not in first]
    taken, engine = open_first(
        bundle, [*first, *others], lambda choice: _engine(bundle, choice, threads), []
    )
    return _tier(engine, taken.provider, taken.name)


def _engine(bundle: Bundle, choice: ServingTier, threads: int) -> Engine:
    provider = open_provider(
        choice.provider, bundle, choice.variant, ProviderOptions(threads=threads)
    )
    return Engine(bundle, provider, variant=choice.variant, threads=threads)


def _tier(engine: Engine, provider: str, variant: str) -> Tier:
    # Nothing changed on some posts is a record, not a promise. Raw numbers of an engine that
    # certifies its answers are float32's.
    promised = engine.precision == "fp32" or not variant
    spec = PeerSpec(
        name=ENGINE_PREFIX + engine.provider,
        kind="engine" if variant else ESCALATION,
        precision=engine.precision,
        provider=provider,
        variant=variant,
    )
    return Tier(spec=spec, engine=engine, promised=promised)
