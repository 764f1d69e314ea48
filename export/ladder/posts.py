"""Posts to calibrate and to prove variants on: the user's own, or invented ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amlr.errors import InputError
from amlr.export.parity import Key
from amlr.export.samples import sample_posts
from amlr.kernels import is_tuning_half
from amlr.runtime.jsonl import parse_line
from amlr.runtime.results import Post
from amlr.runtime.text_files import read_text

INVENTED = 240


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProofPost:
    """A post, and its true entities where they are known.

    Attributes:
        post: The post.
        gold: (start, end, label) in characters, or None.
    """

    post: Post
    gold: frozenset[Key] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProofPosts:
    """Two halves that share no post, whichever order the file has.

    Attributes:
        tuning: Scales, radii and choices come from these.
        proof: Parity is measured on these and nothing else.
        source: Where they come from, for the manifest.
        given: Whether the user gave them; invented posts certify nothing.
    """

    tuning: tuple[ProofPost, ...]
    proof: tuple[ProofPost, ...]
    source: str
    given: bool


def read_posts(path: Path | None, images: Path | None = None, *, most: int = 1000) -> ProofPosts:
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
        posts = [ProofPost(post=post) for post in sample_posts(INVENTED, images=12, seed=1)]
        source = "invented posts"
    else:
        read = _read_jsonl if path.suffix == ".jsonl" else _read_conll
        posts = read(path, images)[:most]
        source = path.name
    # By text alone: a post that is there twice must not be in both halves.
    half = is_tuning_half([proof.post.text for proof in posts])
    tuning = tuple(p for p, own in zip(posts, half, strict=True) if own)
    proof = tuple(p for p, own in zip(posts, half, strict=True) if not own)
    if min(len(tuning), len(proof)) < 8:
        raise InputError(
            f"{path} has {len(posts)} usable posts; calibration needs at least 50 or so"
        )
    return ProofPosts(tuning=tuning, proof=proof, source=source, given=path is not None)


def _read_jsonl(path: Path, images: Path | None) -> list[ProofPost]:
    lines = read_text(path, "a file of JSON lines").split("\n")
    parsed = [
        parse_line(number, line.encode(), images or path.parent)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return [ProofPost(post=line.post) for line in parsed if line.post is not None]


def _read_conll(path: Path, images: Path | None) -> list[ProofPost]:
    from amlr.training.conll import SAME_CLASS, ImageFolder, read_conll

    folder = ImageFolder(root=images)
    found = []
    for labelled in read_conll(path):
        spans = labelled.word_spans_n2
        gold = frozenset(
            (int(spans[start, 0]), int(spans[end - 1, 1]), SAME_CLASS.get(label, label))
            for start, end, label in labelled.entities
        )
        words: Sequence[tuple[int, int]] = [(int(s), int(e)) for s, e in spans]
        post = Post(labelled.text, folder.find(labelled.image_id), words)
        found.append(ProofPost(post=post, gold=gold))
    return found
