"""Adding to a float32 bundle: precisions, engines, compiled decoders.

The same steps serve `amlr-export --ckpt` (where the eager model is at hand) and
`amlr-export --from`, which needs neither checkpoint nor torch.
"""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from amlr.export.fused.variant import check_twins, merge_products, write_fp16_cuda
from amlr.export.ladder.ladder import steps_of_cpu_variants
from amlr.export.options import FP16_CUDA, ExportOptions
from amlr.export.posts import CalibrationPosts, read_posts
from amlr.export.precision.judge import GRAPHS
from amlr.export.precision.variant import fp32_models, write_fp16
from amlr.export.staging import StagedBundle, check_target, file_entry, staged
from amlr.export.steps import Step, run_steps
from amlr.export.tensorrt.engines import add_engines, target_sms
from amlr.export.to_onnx import trace
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Manifest
from amlr.runtime.tensorrt_library import load_tensorrt

if TYPE_CHECKING:  # adding to a bundle needs no torch
    from amlr.training.model import AmlrModel

log = logging.getLogger(__name__)


def add_to_bundle(source: Path, out: Path, options: ExportOptions) -> Manifest:
    """Write a bundle that holds all of `source` and what was asked for.

    Args:
        source: An exported bundle; never changed, but may be the same folder as `out`.
        out: Where the new one appears, whole or not at all.
        options: Choices; those of the float32 bundle itself have no effect.

    Raises:
        BundleError: The source cannot be read.
        InputError: The calibration posts cannot be used.
        BackendUnavailableError: A library that was asked for is not installed.
        ExportError: A graph was not accepted or could not be built.
        ParityError: A variant changes entities.
    """
    check_target(out)
    old = Bundle.open(source)
    posts = prepare(options)
    with staged(out) as folder:
        bundle = StagedBundle(folder, old.manifest)
        bundle.copy(old)
        run_steps(steps_to_add(bundle, options, posts, reuse=old))
    return bundle.manifest


def prepare(options: ExportOptions) -> CalibrationPosts | None:
    """Look for the libraries and read the posts, before any work is done.

    Returns:
        Calibration posts, or None where only float32 is wanted.

    Raises:
        BackendUnavailableError: A library that was asked for is not installed.
        InputError: The calibration posts cannot be used.
    """
    for target in options.engine_targets:
        load_tensorrt(target)
    if not set(options.precisions) - {"fp32"}:
        return None
    return read_posts(options.calib, options.images, most=options.max_posts)


def steps_to_add(
    bundle: StagedBundle,
    options: ExportOptions,
    posts: CalibrationPosts | None,
    *,
    model: "AmlrModel | None" = None,
    reuse: Bundle | None = None,
) -> list[Step]:
    """Steps that add to a staged bundle, which must be complete in float32 when they run.

    Args:
        bundle: Changed in place.
        options: What to add.
        posts: From `prepare`.
        model: The eager model where there is one; None compares with the fp32 graphs.
        reuse: An older bundle whose engines are copied where nothing changed.

    Returns:
        The steps. They raise `ExportError` where a graph is not accepted or cannot be built, and
        `ParityError` where a variant changes entities and none of its parts may stay float32.

    Raises:
        BackendUnavailableError: A library that was asked for is not installed.
    """
    _warn_of_training_posts(bundle.manifest, options.calib)
    steps = []
    has_fp16 = "fp16" in bundle.manifest.variants
    if posts is not None and "fp16" in options.precisions and not has_fp16:
        add = partial(add_fp16, bundle, posts, model=model, fold=options.fold)
        steps.append(Step(label="choosing what may be float16", run=add, posts=None))
        has_fp16 = True
    for target in options.engine_targets:
        # fp16 is what engines are for; fp32 ones are built where there is nothing else.
        variant, library = "fp16" if has_fp16 else "fp32", load_tensorrt(target)
        label = f"building {library.name}, {variant}, for {target_sms(library, options)}"
        build = partial(add_engines, bundle, library, variant, options, reuse=reuse)
        steps.append(Step(label=label, run=build, posts=None))
    if posts is not None and FP16_CUDA in options.precisions:
        tuning, held_out = posts.half_posts()
        judged = len(held_out) + (len(tuning) if posts.given else 0)
        add = partial(add_fp16_cuda, bundle, posts, model=model)
        label = f"making {FP16_CUDA} and judging it on {judged} posts"
        steps.append(Step(label=label, run=add, posts=2 * judged))
    if posts is not None and options.cpu_precisions:
        steps += steps_of_cpu_variants(bundle, options.cpu_precisions, posts)
    if options.targets:
        compile_ = partial(add_kernels, bundle)
        steps.append(Step(label="compiling the CUDA decoders", run=compile_, posts=None))
    return steps


