"""A whole training run: read, load encoders, train, score on dev with every decoder, save."""

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from amlr.errors import InputError
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import Checkpoint, save_checkpoint
from amlr.training.config import AmlrConfig
from amlr.training.conll import ImageFolder, LabelledPost, labels_of, read_corpora
from amlr.training.data import Pictures, Scope, make_corpus
from amlr.training.encoders import (
    LoadedImage,
    LoadedText,
    build_model,
    load_image_encoder,
    load_text_encoder,
    plain,
)
from amlr.training.evaluate import score_decoders, tune
from amlr.training.predict import make_decoder, predict
from amlr.training.release import load_any_checkpoint
from amlr.training.scorer import Scorer
from amlr.training.settings import TrainSettings
from amlr.training.train import Trainer, require_state, state_path
from amlr.training.wheels import file_sha256

_DEV_NAMES = ("valid.txt", "dev.txt", "valid.conll", "dev.conll")
_TRAIN_NAMES = ("train.txt", "train.conll")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What of the model is chosen at training time; see `AmlrConfig`."""

    heads: int = 8
    head_width: int = 0
    scales: int = 6
    dropout: float = 0.1
    shape_embedding: bool = True
    max_tokens: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Inputs and outputs of a run.

    Attributes:
        data: Folder with `train.txt` and `valid.txt` (or `dev.txt`).
        out: The checkpoint to write.
        text_source: Folder or hub name of the text encoder.
        image_source: The same of the image encoder.
        images: Folder of pictures, or None for a run without.
        broken_ids: Pictures known to be placeholders.
        device: `cpu` keeps the run off a GPU.
        resume: Continue from the resume point beside `out`.
        name: Name of the preset, for the record.
    """

    data: Path
    out: Path
    text_source: str
    image_source: str
    images: Path | None = None
    broken_ids: frozenset[str] = frozenset()
    device: str | None = None
    resume: bool = False
    name: str = ""


def find_split(folder: Path, names: Sequence[str]) -> Path:
    """The first of some files that a data folder has.

    Raises:
        InputError: None is there.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} has none of {', '.join(names)}; give a folder of CoNLL files", "data_missing"
    )


def run_training(
    options: RunOptions,
    model_options: ModelOptions,
    settings: TrainSettings,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train and score a model.

    Args:
        options: Where things are.
        model_options: What the model looks like.
        settings: How to train it.
        should_stop: Asked after every update.

    Returns:
        `status` (`done` or `stopped`), paths, dev scores per decoder and what became of pictures.

    Raises:
        InputError: Data, pictures or encoders cannot be used, or training diverged.
        CheckpointError: There is no resume point to continue from, or it is of another run.
    """
    if options.resume:
        require_state(options.out)
    paths = find_split(options.data, _TRAIN_NAMES), find_split(options.data, _DEV_NAMES)
    train_posts, dev_posts = read_corpora(*paths)
    text = load_text_encoder(options.text_source)
    image = load_image_encoder(options.image_source)
    torch.manual_seed(settings.seed)
    config = make_config(text, image, labels_of([*train_posts, *dev_posts]), model_options)
    model = build_model(config, text, image)
    template = Checkpoint(
        config=config,
        weights={},
        tokenizer_json=text.tokenizer_json,
        token_ids=text.token_ids,
        text=TextSpec(max_tokens=min(model_options.max_tokens, text.max_tokens)),
        image=image.spec,
        decoder=DecoderSettings(),
        provenance=_provenance(options, settings, paths),
    )
    pictures = None
    if options.images is not None:
        folder = ImageFolder(root=options.images, broken=options.broken_ids)
        pictures = Pictures(folder, image.spec, [*train_posts, *dev_posts])
        if not settings.train_image:
            pictures.precompute(model.image)
        log.info(folder.summary())
    scope: Scope = "all" if settings.loss == "ce" else "aligned"
    trainer = Trainer(
        model,
        settings,
        train=make_corpus(train_posts, template, pictures, scope),
        dev=make_corpus(dev_posts, template, pictures, "aligned"),
        template=template,
        out=options.out,
        fingerprint=_fingerprint(paths, model_options, settings, options),
        device=options.device,
    )
    if options.resume:
        trainer.load_state()
    log.info(
        f"{len(train_posts)} posts to train on, {len(dev_posts)} dev posts, types "
        f"{', '.join(config.labels)}; {trainer.updates} updates"
    )
    is_done = trainer.run(should_stop)
    result = {
        "status": "done" if is_done else "stopped",
        "checkpoint": str(options.out),
        "state": str(state_path(options.out)),
        "metrics": str(trainer.metrics_path),
        "pictures": pictures.folder.report() if pictures else None,
    }
    if is_done and trainer.accelerator.is_main_process:
        result |= finish(options.out, dev_posts, pictures, str(trainer.accelerator.device))
        trainer.log({"kind": "final", **result})
        result["plot"] = plot_metrics(
            trainer.progress.history, options.out.with_name("training.png")
        )
    return result


