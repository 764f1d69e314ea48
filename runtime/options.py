"""How an engine is opened: one set of options for the API, commands, servers and fleets."""

from dataclasses import dataclass
from pathlib import Path

from amlr.errors import InputError
from amlr.runtime.providers.base import ProviderOptions

IMAGES = ("always", "when-needed")
CHECKS = ("full", "text", "off")
ESCALATE = "escalate"
ON_FLOAT32 = "+fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of `Engine.load`, checked when they are made.

    Attributes:
        provider: `auto`, `onnxruntime`, or one by name; a name never falls back.
        precision: `auto` (the fastest here: float32, or low precision first and float32 where
            an answer is not certified equal to float32's; with `max_changed` above 0 the fastest
            variant measured within it), `exact` (fp32), `escalate` (the fastest low precision
            first, int8 and mixes too), one by name, or two (`bf16+fp32`). Several CPU tiers are
            timed, once for a `cache_dir`.
        threads: CPU threads of one call; None takes the physical cores.
        image_cache_mb: Budget for encoded pictures; 0 keeps none.
        cache_dir: Folder for compiled graphs and the choice of a tier, or None to keep nothing; the
            bundle is never written to.
        max_changed: Share of changed entities that `precision="auto"` accepts.
        check: `full` re-runs all golden posts; `text` only those without a picture, so that the
            image graph is not loaded before the first picture; `off` none.
        answer_cache: Answers to keep for repeated posts; 0 keeps none.
        image: `always` reads every picture; `when-needed` leaves a picture out, with a warning, if
            the text alone gives at least the margin that the export measured.
        sentinel: Share of the certified answers that are computed again in float32; the low tier is
            taken out of service if one differs.
        trust_file_times: Recognise a picture file by device, inode, size and times instead of
            reading it again; files younger than two seconds are always read.

    Raises:
        InputError: An option is wrong; names it and what it may be.
    """

    provider: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    image_cache_mb: float = 256
    cache_dir: Path | None = None
    max_changed: float = 0.0
    check: str = "full"
    answer_cache: int = 0
    image: str = "always"
    sentinel: float = 0.005
    trust_file_times: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, got {self.threads}")
        if self.image not in IMAGES:
            raise InputError(f"image must be one of {IMAGES}, got {self.image!r}")
        if self.check not in CHECKS:
            raise InputError(f"check must be one of {CHECKS}, got {self.check!r}")
        if not 0 <= self.sentinel <= 1:
            raise InputError(f"sentinel must be a share in 0..1, got {self.sentinel}")
        if self.image == "when-needed" and self.escalates:
            raise InputError(
                f'image="when-needed" and precision={self.precision!r} exclude each other'
            )

    @property
    def for_provider(self) -> ProviderOptions:
        """What of them a provider sees."""
        return ProviderOptions(threads=self.threads, cache_dir=self.cache_dir)

    @property
    def escalates(self) -> bool:
        """Whether a low precision must answer first, as `escalate` and `bf16+fp32` ask."""
        return self.precision == ESCALATE or self.precision.endswith(ON_FLOAT32)

    @property
    def checks_pictures(self) -> bool:
        """Whether the image graph is run at load."""
        return self.check == "full"
