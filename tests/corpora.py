"""A tiny training set-up: a random model, a dozen generated posts, drawn pictures."""

from pathlib import Path
from typing import Any

from amlr.training.checkpoint import Checkpoint
from amlr.training.conll import ImageFolder, LabelledPost, read_conll
from amlr.training.data import Pictures
from amlr.training.run import make_corpus, open_pictures, precompute_features
from amlr.training.sample import write_sample
from amlr.training.settings import TrainSettings
from amlr.training.train import Trainer
from tiny import tiny_checkpoint

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
        pictures = open_pictures(root, template.image, [*train_posts, *dev_posts])
        if not settings.train_image:
            precompute_features(pictures, model)
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


__all__ = ["Checkpoint", "first_posts", "make_trainer", "small_sample"]
