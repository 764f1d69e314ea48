"""The posts that `make demo` leaves for the commands of the documentation."""

from pathlib import Path

from amlr.benchmarks.data import generated_posts
from amlr.benchmarks.demo import write_posts
from amlr.export.posts import read_posts
from amlr.runtime.jsonl import parse_line


def test_written_posts_are_read_with_their_pictures(tmp_path: Path) -> None:
    written = generated_posts(48)
    write_posts(tmp_path, written)
    posts = read_posts(tmp_path / "posts.jsonl")
    read = [item.post for item in (*posts.tuning, *posts.held_out)]
    assert {post.text for post in read} == {item.post.text for item in written}
    pictures = [Path(post.image) for post in read if isinstance(post.image, str | Path)]
    assert len(pictures) == len(list((tmp_path / "photos").iterdir())) > 10
    assert all(picture.is_file() for picture in pictures)
    assert sum(post.image is None for post in read) > 20


def test_photo_is_the_picture_of_the_first_post_that_has_one(tmp_path: Path) -> None:
    write_posts(tmp_path, generated_posts(12))
    lines = (tmp_path / "posts.jsonl").read_bytes().splitlines()
    posts = [parse_line(number, line, tmp_path).post for number, line in enumerate(lines)]
    first = next(post for post in posts if post is not None and post.image is not None)
    assert first.text == "Apple looks amazing today"
    assert Path(str(first.image)).read_bytes() == (tmp_path / "photo.jpg").read_bytes()
