"""Posts from CoNLL files: `IMGID:` lines, one `token<TAB>tag` per line, a blank line between posts.

Also the inverse (`write_conll`) and the folder of pictures that goes with a file.
"""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError
from amlr.runtime.text_files import read_text
from amlr.training.score import Span, read_spans, write_tags

# Usual order of the classes; names a corpus adds follow alphabetically.
USUAL_LABELS = ("PER", "LOC", "ORG", "OTHER", "MISC")
# OTHER and MISC name the same class in the two Twitter corpora.
SAME_CLASS = {"MISC": "OTHER"}
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledPost:
    """One post of a corpus.

    Attributes:
        words: The corpus's own words, in order.
        tags: BIO tag of each word, as the file has them.
        image_id: Name of the picture without suffix; None when the file names none.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    image_id: str | None = None

    @cached_property
    def text(self) -> str:
        """The words joined by single spaces: what tokenizers see."""
        return " ".join(self.words)

    @cached_property
    def word_spans_n2(self) -> npt.NDArray[np.int32]:
        """Character span of each word in `text`, shape (N, 2), end exclusive."""
        ends = np.cumsum([len(word) + 1 for word in self.words], dtype=np.int32) - 1
        starts = ends - np.array([len(word) for word in self.words], dtype=np.int32)
        return np.stack([starts, ends], axis=1).astype(np.int32).reshape(-1, 2)

    @cached_property
    def entities(self) -> list[Span]:
        """Entities in words, read leniently: a stray `I-` opens one."""
        return read_spans(self.tags, "lenient")


def read_conll(path: str | Path) -> list[LabelledPost]:
    """Read every post of a CoNLL file.

    Lines are split on the tab only, because a token may itself be white space (a no-break space);
    the first column is the token, the last the tag. A line with neither token nor tag separates
    posts.

    Raises:
        InputError: The file cannot be read, is not text of a known encoding, or a line is not
            `token<TAB>tag`; names the line.
    """
    path = Path(path)
    content = read_text(path, "a CoNLL file")
    posts: list[LabelledPost] = []
    words: list[str] = []
    tags: list[str] = []
    image_id: str | None = None

    def finish() -> None:
        nonlocal image_id
        if words:
            posts.append(LabelledPost(words=tuple(words), tags=tuple(tags), image_id=image_id))
            words.clear()
            tags.clear()
            image_id = None

    # str.splitlines would also split at U+2028, U+0085 and the like, which occur inside tokens.
    for number, raw in enumerate(content.split("\n"), start=1):
        line = raw.rstrip("\r")
        # Files that were joined have a byte order mark in the middle.
        about = line.lstrip("\ufeff")
        if about.startswith("IMGID:"):
            finish()
            image_id = about.removeprefix("IMGID:").strip() or None
        elif not line.strip(" \t") or line.startswith("-DOCSTART-"):
            finish()
        else:
            columns = line.split("\t")
            if (problem := _problem_of(columns)) is not None:
                raise InputError(f"{path}:{number}: found {problem}", "data_bad")
            words.append(columns[0])
            tags.append(columns[-1].strip())
    finish()
    if not posts:
        raise InputError(
            f"{path} holds no posts; expected lines of token<TAB>tag, a blank line between posts",
            "data_empty",
        )
    return posts


def _problem_of(columns: list[str]) -> str | None:
    """What a line is instead of a token and a tag; None for a good one."""
    tag = columns[-1].strip()
    # Where some lines end with it alone, every second post would silently be lost.
    if any("\r" in column for column in columns):
        return (
            "a carriage return within a line, expected one kind of line end; convert the file, "
            "for example: sed 's/\\r/\\n/g'"
        )
    if len(columns) < 2 or not columns[0]:
        return f"{columns!r}, expected token<TAB>tag; separate by one tab"
    if tag != "O" and not (tag[:2] in ("B-", "I-") and len(tag) > 2):
        return f"tag {tag!r}, expected O, B-TYPE or I-TYPE; convert other schemes to BIO"
    return None


def write_conll(path: str | Path, posts: Iterable[LabelledPost]) -> None:
    """Write posts in the form `read_conll` reads."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for post in posts:
            if post.image_id is not None:
                file.write(f"IMGID:{post.image_id}\n")
            file.writelines(
                f"{word}\t{tag}\n" for word, tag in zip(post.words, post.tags, strict=True)
            )
            file.write("\n")


