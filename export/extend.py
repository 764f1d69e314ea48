"""A bundle with more in it: the fp16 variant and engines, from a bundle alone, without torch."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from amlr.export.fused import variant as fused
from amlr.export.precision.variant import write_fp16
from amlr.export.samples import sample_posts
from amlr.export.staging import list_files, staged
from amlr.export.tensorrt.builder import BuildOptions
from amlr.export.tensorrt.engines import (
    EngineOptions,
    audit_table,
    build_engines,
    merge_records,
    target_sms,
)
from amlr.export.tensorrt.profiles import Profile
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import MANIFEST, Manifest
from amlr.runtime.results import Post
from amlr.runtime.tensorrt_library import TensorRT, family_of, load_tensorrt

if TYPE_CHECKING:  # extending a bundle needs no torch
    from amlr.training.model import AmlrModel

CALIBRATION_POSTS = 256
PROOF_POSTS = 128
# Not the default seed of the calibration posts.
_PROOF_SEED = 11
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Choices for engines.

    Attributes:
        targets: `tensorrt`, `tensorrt-rtx`.
        precisions: Variants to build engines of; missing fp16 is converted first.
        profiles: Traffic, from the planner.
        buckets: Shapes to capture, from the planner.
        build: Architectures and compatibility.
        posts: Calibration posts for the half variant; None takes invented ones.
        proof: Other posts, to prove it on; None takes invented ones.
    """

    targets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp16",)
    profiles: tuple[Profile, ...] = (Profile(),)
    buckets: tuple[tuple[int, int], ...] = ()
    build: BuildOptions = field(default_factory=BuildOptions)
    posts: Sequence[Post] | None = None
    proof: Sequence[Post] | None = None


def extend_bundle(
    source: Path, out: Path, options: TargetOptions, *, say: Say = lambda line: None
) -> Manifest:
    """Write a bundle that holds all of `source` and the engines asked for.

    Args:
        source: An exported bundle; never changed, but may be the same folder as `out`.
        out: Where the new one appears, whole or not at all.
        options: What to add.
        say: Receives a line per step.

    Raises:
        BundleError: The source cannot be read.
        BackendUnavailableError: A target's library is not installed.
        ExportError: A graph was not accepted or could not be built.
        ParityError: The half variant changes entities.
    """
    old = Bundle.open(source)
    check_targets(options.targets)
    with staged(out) as folder:
        manifest = copy_bundle(old, folder)
        return add_gpu_parts(folder, manifest, options, reuse=old, say=say)


def check_targets(targets: Sequence[str]) -> None:
    """Look for the libraries before any work is done.

    Raises:
        BackendUnavailableError: A target's library is not installed.
    """
    for target in targets:
        load_tensorrt(family_of(target))


