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

from amlr.cli_support import progress
from amlr.errors import InputError
from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, with_decoder
from amlr.training.config import AmlrConfig
from amlr.training.conll import ImageFolder, LabelledPost, labels_of, match_labels, read_corpora
from amlr.training.data import Pictures, Scope, make_examples
from amlr.training.encoders import (
    LoadedImage,
    LoadedText,
    build_model,
    load_image_encoder,
    load_text_encoder,
)
from amlr.training.evaluate import Tuned, score_decoders, tune
from amlr.training.model import AmlrModel
from amlr.training.predict import predict
from amlr.training.scorer import Scorer
from amlr.training.settings import TrainSettings
from amlr.training.state import require_state
from amlr.training.train import Corpus, Trainer

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
        pictures = open_pictures(folder, image.spec, [*train_posts, *dev_posts])
        if not settings.train_image:
            precompute_features(pictures, model)
        log.info(f"pictures: {_counts(pictures)}")
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
        "state": str(trainer.state_path),
        "metrics": str(trainer.metrics_path),
        "pictures": pictures.report() if pictures else None,
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
    width = int(text.settings.get("hidden_size") or text.settings.get("dim") or 0)
    if not width:
        raise InputError("the text encoder's configuration names no hidden_size; choose another")
    return AmlrConfig(
        text_encoder=text.settings,
        image_encoder=image.settings,
        width=width,
        scales=options.scales,
        heads=options.heads,
        head_width=options.head_width,
        labels=labels,
        dropout=options.dropout,
        shape_classes=9 if options.shape_embedding else 0,
    )


def open_pictures(folder: ImageFolder, spec: ImageSpec, posts: Sequence[LabelledPost]) -> Pictures:
    """Pictures of a corpus, looked up once."""
    pictures = Pictures(folder=folder, spec=spec)
    pictures.register(posts)
    return pictures


def precompute_features(pictures: Pictures, model: AmlrModel, batch_size: int = 4) -> None:
    """Run the frozen image encoder once over every picture; keeps the results in memory.

    Small batches: activations of a few pictures still fit the cache, which is twice as fast.
    """
    model.image.encoder.eval()
    total = -(-len(pictures.ids) // batch_size)
    for ids, pixels in progress(pictures.pixel_batches(batch_size), "picture batches", total):
        with torch.no_grad():
            features = model.image.features(pixels)
        for image_id, regions in zip(ids, features, strict=True):
            # A copy: rows of a batch would keep the whole batch alive.
            pictures.features[image_id] = regions.clone()


def make_corpus(
    posts: Sequence[LabelledPost],
    checkpoint: Checkpoint,
    pictures: Pictures | None,
    scope: Scope,
) -> Corpus:
    """Examples of a corpus for a model."""
    rename = match_labels(labels_of(posts), checkpoint.config.labels)
    examples = make_examples(
        posts,
        checkpoint.build_text_encoder(),
        labels=checkpoint.config.labels,
        tags=checkpoint.config.tags,
        scales=checkpoint.config.scales,
        scope=scope,
        rename=rename,
    )
    return Corpus(posts=posts, examples=examples, pictures=pictures, rename=rename)


def finish(
    out: Path, dev_posts: Sequence[LabelledPost], pictures: Pictures | None, device: str
) -> dict[str, Any]:
    """Score the best model in float32, tune its decoder on dev and save it again."""
    checkpoint = load_checkpoint(out)
    model = checkpoint.build_model().to(device)
    scorer = Scorer(model)
    reports: dict[str, Any] = {}
    tuned: Tuned | None = None
    for name, shown in (("dev", pictures), ("dev_without_pictures", None)):
        if name != "dev" and pictures is None:
            continue
        corpus = make_corpus(dev_posts, checkpoint, shown, "all")
        scores = predict(
            scorer,
            corpus.examples,
            corpus.image_ids,
            shown,
            pad_id=checkpoint.token_ids.pad_id,
            device=device,
        )
        # Without pictures the same settings are used: a bundle has one b and one w.
        tuned = tuned or tune(scores, dev_posts, checkpoint.config, corpus.rename)
        reports[name] = score_decoders(scores, dev_posts, scorer, tuned, corpus.rename)
    assert tuned is not None
    gain = {}
    if pictures is not None:
        shown_f1, hidden_f1 = (
            reports[name]["joint"]["strict"]["f1"] for name in ("dev", "dev_without_pictures")
        )
        gain["picture_gain"] = round(shown_f1 - hidden_f1, 6)
    summary = {
        decoder: {mode: modes[mode]["f1"] for mode in ("strict", "lenient")}
        for decoder, modes in reports["dev"].items()
    }
    calibration = dict(tuned.calibration)
    save_checkpoint(
        out, with_decoder(checkpoint, tuned.joint, dev_f1=summary, calibration=calibration)
    )
    return {**reports, **gain, "decoder": asdict(tuned.joint), "calibration": calibration}


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
        "settings": settings.to_dict(),
        "data": {path.name: _sha256(path) for path in paths},
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
        "data": [_sha256(path) for path in paths],
        "model": asdict(model_options),
        # Where to save is no part of the result.
        "settings": asdict(replace(settings, save_every=0)),
        "encoders": [Path(options.text_source).name, Path(options.image_source).name],
        "pictures": options.images is not None,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _counts(pictures: Pictures) -> str:
    counts = pictures.folder.counts
    text = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    broken = sorted(pictures.folder.unreadable)[:3]
    return f"{text} (unreadable: {', '.join(broken)} ...)" if broken else text
