"""Posts to calibrate variants on and others to verify them on: the user's, or invented ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amlr.errors import InputError
from amlr.export.parity import Answer, Key
from amlr.export.samples import sample_posts
from amlr.kernels import is_tuning_half
from amlr.runtime.jsonl import Line, parse_line
from amlr.runtime.results import Post
from amlr.runtime.text_files import is_json_array, json_array, read_text

INVENTED = 240
# The search for float32 islands in float16 takes more posts, and others of another seed.
_HALF_SEARCH, _HALF_VERIFY, _HALF_SEED = 256, 128, 11


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationPost:
    """A post, and its true entities where they are known.

    Attributes:
        post: The post.
        gold: (start, end, label) in characters, or None.
    """

    post: Post
    gold: frozenset[Key] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationPosts:
    """Two halves that share no post, whichever order the file has.

    Attributes:
        tuning: Scales, radii and choices come from these.
        held_out: Parity is measured on these and nothing else.
        source: Where they come from, for the manifest.
        given: Whether the user gave them; invented posts certify nothing.
    """

    tuning: tuple[CalibrationPost, ...]
    held_out: tuple[CalibrationPost, ...]
    source: str
    given: bool

    @property
    def halves(self) -> tuple[list[Post], list[Post]]:
        """The posts alone, of either half."""
        tuning, held_out = ([item.post for item in half] for half in (self.tuning, self.held_out))
        return tuning, held_out

    def half_posts(self) -> tuple[list[Post], list[Post]]:
        """Posts to search float16 on, and others to verify it on; more where they are invented."""
        if self.given:
            return self.halves
        return sample_posts(_HALF_SEARCH), sample_posts(_HALF_VERIFY, seed=_HALF_SEED)


def strict_f1(posts: Sequence[CalibrationPost], answers: Sequence[Answer]) -> float | None:
    """Strict F1 of some answers; None unless the true entities of every post are known."""
    from amlr.training.conll import SAME_CLASS

    right = total = 0
    for item, answer in zip(posts, answers, strict=True):
        if item.gold is None:
            return None
        # The corpus and the model may name one class differently.
        gold, answered = (
            {(start, end, SAME_CLASS.get(label, label)) for start, end, label in keys}
            for keys in (item.gold, answer.entities)
        )
        right += len(gold & answered)
        total += len(item.gold) + len(answer.entities)
    return 2 * right / total if total else 1.0


def read_posts(
    path: Path | None, images: Path | None = None, *, most: int = 1000
) -> CalibrationPosts:
    """Read posts from JSON lines or a CoNLL file, or invent some.

    Args:
        path: `*.jsonl` with {"text", "image", "words"} a line, any other name for CoNLL with
            IMGID lines; None invents posts.
        images: Folder of the pictures that the file names.
        most: Posts to take at most, from the file's beginning.

    Raises:
        InputError: The file cannot be read, or holds too few posts for two halves.
    """
    if path is None:
        posts = [CalibrationPost(post=post) for post in sample_posts(INVENTED, images=12, seed=1)]
        source = "invented posts"
    else:
        read = _read_jsonl if path.suffix == ".jsonl" else _read_conll
        posts = read(path, images)[:most]
        source = path.name
    # By text alone: a post that is there twice must not be in both halves.
    half = is_tuning_half([item.post.text for item in posts])
    tuning = tuple(p for p, is_tuning in zip(posts, half, strict=True) if is_tuning)
    held_out = tuple(p for p, is_tuning in zip(posts, half, strict=True) if not is_tuning)
    if min(len(tuning), len(held_out)) < 8:
        raise InputError(
            f"{path} has {len(posts)} usable posts; calibration needs at least 50 or so"
        )
    return CalibrationPosts(tuning=tuning, held_out=held_out, source=source, given=path is not None)


def _read_jsonl(path: Path, images: Path | None) -> list[CalibrationPost]:
    lines = read_lines(path, images or path.parent)
    return [CalibrationPost(post=line.post) for line in lines if line.post is not None]


def read_lines(path: Path, images: Path | None = None) -> Iterator[Line]:
    """Posts of a file of JSON lines, or what is wrong with a line.

    Raises:
        InputError: The file cannot be read, or is no file of JSON lines.
    """
    text = read_text(path, "a file of JSON lines")
    if is_json_array(text):
        raise json_array(str(path))
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield parse_line(number, line.encode(), images)


def _read_conll(path: Path, images: Path | None) -> list[CalibrationPost]:
    from amlr.training.conll import SAME_CLASS, ImageFolder, read_conll

    folder = ImageFolder(root=images)
    posts = []
    for labelled in read_conll(path):
        spans = labelled.word_spans_n2
        gold = frozenset(
            (int(spans[start, 0]), int(spans[end - 1, 1]), SAME_CLASS.get(label, label))
            for start, end, label in labelled.entities
        )
        words: Sequence[tuple[int, int]] = [(int(s), int(e)) for s, e in spans]
        post = Post(labelled.text, folder.find(labelled.image_id), words)
        posts.append(CalibrationPost(post=post, gold=gold))
    return posts
