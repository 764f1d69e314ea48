"""Faults of a corpus whose every line can be read, said before hours are spent."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amlr.errors import InputError
from amlr.training.conll import LabelledPost, read_conll
from amlr.training.score import write_tags

log = logging.getLogger(__name__)


def read_corpora(train: Path, dev: Path) -> tuple[list[LabelledPost], list[LabelledPost]]:
    """Read both halves of a training corpus, with IOB1 tags turned into IOB2; logs what is odd.

    Args:
        train: CoNLL file to train on.
        dev: CoNLL file that chooses the best epoch.

    Raises:
        InputError: A file cannot be read, or the first one has nothing to learn.
    """
    train_posts, dev_posts = (_read_iob2(path) for path in (train, dev))
    if not has_entities(train_posts):
        raise InputError(
            f"{train} holds no entities: every tag is O; give a file with B- and I- tags",
            "data_empty",
        )
    if not has_entities(dev_posts):
        log.warning(f"{no_entities_note(dev)}; no epoch can be told from another")
    known = {post.text for post in train_posts}
    shared = sum(post.text in known for post in dev_posts)
    if 2 * shared >= len(dev_posts):
        log.warning(
            f"{shared} of {len(dev_posts)} posts of {dev} are also in {train}; dev scores "
            "say nothing about new posts; hold other posts back"
        )
    return train_posts, dev_posts


def _read_iob2(path: Path) -> list[LabelledPost]:
    posts = read_conll(path)
    note = iob1_note(path, posts)
    if note is None:
        return posts
    log.info(f"{note}; read as IOB2")
    return [replace(post, tags=tuple(write_tags(post.entities, len(post.tags)))) for post in posts]


def has_entities(posts: Sequence[LabelledPost]) -> bool:
    """Whether any post has one."""
    return any(post.entities for post in posts)


def no_entities_note(path: Path) -> str:
    """Line on a corpus without entities."""
    return f"{path} holds no entities (every tag is O), so precision, recall and F1 are 0"


def iob1_note(path: Path, posts: Sequence[LabelledPost]) -> str | None:
    """Line on a corpus most of whose entities begin with `I-`, as IOB1 has them; None for others.

    A few of them are slips, which real IOB2 corpora have too.
    """
    firsts = [post.tags[start] for post in posts for start, _, _ in post.entities]
    begun = sum(tag.startswith("I-") for tag in firsts)
    if 2 * begun <= len(firsts):
        return None
    return f"{path} looks like IOB1: {begun} of {len(firsts)} entities begin with I-"
