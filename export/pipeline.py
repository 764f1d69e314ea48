"""Checkpoint to bundle: graphs, their parity, golden samples, manifest; whole or not at all."""

import datetime
import importlib.metadata
import logging
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from amlr import __version__
from amlr.export.additions import prepare, steps_to_add
from amlr.export.eager import EagerProvider, write_reference
from amlr.export.golden import write_golden
from amlr.export.graphs import build_graphs, regions_of
from amlr.export.options import ExportOptions
from amlr.export.parity import ask, compare, require
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle, check_target, file_entry, staged
from amlr.export.steps import Step, run_steps
from amlr.export.to_onnx import write_graphs
from amlr.runtime.engine import Engine
from amlr.runtime.image import ImageLimits
from amlr.runtime.manifest import (
    DECODER,
    GOLDEN,
    REFERENCE,
    TOKENIZER,
    Manifest,
    Variant,
)
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.training.checkpoint import Checkpoint
from amlr.training.model import AmlrModel
from amlr.training.predict import legal_moves
from amlr.training.release import ReleaseOptions, load_any_checkpoint

PARITY_POSTS = 64
GOLDEN_POSTS = 6
log = logging.getLogger(__name__)


def export_checkpoint(
    ckpt: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    release: ReleaseOptions | None = None,
) -> Manifest:
    """Export a checkpoint as a float32 bundle, verify it, add to it, and put it at `out`.

    Args:
        ckpt: `best.pt`, or a state_dict of the published release.
        out: Folder of the bundle; an older bundle there is replaced at the very end.
        options: Choices; None takes the defaults.
        release: What a bare state_dict of the published release lacks.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        InputError: The calibration posts cannot be used.
        BackendUnavailableError: A library that was asked for is not installed.
        ExportError: A graph could not be exported, or `out` is something else.
        ParityError: The graphs do not give the eager model's numbers; nothing is left behind.
    """
    options = options or ExportOptions()
    check_target(out)
    posts = prepare(options)
    checkpoint = load_any_checkpoint(ckpt, release)
    model = checkpoint.build_model()
    with staged(out) as folder:
        # The folder's own name, of a link the one it leads to; "v1.0" has no suffix.
        name = options.name or out.resolve().name.removesuffix(".plan")
        bundle = StagedBundle(folder, _manifest(ckpt, checkpoint, model, name))
        run_steps(
            [
                Step(
                    label="exporting graphs",
                    run=partial(_write_fp32, bundle, model, checkpoint, options),
                ),
                Step(
                    label=f"verifying {PARITY_POSTS} posts against the eager model",
                    run=partial(_verify_fp32, bundle, model, options.tolerance),
                    posts=3 * PARITY_POSTS,
                ),
                *steps_to_add(bundle, options, posts, model=model),
                Step(label="loading the bundle as a user would", run=partial(_load, folder)),
            ]
        )
    return bundle.manifest


def _verify_fp32(bundle: StagedBundle, model: AmlrModel, tolerance: float) -> None:
    """Compare both forms of the float32 graphs with the eager model; record it, write golden posts.

    Raises:
        ParityError: A number or an entity differs.
    """
    variant = bundle.manifest.variants["fp32"]
    opened, posts = bundle.open(), sample_posts(PARITY_POSTS)
    with Engine(opened, EagerProvider(model)) as eager:
        expected = ask(eager, posts)
        actual = []
        for packed in (True, False):
            provider = OnnxRuntimeProvider(opened, variant, ProviderOptions(), packed=packed)
            with Engine(opened, provider, variant=variant) as candidate:
                actual += ask(candidate, posts)
        result = compare([*expected, *expected], actual)
        require(result, "fp32", tolerance, [*posts, *posts])
        write_golden(bundle.folder / GOLDEN, eager, sample_posts(GOLDEN_POSTS))
    log.info(f"  {result.entities} entities, 0 changed; {_errors(result.max_abs_error)}")
    bundle.save(variants={"fp32": replace(variant, parity=result.to_dict())})


def _errors(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} within {error:.1e}" for name, error in errors.items())


def _write_fp32(
    bundle: StagedBundle, model: AmlrModel, checkpoint: Checkpoint, options: ExportOptions
) -> None:
    """Write what a bundle needs in float32; its golden posts come with the verification."""
    folder = bundle.folder
    target = folder / "onnx" / "fp32"
    target.mkdir(parents=True)
    specs = build_graphs(model, image_size=checkpoint.image.size, fold=options.fold)
    files = write_graphs(specs, target)
    graphs = {name: path.relative_to(folder).as_posix() for name, path in files.items()}
    _write_decoder(model, folder / DECODER)
    (folder / TOKENIZER).write_text(checkpoint.tokenizer_json, encoding="utf-8")
    if options.keep_reference:
        write_reference(folder / REFERENCE, checkpoint.config, model.state_dict())
    bundle.save(variants={"fp32": Variant(precision="fp32", graphs=graphs)})


def _load(folder: Path) -> None:
    """Golden check included."""
    Engine.load(folder, provider="onnxruntime").close()


def _write_decoder(model: AmlrModel, path: Path) -> None:
    allowed_yy, allowed_start_y = legal_moves(model.config.tags)
    save_file(
        {
            "transitions": model.crf_transitions.detach().numpy(),
            "start": model.crf_start.detach().numpy(),
            "end": model.crf_end.detach().numpy(),
            "allowed": allowed_yy.astype(np.uint8),
            "allowed_start": allowed_start_y.astype(np.uint8),
        },
        path,
    )


def _manifest(ckpt: Path, checkpoint: Checkpoint, model: AmlrModel, name: str) -> Manifest:
    config = checkpoint.config
    return Manifest(
        name=name,
        labels=config.labels,
        tags=config.tags,
        scales=config.scales,
        width=config.width,
        regions=regions_of(model, checkpoint.image.size),
        heads=config.heads,
        head_width=config.head_width,
        shape_embedding=bool(config.shape_classes),
        text=checkpoint.text,
        token_ids=checkpoint.token_ids,
        image=checkpoint.image,
        limits=ImageLimits(),
        decoder=checkpoint.decoder,
        provenance=_provenance(ckpt, checkpoint),
        variants={},
        files={},
    )


def _provenance(ckpt: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    packages = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pillow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "checkpoint_sha256": file_entry(ckpt).sha256,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"amlr": __version__, "python": platform.python_version(), **versions},
        "training": dict(checkpoint.provenance),
    }