def make_config(
    text: LoadedText, image: LoadedImage, labels: tuple[str, ...], options: ModelOptions
) -> AmlrConfig:
    """Model settings for two encoders and a corpus's classes; the width is the text encoder's."""
    settings = plain(text.encoder.config.to_dict())
    width = int(settings.get("hidden_size") or settings.get("dim") or 0)
    if not width:
        raise InputError("the text encoder's configuration names no hidden_size; choose another")
    return AmlrConfig(
        text_encoder=settings,
        image_encoder=plain(image.encoder.config.to_dict()),
        width=width,
        scales=options.scales,
        heads=options.heads,
        head_width=options.head_width,
        labels=labels,
        dropout=options.dropout,
        shape_classes=9 if options.shape_embedding else 0,
    )


def finish(
    out: Path, dev_posts: Sequence[LabelledPost], pictures: Pictures | None, device: str
) -> dict[str, Any]:
    """Score the best model in float32, tune its decoder on dev and save it again."""
    checkpoint = load_any_checkpoint(out)
    model = checkpoint.build_model().to(device)
    decoder = make_decoder(model, checkpoint.decoder)
    scorer = Scorer(model)
    corpus = make_corpus(dev_posts, checkpoint, pictures, "all")
    predictions = predict(scorer, corpus)
    tuned = tune(predictions, corpus, decoder)
    report = score_decoders(predictions, corpus, decoder, tuned)
    result: dict[str, Any] = {"dev": report}
    if pictures is not None:
        # By the same settings: a bundle has one b and one w.
        without = predict(scorer, replace(corpus, pictures=None))
        hidden = score_decoders(without, corpus, decoder, tuned)
        gain = report["joint"]["strict"]["f1"] - hidden["joint"]["strict"]["f1"]
        result |= {"dev_without_pictures": hidden, "picture_gain": round(gain, 6)}
    summary = {
        name: {mode: modes[mode]["f1"] for mode in ("strict", "lenient")}
        for name, modes in report.items()
    }
    calibration = dict(tuned.calibration)
    provenance = {**checkpoint.provenance, "dev_f1": summary, "calibration": calibration}
    save_checkpoint(out, replace(checkpoint, decoder=tuned.joint, provenance=provenance))
    return {**result, "decoder": asdict(tuned.joint), "calibration": calibration}


def plot_metrics(history: Sequence[Mapping[str, Any]], path: Path) -> str | None:
    """Draw losses and dev F1.

    Args:
        history: Lines of `metrics.jsonl`.
        path: PNG to write.

    Returns:
        The path, or None when matplotlib is not installed or there is nothing to draw.
    """
    epochs = [line for line in history if line["kind"] == "epoch" and "dev_f1" in line]
    steps = [line for line in history if line["kind"] == "step"]
    if not epochs:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # A figure of its own: pyplot would pick a display backend and keep global state.
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if steps:
        updates = [line["update"] for line in steps]
        for name, label in (("span_loss", "span head"), ("crf_loss", "token head")):
            left.plot(updates, [line[name] for line in steps], label=label)
        left.set(xlabel="update", ylabel="loss", yscale="log")
        left.legend()
    numbers = [line["epoch"] for line in epochs]
    for name in epochs[0]["dev_f1"]:
        right.plot(numbers, [100 * line["dev_f1"][name] for line in epochs], "o-", label=name)
    right.set(xlabel="epoch", ylabel="dev F1, strict, %", xticks=numbers)
    right.legend()
    figure.savefig(path, dpi=110)
    return str(path)


def _provenance(
    options: RunOptions, settings: TrainSettings, paths: tuple[Path, Path]
) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "preset": options.name,
        "settings": asdict(settings),
        "data": {path.name: file_sha256(path) for path in paths},
        "pictures": options.images is not None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("amlr", "torch", "transformers", "tokenizers")},
        },
    }


def _fingerprint(
    paths: tuple[Path, Path],
    model_options: ModelOptions,
    settings: TrainSettings,
    options: RunOptions,
) -> str:
    about = {
        "data": [file_sha256(path) for path in paths],
        "model": asdict(model_options),
        # Where to save is no part of the result.
        "settings": asdict(replace(settings, save_every=0)),
        "encoders": [Path(options.text_source).name, Path(options.image_source).name],
        "pictures": options.images is not None,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
