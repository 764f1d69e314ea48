"""The generated dataset: reproducible, held out, readable."""

import hashlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from amlr.training.conll import LabelledPost, read_conll
from amlr.training.sample import make_posts, write_sample
from amlr.training.sample_pictures import DRAWINGS, KINDS, draw_picture


def test_the_dataset_is_the_same_every_time_and_repaired(tmp_path: Path) -> None:
    one = write_sample(tmp_path / "one", train=12, dev=6)
    two = write_sample(tmp_path / "two", train=12, dev=6)
    files = {p.relative_to(one): p.read_bytes() for p in one.rglob("*") if p.is_file()}
    assert all((two / name).read_bytes() == content for name, content in files.items())
    (one / "train.txt").write_text("a\tO\n")
    (one / "images" / "train_0000.jpg").write_bytes(b"half")
    write_sample(one, train=12, dev=6)
    assert all((one / name).read_bytes() == content for name, content in files.items())


def test_posts_and_pictures_belong_together(tmp_path: Path) -> None:
    write_sample(tmp_path, train=40, dev=6)
    posts = read_conll(tmp_path / "train.txt")
    wanted = {post.image_id for post in posts} - {None}
    assert {path.stem for path in (tmp_path / "images").iterdir()} >= wanted
    assert any(post.image_id is None for post in posts)
    with Image.open(tmp_path / "images" / f"{min(filter(None, wanted))}.jpg") as picture:
        assert picture.format == "JPEG"


def test_names_are_held_out_and_every_name_has_every_kind() -> None:
    rng = np.random.default_rng(0)
    train, _ = make_posts("train", 480, rng)
    dev, _ = make_posts("dev", 160, rng)

    def names(posts: list[LabelledPost]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for post in posts:
            for start, end, label in post.entities:
                if end - start == 1:
                    found.setdefault(post.words[start], set()).add(label)
        return found

    seen, held_out = names(train), names(dev)
    assert not set(seen) & set(held_out)
    assert {"Jordan", "Lincoln"} <= set(seen)
    assert {"Paris", "Apple"} <= set(held_out)
    assert np.mean([len(kinds) for kinds in seen.values()]) > 3
    assert {label for kinds in held_out.values() for label in kinds} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_drawing_varies(kind: str) -> None:
    assert len(set(DRAWINGS[kind])) == 3
    rng = np.random.default_rng(1)
    pictures = [draw_picture(kind, rng, is_dev=number % 2 == 1) for number in range(24)]
    assert len({picture.tobytes() for picture in pictures}) == 24
    assert len({picture.size for picture in pictures}) > 12


def test_posts_of_a_seed_never_change() -> None:
    texts = []
    for split, count in (("train", 60), ("dev", 40)):
        posts, kinds = make_posts(split, count, np.random.default_rng([0, count]))
        for post, kind in zip(posts, kinds, strict=True):
            texts.append(f"{post.image_id} {kind} {post.words} {post.tags}")
    assert _digest("\n".join(texts).encode()) == "564df6c8cb8d1872"


@pytest.mark.skipif(PIL.__version__ != "13.0.0", reason="another Pillow may round elsewhere")
@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("PER", "76736ce01209d161"),
        ("LOC", "7edb78158326071f"),
        ("ORG", "883ab8fd6137a352"),
        ("OTHER", "7250035bb7dd162b"),
    ],
)
def test_pictures_of_a_seed_never_change(kind: str, digest: str) -> None:
    rng = np.random.default_rng(5)
    pictures = [draw_picture(kind, rng, is_dev=number % 2 == 1) for number in range(60)]
    assert _digest(b"".join(np.asarray(picture).tobytes() for picture in pictures)) == digest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
