"""What an export adds to the float32 bundle: precisions, engines, compiled decoders.

The same steps serve `amlr-export --ckpt` (where the eager model is at hand) and
`amlr-export --from`, which needs neither checkpoint nor torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from amlr.errors import InputError
from amlr.export.extend import (
    TargetOptions,
    add_fp16_cuda,
    add_gpu_parts,
    check_targets,
    copy_bundle,
    save_manifest,
)
from amlr.export.fused.variant import NAME as FP16_CUDA
from amlr.export.ladder.ladder import PRECISIONS as CPU_PRECISIONS
from amlr.export.ladder.ladder import LadderOptions, add_variants
from amlr.export.ladder.posts import read_posts
from amlr.export.staging import check_target, staged
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest

if TYPE_CHECKING:  # adding to a bundle needs no torch
    from amlr.training.model import AmlrModel

PRECISIONS = ("fp32", "fp16", FP16_CUDA, *CPU_PRECISIONS)
ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")
TARGETS = (*ENGINE_TARGETS, "cuda")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What to add to a float32 bundle.

    Attributes:
        precisions: Of `PRECISIONS`; fp32 is always there.
        targets: Of `TARGETS`: engines of a TensorRT library, or `cuda` for the decoders alone.
        calib: JSON lines or CoNLL file of calibration posts; None invents posts.
        images: Folder of their pictures.
        most: Posts to read from `calib`.
        engines: Profiles, architectures and build options of the engines.
    """

    precisions: tuple[str, ...] = ("fp32",)
    targets: tuple[str, ...] = ()
    calib: Path | None = None
    images: Path | None = None
    most: int = 1000
    engines: TargetOptions = field(default_factory=TargetOptions)

    def __post_init__(self) -> None:
        _known("precision", self.precisions, PRECISIONS)
        _known("target", self.targets, TARGETS)

    def check_libraries(self) -> None:
        """Look for the libraries before any work is done.

        Raises:
            BackendUnavailableError: A target's library is not installed.
        """
        check_targets(self.engine_targets)

    @property
    def engine_targets(self) -> tuple[str, ...]:
        """Targets that are TensorRT libraries."""
        return tuple(target for target in self.targets if target in ENGINE_TARGETS)


def _known(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"unknown {what} {', '.join(unknown)}; choose from {', '.join(known)}")


def apply_additions(
    folder: Path,
    manifest: Manifest,
    additions: Additions,
    *,
    model: "AmlrModel | None" = None,
    fold: bool | None = None,
    reuse: Bundle | None = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Add to a staged bundle, which must be complete in float32.

    Args:
        folder: The staged bundle, changed in place.
        manifest: Its manifest, as written.
        additions: What to add.
        model: The eager model where there is one; None judges against the fp32 graphs.
        fold: How the fp32 graphs were folded, for `build_graphs`.
        reuse: An older bundle whose engines are copied where nothing changed.
        say: Receives a line per step.

    Returns:
        The manifest, as written.

    Raises:
        BackendUnavailableError: A library that was asked for is not installed.
        ExportError: A graph was not accepted or could not be built.
        ParityError: A variant changes entities and none of its parts may stay float32.
    """
    additions.check_libraries()
    posts = proof = None
    if {"fp16", FP16_CUDA} & set(additions.precisions) and additions.calib is not None:
        read = read_posts(additions.calib, additions.images, most=additions.most)
        posts, proof = ([item.post for item in half] for half in (read.tuning, read.proof))
    # fp16 is what engines are for; fp32 ones are built where there is nothing else.
    has_fp16 = "fp16" in additions.precisions or "fp16" in manifest.variants
    gpu = replace(
        additions.engines,
        targets=additions.engine_targets,
        precisions=("fp16",) if has_fp16 else ("fp32",),
        posts=posts,
        proof=proof,
    )
    manifest = add_gpu_parts(folder, manifest, gpu, model=model, fold=fold, reuse=reuse, say=say)
    if FP16_CUDA in additions.precisions:
        manifest = add_fp16_cuda(folder, manifest, proof, model=model, say=say)
    cpu = tuple(p for p in additions.precisions if p in CPU_PRECISIONS)
    if cpu:
        options = LadderOptions(
            precisions=cpu, calib=additions.calib, images=additions.images, most=additions.most
        )
        manifest = add_variants(folder, options, say=say)
    if additions.targets:
        manifest = _add_kernels(folder, manifest, say)
    return manifest


def _add_kernels(folder: Path, manifest: Manifest, say: Say) -> Manifest:
    from amlr.kernels.images import build_images

    say("compiling the CUDA decoders")
    records = build_images(folder / "kernels", tags=len(manifest.tags))
    architectures = sorted({record.architecture for record in records})
    say(f"  {len(records)} images for {', '.join(architectures)}")
    kernels = tuple(record.to_dict() for record in records)
    return save_manifest(folder, replace(manifest, kernels=kernels))


def add_to_bundle(
    source: Path, out: Path, additions: Additions, *, say: Say = lambda line: None
) -> Manifest:
    """Write a bundle that holds all of `source` and what was asked for.

    Args:
        source: An exported bundle; never changed, but may be the same folder as `out`.
        out: Where the new one appears, whole or not at all.
        additions: What to add.
        say: Receives a line per step.

    Raises:
        BundleError: The source cannot be read.
        BackendUnavailableError: A library that was asked for is not installed.
        ExportError: A graph was not accepted or could not be built.
        ParityError: A variant changes entities.
    """
    check_target(out)
    old = Bundle.open(source)
    additions.check_libraries()
    with staged(out) as folder:
        manifest = copy_bundle(old, folder)
        return apply_additions(folder, manifest, additions, reuse=old, say=say)
