"""Choices of an export: the float32 bundle, what is added to it, and how engines are built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amlr.errors import InputError
from amlr.export.parity import FP32_TOLERANCE
from amlr.export.profiles import Profile

FP16_CUDA = "fp16-cuda"
CPU_PRECISIONS = ("bf16", "int8")
PRECISIONS = ("fp32", "fp16", FP16_CUDA, *CPU_PRECISIONS)
ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")
TARGETS = (*ENGINE_TARGETS, "cuda")
Compatibility = Literal["none", "ampere-plus", "same-compute-capability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Choices of `amlr-export`.

    Attributes:
        name: Name in the manifest; None takes the bundle's folder name.
        keep_reference: Store the eager model, so that the bundle can be verified again anywhere.
        fold: Fold the attention per head; None decides by cost.
        tolerance: Largest allowed difference of float32 raw logits, absolute.
        precisions: Of `PRECISIONS`; fp32 is always there.
        targets: Of `TARGETS`: engines of a TensorRT library, or `cuda` for the decoders alone.
        calib: JSON lines or CoNLL file of calibration posts; None invents posts.
        images: Folder of their pictures.
        max_posts: Posts to read from `calib`.
        profiles: Traffic that engines serve, from the planner; one optimization profile each.
        buckets: Steps and units of the shapes that the runtime captures, from the planner.
        sms: Architectures, e.g. (80, 86, 89, 120). TensorRT-RTX builds for each of them on any
            machine; enterprise TensorRT builds for the device at hand.
        hardware: Enterprise only: which other devices may run the engine.
        version_compatible: The engine carries a lean runtime and loads in later versions.
        strip_weights: Leave the weights out; the runtime refits them from the ONNX file.
        timing_cache: File with measurements kept between builds.
        optimization_level: Enterprise only: how long the builder searches, 0 to 5; None leaves it
            to the library.
        aux_streams: Enterprise only: most streams beside its own that an engine may use; None
            leaves it to the library.
    """

    name: str | None = None
    keep_reference: bool = True
    fold: bool | None = None
    tolerance: float = FP32_TOLERANCE
    precisions: tuple[str, ...] = ("fp32",)
    targets: tuple[str, ...] = ()
    calib: Path | None = None
    images: Path | None = None
    max_posts: int = 1000
    profiles: tuple[Profile, ...] = (Profile(),)
    buckets: tuple[tuple[int, int], ...] = ()
    sms: tuple[int, ...] = (80, 86, 89, 120)
    hardware: Compatibility = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None
    optimization_level: int | None = None
    aux_streams: int | None = None

    def __post_init__(self) -> None:
        _check_known("precision", self.precisions, PRECISIONS)
        _check_known("target", self.targets, TARGETS)

    @property
    def engine_targets(self) -> tuple[str, ...]:
        """Targets that are TensorRT libraries."""
        return tuple(target for target in self.targets if target in ENGINE_TARGETS)

    @property
    def cpu_precisions(self) -> tuple[str, ...]:
        """Precisions that CPUs run."""
        return tuple(p for p in self.precisions if p in CPU_PRECISIONS)

    def build_choices(self) -> dict[str, Any]:
        """The options that change an engine; kept in its record."""
        levels = {"optimization_level": self.optimization_level, "aux_streams": self.aux_streams}
        return {
            "sms": list(self.sms),
            "hardware": self.hardware,
            "version_compatible": self.version_compatible,
            "strip_weights": self.strip_weights,
            # Left out where the library chooses: engines of older exports keep their keys.
            **{name: value for name, value in levels.items() if value is not None},
        }


def _check_known(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"unknown {kind} {', '.join(unknown)}; choose from {', '.join(known)}")