def labels_of(posts: Iterable[LabelledPost]) -> tuple[str, ...]:
    """Entity types that occur, in the usual order (PER, LOC, ORG, OTHER or MISC, then others)."""
    found = {tag[2:] for post in posts for tag in post.tags if tag != "O"}
    rank = {label: number for number, label in enumerate(USUAL_LABELS)}
    return tuple(sorted(found, key=lambda label: (rank.get(label, len(rank)), label)))


def match_labels(data_labels: Sequence[str], model_labels: Sequence[str]) -> dict[str, str]:
    """Map each type of a corpus to the model's name of the same class (MISC is OTHER).

    Returns:
        Corpus name -> model name. Types the model does not know map to themselves, so that they
        count as missed in a score.
    """
    by_class = {SAME_CLASS.get(label, label): label for label in model_labels}
    return {
        label: label if label in model_labels else by_class.get(SAME_CLASS.get(label, label), label)
        for label in data_labels
    }


@dataclass(kw_only=True)
class ImageFolder:
    """Finds pictures by id and counts what happened to them.

    Attributes:
        root: Folder of pictures named `<image id>.<suffix>`, in capitals or not; None means no
            pictures at all.
        broken: Ids known to be placeholders; treated as missing.
        counts: How many posts had a picture found, none named, it missing, listed or unreadable.
        unreadable: Ids whose file could not be decoded, with the reason.
    """

    root: Path | None
    broken: Collection[str] = frozenset()
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("found", "none", "missing", "listed", "unreadable"), 0
        )
    )
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.root is not None and not self.root.is_dir():
            raise InputError(
                f"{self.root} is no folder; give the folder of pictures, or leave --images out",
                "images_missing",
            )

    def find(self, image_id: str | None) -> Path | None:
        """Path of a post's picture, or None; counts the outcome."""
        outcome, path = self._look_up(image_id)
        self.counts[outcome] += 1
        return path

    def _look_up(self, image_id: str | None) -> tuple[str, Path | None]:
        if image_id is None:
            return "none", None
        if image_id in self.broken:
            return "listed", None
        # An id comes from a data file: never let it leave the folder.
        if self.root is None or "/" in image_id or "\\" in image_id or image_id.startswith(".."):
            return "missing", None
        for suffix in ("", *IMAGE_SUFFIXES):
            path = self.root / (image_id + suffix)
            if path.is_file():
                return "found", path
        for suffix in ("", *IMAGE_SUFFIXES):
            name = self._by_lower_suffix.get(_lower_suffix(image_id + suffix))
            if name is not None:
                return "found", self.root / name
        return "missing", None

    @cached_property
    def _by_lower_suffix(self) -> dict[str, str]:
        """Names of the folder's files by the same with a suffix in small letters."""
        assert self.root is not None
        names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_file())
        return {_lower_suffix(name): name for name in names}

    def mark_unreadable(self, image_id: str, reason: str) -> None:
        """Move a found picture to the unreadable ones."""
        self.counts["found"] -= 1
        self.counts["unreadable"] += 1
        self.unreadable[image_id] = reason

    def report(self) -> dict[str, Any]:
        """Counts and the unreadable ids, for logs and JSON."""
        return {**self.counts, "unreadable_ids": sorted(self.unreadable)}

    def summary(self) -> str:
        """Counts as a line of text, with the first unreadable ids."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items() if number)
        broken = ", ".join(sorted(self.unreadable)[:3])
        return f"pictures: {counts}" + (f" (unreadable: {broken} ...)" if broken else "")


def _lower_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem + dot + suffix.lower() if f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def read_ids(path: str | Path) -> frozenset[str]:
    """Read one id per line, e.g. the pictures known to be broken."""
    lines = read_text(Path(path), "one image id per line").split("\n")
    ids = (line.lstrip("\ufeff").strip() for line in lines)
    return frozenset(image_id for image_id in ids if image_id)


def read_corpora(train: Path, dev: Path) -> tuple[list[LabelledPost], list[LabelledPost]]:
    """Read both halves of a training corpus, with IOB1 tags turned into IOB2; logs what is odd."""
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
