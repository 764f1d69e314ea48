"""Tiers: a provider with a variant. Which may serve, and the first of them that does."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from amlr.errors import AmlrError, BackendUnavailableError, BundleError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest, Variant
from amlr.runtime.options import ESCALATE, ON_FLOAT32, EngineOptions
from amlr.runtime.providers.registry import CPUS, admitted_variants, provider_names, runs_on
from amlr.runtime.radii import PICTURE, TEXT, calibrated_radii

# Whose certified answers were float32's on every post tried; those of int8 and of mixes were not,
# so `auto` leaves them alone and `escalate` takes them.
CERTIFIABLE = ("bf16", "fp16")
E = TypeVar("E")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A tier that `auto` passed over."""

    provider: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A provider and what it would run.

    Attributes:
        provider: Its name.
        name: Name of the variant in the manifest.
        variant: The variant.
    """

    provider: str
    name: str
    variant: Variant

    def passed_over(self, reason: str) -> Skipped:
        """The record of not taking it."""
        return Skipped(provider=self.provider, precision=self.variant.precision, reason=reason)


def list_tiers(manifest: Manifest, options: EngineOptions) -> list[Tier]:
    """What may serve alone, in the order in which it is tried; for `escalate` float32 on CPUs.

    Raises:
        InputError: No provider has this name.
        BundleError: The bundle holds nothing for what was asked, or two tiers were asked of a
            provider that is not a CPU's.
    """
    precision = "exact" if options.escalates else options.precision
    tiers = [
        Tier(provider=owner, name=name, variant=variant)
        for owner in provider_names(options.provider)
        for name, variant in admitted_variants(manifest, owner, precision, options.max_changed)
        if not options.escalates or owner in CPUS
    ]
    if tiers:
        return tiers
    if options.escalates:
        raise BundleError(
            f"precision={options.precision!r} computes float32 on a CPU, which provider "
            f"{options.provider!r} is not; use one of auto, onnxruntime, {', '.join(CPUS)}"
        )
    variants = ", ".join(
        f"{name} ({variant.provider or 'any provider'})"
        for name, variant in manifest.variants.items()
    )
    raise BundleError(
        f"this bundle has no {precision} variant for provider {options.provider!r}, only: "
        f"{variants}; choose one of these, or export with amlr-export --precision"
    )


def list_low_tiers(manifest: Manifest, options: EngineOptions) -> tuple[list[Tier], list[Skipped]]:
    """Low tiers that may answer before float32 does, and those that may not, with the reason.

    Raises:
        BundleError: `escalate` was asked for and there is none.
    """
    if not options.escalates and (options.precision != "auto" or options.max_changed > 0):
        return [], []
    low = [
        Tier(provider=owner, name=name, variant=variant)
        for owner in provider_names(options.provider)
        for name, variant in manifest.variants.items()
        if variant.precision != "fp32" and runs_on(variant, owner)
    ]
    reasons = [_reason_against(tier.variant, options) for tier in low]
    tiers = [tier for tier, reason in zip(low, reasons, strict=True) if not reason]
    skipped = [t.passed_over(reason) for t, reason in zip(low, reasons, strict=True) if reason]
    if options.escalates and not tiers:
        raise BundleError(
            "no variant of this bundle has measured radii, which escalation needs; export it with: "
            "amlr-export --from amlr.plan --precision bf16 --calib posts.jsonl"
        )
    return tiers, skipped


def _reason_against(variant: Variant, options: EngineOptions) -> str:
    """Why a variant must not answer before float32; empty where it may."""
    if options.escalates:
        if options.precision not in (ESCALATE, variant.precision + ON_FLOAT32):
            return f"{options.precision} was asked for"
        return "" if "radii" in variant.parity else "it has no measured radii"
    if variant.precision not in CERTIFIABLE:
        return "only by name, as its errors vary with the post"
    if not calibrated_radii(variant.parity):
        return "not calibrated on enough real posts; export it with --calib posts.jsonl"
    if options.image == "when-needed":
        return 'image="when-needed" takes float32 alone'
    return ""


def kinds_in_float32(variant: Variant, kinds: Collection[str]) -> str:
    """Which posts a low tier does not answer, for the reason of the choice.

    Args:
        variant: What the tier runs.
        kinds: Of the posts it answers.
    """
    radii = calibrated_radii(variant.parity)
    names = {TEXT: "without a picture", PICTURE: "with a picture"}
    reasons = {
        "as the bundle was not calibrated on enough of them": [k for k in names if k not in radii],
        "as that is faster for them here": [k for k in names if k in radii and k not in kinds],
    }
    return "".join(
        f"; posts {' and '.join(names[kind] for kind in left)} are computed in float32, {reason}"
        for reason, left in reasons.items()
        if left
    )


def open_first(
    bundle: Bundle, tiers: Sequence[Tier], open_tier: Callable[[Tier], E], skipped: list[Skipped]
) -> tuple[Tier, E]:
    """Open tiers in order until one serves.

    Args:
        bundle: Their bundle.
        tiers: What to try.
        open_tier: Opens and checks one.
        skipped: Tiers that could not serve so far; receives the others.

    Raises:
        BackendUnavailableError: None could.
        BundleError: A file is damaged; that is not for the next tier to hide.
        AmlrError: The reason itself, where only one tier was asked for.
    """
    is_only = len(tiers) == 1 and not skipped
    for tier in tiers:
        found = try_tier(bundle, tier, open_tier)
        if not isinstance(found, Exception):
            return tier, found
        if is_only:
            raise found
        skipped.append(tier.passed_over(reason_of(found)))
    reasons = "; ".join(f"{s.provider} {s.precision}: {s.reason}" for s in skipped)
    raise BackendUnavailableError(f"no provider can serve this bundle here: {reasons}")


def try_tier(bundle: Bundle, tier: Tier, open_tier: Callable[[Tier], E]) -> E | Exception:
    """Open one tier, or give back why not.

    Raises:
        BundleError: A file of it is damaged, whichever tier meets it first.
    """
    bundle.verify(tier.variant)
    try:
        return open_tier(tier)
    # A library may fail in any way of its own; the next tier is there for that.
    except Exception as error:
        return error


def reason_of(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, AmlrError):
        return str(error)
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
