"""Posts to compare and measure on: CoNLL files, JSON lines, or generated ones."""

import io
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amlr.errors import InputError
from amlr.export.posts import read_lines
from amlr.export.samples import sample_posts
from amlr.runtime.results import Post
from amlr.training.conll import ImageFolder, match_labels, read_conll
from amlr.training.sample import write_sample
from amlr.training.sample_pictures import KINDS, draw_picture

Gold = tuple[tuple[int, int, str], ...]
SAMPLE = "sample"
_PHOTO_SIZE = (1024, 768)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPost:
    """One post.

    Attributes:
        id: Name in lists of differences.
        post: Text, picture (path or bytes) and words.
        gold: Labelled entities (start, end, label) in characters, or None.
    """

    id: str
    post: Post
    gold: Gold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchData:
    """All posts and where they come from."""

    source: str
    posts: tuple[BenchPost, ...]
    missing_pictures: int = 0

    @property
    def pictures(self) -> int:
        """Posts with a picture."""
        return sum(item.post.image is not None for item in self.posts)


def load_data(data: str, images: Path | None, limit: int | None, sample_count: int) -> BenchData:
    """Read posts.

    Args:
        data: `sample`, a CoNLL file with IMGID lines, or a .jsonl file of {id, text, image}.
        images: Folder of pictures; for JSON lines the file's own folder is the default.
        limit: Most posts, or None.
        sample_count: How many to generate for `sample`.

    Raises:
        InputError: The file is missing or of another form.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, got {limit}")
    if data == SAMPLE:
        posts = generated_posts(limit or sample_count)
        return BenchData(source="generated posts", posts=posts)
    path = Path(data)
    if not path.is_file():
        raise InputError(f"no data file at {path}; give a CoNLL or .jsonl file, or {SAMPLE!r}")
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, images or path.parent, limit)
    return _read_conll(path, images, limit)


def generated_posts(count: int) -> tuple[BenchPost, ...]:
    """Invented posts: two of three as in the sample dataset's held-out part, with labels.

    The others are of very different lengths and scripts, for a check that is not too easy.
    """
    labelled = count - count // 3
    with tempfile.TemporaryDirectory() as folder:
        root = write_sample(Path(folder), train=1, dev=labelled)
        data = _read_conll(root / "valid.txt", root / "images", labelled)
        posts = [
            # The files go with the folder: keep what is in them.
            replace(item, id=f"sample-{number}", post=in_memory(item.post))
            for number, item in enumerate(data.posts)
        ]
    odd = sample_posts(count - len(posts), images=min(8, count)) if count > len(posts) else []
    posts += [BenchPost(id=f"odd-{number}", post=post) for number, post in enumerate(odd)]
    return tuple(posts)


def in_memory(post: Post) -> Post:
    """The post with the bytes of its picture's file; an empty file is no picture."""
    image = post.image.read_bytes() if isinstance(post.image, Path) else post.image
    return Post(post.text, image or None, post.words)


def read_jsonl(path: Path, images: Path, limit: int | None) -> BenchData:
    """Posts of JSON lines {id, text, image}; pictures that are not there are counted.

    Raises:
        InputError: The file is missing or of another form.
    """
    posts: list[BenchPost] = []
    missing = 0
    for line in itertools.islice(read_lines(path, images), limit):
        post = line.post
        if post is None:
            raise InputError(f"{path}: {line.error['message'] if line.error else 'no post'}")
        if isinstance(post.image, Path) and not post.image.is_file():
            post, missing = replace(post, image=None), missing + 1
        posts.append(BenchPost(id=str(line.id), post=post))
    if not posts:
        raise InputError(f"{path} holds no posts; expected one JSON object a line")
    return BenchData(source=path.name, posts=tuple(posts), missing_pictures=missing)


def _read_conll(path: Path, images: Path | None, limit: int | None) -> BenchData:
    folder = ImageFolder(root=images)
    posts = []
    for number, item in enumerate(read_conll(path)[:limit]):
        spans = item.word_spans_n2
        gold = tuple(
            (int(spans[first, 0]), int(spans[end - 1, 1]), label)
            for first, end, label in item.entities
        )
        picture = folder.find(item.image_id) if images is not None else None
        post = Post(item.text, picture, spans)
        name = item.image_id or f"{path.name}:{number + 1}"
        posts.append(BenchPost(id=name, post=post, gold=gold))
    missing = folder.counts["missing"] if images is not None else 0
    return BenchData(source=path.name, posts=tuple(posts), missing_pictures=missing)


def relabelled(posts: Sequence[BenchPost], labels: Sequence[str]) -> tuple[BenchPost, ...]:
    """The posts with true entities named as the model names its classes."""
    names = sorted({label for item in posts for _, _, label in item.gold or ()})
    known = match_labels(names, labels)
    return tuple(
        item
        if item.gold is None
        else replace(item, gold=tuple((s, e, known[label]) for s, e, label in item.gold))
        for item in posts
    )


def photo(number: int) -> bytes:
    """A drawn picture as a JPEG of a photo's usual size; the same number gives the same bytes."""
    rng = np.random.default_rng(number)
    drawn = draw_picture(KINDS[number % len(KINDS)], rng, is_dev=True)
    file = io.BytesIO()
    drawn.resize(_PHOTO_SIZE).save(file, format="JPEG", quality=90)
    return file.getvalue()