def add_gpu_parts(
    folder: Path,
    manifest: Manifest,
    options: TargetOptions,
    *,
    model: "AmlrModel | None" = None,
    fold: bool | None = None,
    reuse: Bundle | None = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Add the fp16 variant, where it is wanted and missing, and engines to a staged bundle.

    Args:
        folder: The staged bundle with its manifest written.
        manifest: The same manifest.
        options: Targets, precisions, profiles, calibration posts.
        model: As for `add_fp16`.
        fold: As for `add_fp16`.
        reuse: As for `add_engines`.
        say: Receives a line per step.

    Raises:
        BackendUnavailableError: A target's library is not installed.
        ExportError: A graph was not accepted or could not be built.
        ParityError: The half variant changes entities.
    """
    if "fp16" in options.precisions and "fp16" not in manifest.variants:
        manifest = add_fp16(
            folder, manifest, options.posts, options.proof, model=model, fold=fold, say=say
        )
    for target in options.targets:
        library = load_tensorrt(family_of(target))
        manifest = add_engines(folder, manifest, library, options, reuse=reuse, say=say)
    return manifest


def add_engines(
    folder: Path,
    manifest: Manifest,
    library: TensorRT,
    options: TargetOptions,
    *,
    reuse: Bundle | None = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Build engines of a staged bundle for one library; gives the manifest that lists them.

    Args:
        folder: The staged bundle with its manifest written.
        manifest: The same manifest.
        library: From `load_tensorrt(family_of(target))`.
        options: Precisions, profiles, build options.
        reuse: An older bundle whose engines are copied where nothing changed.
        say: Receives a line per graph and the audit table.

    Raises:
        ExportError: A graph was not accepted or could not be built.
    """
    for precision in options.precisions:
        say(f"building {library.name}, {precision}, for {target_sms(library, options.build)}")
        record = build_engines(
            folder,
            Bundle.open(folder),
            library,
            variant=precision,
            options=EngineOptions(
                profiles=options.profiles, build=options.build, buckets=options.buckets
            ),
            reuse=reuse,
            say=lambda line: say(f"  {line}"),
        )
        for line in audit_table(record):
            say(f"  {line}")
        engines = merge_records(manifest.engines, record)
        manifest = save_manifest(folder, replace(manifest, engines=engines))
    return manifest


def add_fp16(
    folder: Path,
    manifest: Manifest,
    posts: Sequence[Post] | None = None,
    proof: Sequence[Post] | None = None,
    *,
    model: "AmlrModel | None" = None,
    fold: bool | None = None,
    max_changed: float = 0.0,
    say: Say = lambda line: None,
) -> Manifest:
    """Add the fp16 variant to a staged bundle; gives the manifest that lists it.

    Args:
        folder: The staged bundle with its fp32 variant, golden posts and manifest written.
        manifest: The same manifest.
        posts: Calibration posts; None invents some.
        proof: Posts the search never sees; None invents others.
        model: The eager model: entities are compared with it, and regions are centred before they
            are rounded. None converts the fp32 graphs and compares with them; needs no torch.
        fold: As for `build_graphs`.
        max_changed: Share of entities that may change.
        say: Receives progress lines.

    Raises:
        ParityError: More entities change, even with every block float32.
    """
    if posts is None:
        say("  no --calib: float16 is searched and proved on invented posts, not on yours")
    posts = sample_posts(CALIBRATION_POSTS) if posts is None else posts
    proof = sample_posts(PROOF_POSTS, seed=_PROOF_SEED) if proof is None else proof
    bundle = Bundle.open(folder)
    specs = None
    if model is not None:
        from amlr.export.graphs import build_graphs

        specs = build_graphs(model, image_size=manifest.image.size, fold=fold, centre=True)
    with _reference_engine(bundle, model) as judge:
        variant, _ = write_fp16(
            folder, bundle, judge, posts, proof, specs=specs, max_changed=max_changed, say=say
        )
    return save_manifest(folder, replace(manifest, variants={**manifest.variants, "fp16": variant}))


def add_fp16_cuda(
    folder: Path,
    manifest: Manifest,
    proof: Sequence[Post] | None = None,
    *,
    model: "AmlrModel | None" = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Add the fp16 variant of onnxruntime's CUDA provider to a staged bundle.

    Args:
        folder: As for `add_fp16`.
        manifest: The same manifest.
        proof: Posts to judge on; None invents some.
        model: The eager model to compare entities with; None compares with the fp32 graphs.
        say: Receives progress lines.

    Returns:
        The manifest that lists it.

    Raises:
        ExportError: A weight leaves the float16 range, or a fused graph computes something else.
    """
    if proof is None:
        say(f"  no --calib: {fused.NAME} is judged on invented posts, not on yours")
        proof = sample_posts(PROOF_POSTS, seed=_PROOF_SEED)
    bundle = Bundle.open(folder)
    with _reference_engine(bundle, model) as reference:
        variant = fused.write_fp16_cuda(folder, bundle, reference, proof, say=say)
    variants = {**manifest.variants, fused.NAME: variant}
    return save_manifest(folder, replace(manifest, variants=variants))


def _reference_engine(bundle: Bundle, model: "AmlrModel | None") -> Engine:
    """Whose entities a half variant must keep: the eager model's, or the fp32 graphs'."""
    if model is None:
        return Engine.load(bundle.path, provider="onnxruntime", precision="exact", check="off")
    from amlr.export.eager import EagerProvider

    return Engine(bundle, EagerProvider(model))


def save_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """List the folder's files and write the manifest."""
    manifest = replace(manifest, files=list_files(folder))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def copy_bundle(source: Bundle, folder: Path) -> Manifest:
    """Copy every listed file of a bundle into a staged folder, and write the manifest there."""
    for name, entry in source.manifest.files.items():
        _place(source.path / name, folder / name)
        assert entry.bytes == (folder / name).stat().st_size
    return save_manifest(folder, source.manifest)


def _place(source: Path, target: Path) -> None:
    # Copied, not linked: onnx refuses weights with a second hard link.
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
