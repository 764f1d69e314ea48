"""Checkpoint to bundle: graphs, proof, golden samples, manifest; whole or not at all."""

import datetime
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from amlr import __version__
from amlr.export.additions import Additions, apply_additions
from amlr.export.eager import EagerProvider
from amlr.export.extend import save_manifest
from amlr.export.golden import save_golden, write_golden
from amlr.export.graphs import build_graphs, regions_of
from amlr.export.parity import FP32_TOLERANCE, ParityReport, compare, require
from amlr.export.reference import write_reference
from amlr.export.samples import sample_posts
from amlr.export.staging import check_target, file_entry, staged
from amlr.export.to_onnx import write_graphs
from amlr.runtime.bundle import Bundle
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
from amlr.training.checkpoint import Checkpoint, ReleaseOptions, load_checkpoint
from amlr.training.model import AmlrModel
from amlr.training.predict import legal_moves

PARITY_POSTS = 64
GOLDEN_POSTS = 6
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Choices of an export.

    Attributes:
        name: Name in the manifest; None takes the bundle's folder name.
        keep_reference: Store the eager model, so that the bundle can be proved again anywhere.
        fold: Fold the attention per head; None decides by cost.
        tolerance: Largest allowed difference of raw logits, absolute.
        release: What a bare state_dict of the published release lacks.
        additions: Precisions, engines and kernels beside float32.
    """

    name: str | None = None
    keep_reference: bool = True
    fold: bool | None = None
    tolerance: float = FP32_TOLERANCE
    release: ReleaseOptions = field(default_factory=ReleaseOptions)
    additions: Additions = field(default_factory=Additions)


def export_checkpoint(
    ckpt: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    say: Say = lambda line: None,
) -> Manifest:
    """Export a checkpoint as a float32 bundle, prove it, and put it at `out`.

    Args:
        ckpt: `best.pt`, or a state_dict of the published release.
        out: Folder of the bundle; an older bundle there is replaced at the very end.
        options: Choices; None takes the defaults.
        say: Receives one line per step.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ExportError: A graph could not be exported, or `out` is something else.
        ParityError: The graphs do not give the eager model's numbers; nothing is left behind.
    """
    options = options or ExportOptions()
    options.additions.check_libraries()
    check_target(out)
    checkpoint = load_checkpoint(ckpt, options.release)
    model = checkpoint.build_model()
    with staged(out) as folder:
        say("exporting graphs")
        variant = _write_fp32(model, checkpoint, folder, options)
        _write_decoder(model, folder / DECODER)
        (folder / TOKENIZER).write_text(checkpoint.tokenizer_json, encoding="utf-8")
        if options.keep_reference:
            write_reference(folder / REFERENCE, checkpoint.config, model.state_dict())
        # The folder's own name, of a link the one it leads to; "v1.0" has no suffix.
        name = options.name or out.resolve().name.removesuffix(".plan")
        manifest = _manifest(ckpt, checkpoint, model, variant, name)
        # A bundle always has golden samples; they come from the engine that needs a bundle.
        save_golden(folder / GOLDEN, [], {})
        save_manifest(folder, manifest)

        say(f"proving {PARITY_POSTS} posts against the eager model")
        bundle = Bundle.open(folder)
        report = ParityReport()
        with Engine(bundle, EagerProvider(model)) as eager:
            for packed in (True, False):
                provider = OnnxRuntimeProvider(bundle, variant, ProviderOptions(), packed=packed)
                with Engine(bundle, provider, variant=variant) as candidate:
                    compare(eager, candidate, sample_posts(PARITY_POSTS), report)
            require(report, "fp32", options.tolerance)
            write_golden(folder / GOLDEN, eager, sample_posts(GOLDEN_POSTS))
        say(f"  {report.entities} entities, 0 changed; {_errors(report.max_abs_error)}")
        variant = replace(variant, parity=report.to_dict())
        manifest = save_manifest(folder, replace(manifest, variants={"fp32": variant}))
        manifest = apply_additions(
            folder, manifest, options.additions, model=model, fold=options.fold, say=say
        )
        # The last look is the user's first: load it as they will, golden check included.
        Engine.load(folder, provider="onnxruntime").close()
    return manifest


def _errors(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} within {error:.1e}" for name, error in errors.items())


def _write_fp32(
    model: AmlrModel, checkpoint: Checkpoint, folder: Path, options: ExportOptions
) -> Variant:
    target = folder / "onnx" / "fp32"
    target.mkdir(parents=True)
    specs = build_graphs(model, image_size=checkpoint.image.size, fold=options.fold)
    files = write_graphs(specs, target)
    graphs = {name: path.relative_to(folder).as_posix() for name, path in files.items()}
    return Variant(precision="fp32", graphs=graphs)


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


def _manifest(
    ckpt: Path, checkpoint: Checkpoint, model: AmlrModel, variant: Variant, name: str
) -> Manifest:
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
        variants={"fp32": variant},
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