def _warn_of_training_posts(manifest: Manifest, calib: Path | None) -> None:
    """A model is surer of what it was trained on, so such posts promise more than users get."""
    training = manifest.provenance.get("training")
    files = training.get("data") if isinstance(training, dict) else None
    if calib is None or not isinstance(files, dict):
        return
    if file_entry(calib).sha256 in [files[name] for name in files if "train" in name]:
        log.warning(
            f"{calib.name} is what the model was trained on: fewer answers will be certified in "
            "service than here; give posts that it has not seen"
        )


def add_fp16(
    bundle: StagedBundle,
    posts: CalibrationPosts,
    *,
    model: "AmlrModel | None" = None,
    fold: bool | None = None,
) -> None:
    """Add the fp16 variant.

    Args:
        bundle: With its fp32 variant and golden posts.
        posts: Islands are searched on one half of them, and verified on the other.
        model: The eager model: entities are compared with it, and regions are centred before they
            are rounded. None converts the fp32 graphs and compares with them; needs no torch.
        fold: As for `build_graphs`.

    Raises:
        ParityError: Entities change, even with every block float32.
    """
    opened = bundle.open()
    models = fp32_models(opened) if model is None else _centred(model, bundle, fold)
    merged = merge_products(models)
    check_twins(opened, models, merged)
    with _reference_engine(opened, model) as reference:
        variant, _ = write_fp16(
            opened, reference, *posts.half_posts(), given=posts.given, models=models | merged
        )
    bundle.save(variants={**bundle.manifest.variants, "fp16": variant})


def _centred(
    model: "AmlrModel", bundle: StagedBundle, fold: bool | None
) -> dict[str, onnx.ModelProto]:
    """Padded graphs of the eager model that centre regions."""
    from amlr.export.graphs import build_graphs

    size = bundle.manifest.image.size
    specs = build_graphs(model, image_size=size, fold=fold, centre=True)
    return {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}


def add_fp16_cuda(
    bundle: StagedBundle, posts: CalibrationPosts, *, model: "AmlrModel | None" = None
) -> None:
    """Add the fp16 variant of onnxruntime's CUDA provider; arguments as for `add_fp16`.

    Raises:
        ExportError: A weight leaves the float16 range, or a fused graph computes something else.
    """
    opened = bundle.open()
    with _reference_engine(opened, model) as reference:
        variant = write_fp16_cuda(opened, reference, *posts.half_posts(), given=posts.given)
    bundle.save(variants={**bundle.manifest.variants, FP16_CUDA: variant})


def _reference_engine(bundle: Bundle, model: "AmlrModel | None") -> Engine:
    """Whose entities a half variant must keep: the eager model's, or the fp32 graphs'."""
    if model is None:
        return Engine.load(bundle.path, provider="onnxruntime", precision="exact", check="off")
    from amlr.export.eager import EagerProvider

    return Engine(bundle, EagerProvider(model))


def add_kernels(bundle: StagedBundle) -> None:
    """Compile the CUDA decoders into the bundle; images that it holds already are kept."""
    from amlr.kernels.images import build_images

    folder = bundle.folder / "kernels"
    # A damaged one is made anew.
    ready = {
        path.name
        for path in folder.glob("*")
        if file_entry(path) == bundle.manifest.files.get(f"{folder.name}/{path.name}")
    }
    records = build_images(folder, tags=len(bundle.manifest.tags), ready=ready)
    architectures = sorted({record.architecture for record in records})
    kept = sum(record.file in ready for record in records)
    log.info(f"  {len(records)} images for {', '.join(architectures)}, {kept} of them kept")
    bundle.save(kernels=tuple(asdict(record) for record in records))
