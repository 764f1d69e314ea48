"""A tiny training set-up: a random model, a dozen generated posts, drawn pictures."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from amlr.training.conll import ImageFolder, LabelledPost, read_conll
from amlr.training.data import Pictures, make_corpus
from amlr.training.sample import write_sample
from amlr.training.settings import TrainSettings
from amlr.training.train import Trainer
from tiny import tiny_checkpoint, tiny_tokenizer
from tiny_model import tiny_config

FAST: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "head_lr": 1e-2, "patience": 0}


def small_sample(folder: Path) -> tuple[list[LabelledPost], list[LabelledPost]]:
    """Generated posts and pictures, few enough for a test."""
    write_sample(folder, train=16, dev=8)
    return read_conll(folder / "train.txt"), read_conll(folder / "valid.txt")


def make_trainer(folder: Path, out: Path, *, images: bool = True, **options: Any) -> Trainer:
    """A trainer of the tiny model on the small sample, from the same weights every time."""
    settings = TrainSettings(**{**FAST, **options})
    train_posts, dev_posts = small_sample(folder)
    template = tiny_checkpoint(seed=settings.seed)
    model = template.build_model()
    pictures: Pictures | None = None
    if images:
        root = ImageFolder(root=folder / "images")
        pictures = Pictures(root, template.image, [*train_posts, *dev_posts])
        if not settings.train_image:
            pictures.precompute(model.image)
    return Trainer(
        model,
        settings,
        train=make_corpus(
            train_posts, template, pictures, "all" if settings.loss == "ce" else "aligned"
        ),
        dev=make_corpus(dev_posts, template, pictures, "aligned"),
        template=template,
        out=out,
        fingerprint="test",
        device="cpu",
    )


def first_posts(count: int) -> list[LabelledPost]:
    """Hand-written posts whose words are in no order of length."""
    posts = [
        LabelledPost(words=("Jordan", "in", "Paris"), tags=("B-PER", "O", "B-LOC")),
        LabelledPost(words=("ok",), tags=("O",)),
        LabelledPost(
            words=("the", "New", "York", "Apple", "Inc"),
            tags=("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"),
        ),
        LabelledPost(words=("St", "Ives", "!"), tags=("I-LOC", "I-LOC", "O")),
    ]
    return [posts[number % len(posts)] for number in range(count)]


def write_encoders(folder: Path) -> tuple[Path, Path]:
    """A tiny text encoder and a tiny image encoder as transformers saves them."""
    text, image = folder / "text", folder / "image"
    config = tiny_config(image="vit")
    for target, values in ((text, config.text_encoder), (image, config.image_encoder)):
        settings = dict(values)
        kind = settings.pop("model_type")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(target)
    (text / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    (text / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", **tokens})
    )
    (image / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "resample": 3})
    )
    return text, image
