"""The end of `make demo`: `python -m amlr.benchmarks.demo build/demo` tags three posts.

The posts are generated like the sample dataset's held-out part, each with its drawn picture; the
answer without the picture is shown too, because it differs. The posts are also written to
`posts.jsonl` and `photos/`, which the commands of the documentation read.
"""

import json
from pathlib import Path

import click

from amlr.benchmarks.data import BenchPost, generated_posts
from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.export.parity import entity_keys
from amlr.runtime.engine import Engine
from amlr.runtime.results import Entity, Post, Result
from amlr.whole import write_whole

# Enough for `amlr-export --calib` to certify posts with and without a picture.
WRITTEN = 600
POSTS = 3
# Among these, posts whose picture changes the answer are shown first.
LOOKED_AT = 40


@click.command(cls=AmlrCommand)
@click.argument("folder", type=click.Path(path_type=Path))
def demo_command(folder: Path) -> None:
    """Tag three posts with the bundle in FOLDER, and write posts for the documented commands."""
    plan = folder / "amlr.plan"
    if not plan.is_dir():
        raise InputError(f"{folder}: no bundle {plan.name} in it; run make demo")
    posts = generated_posts(WRITTEN)
    write_posts(folder, posts)
    with Engine.load(plan) as engine:
        for item, seen, blind in choose(engine, posts[:LOOKED_AT]):
            click.echo(f"\n  {item.post.text}")
            click.echo(f"    with its picture:    {describe(seen.entities)}")
            click.echo(f"    without the picture: {describe(blind.entities)}")
        click.echo(f"\n  served by {engine.provider} in {engine.precision}")
    report = folder / "bench.html"
    click.echo(f"  report: {report}" if report.is_file() else f"  no report at {report}")
    click.echo(f"  posts for the commands of the documentation: {folder / 'posts.jsonl'}")


def write_posts(folder: Path, posts: tuple[BenchPost, ...]) -> None:
    """Write `posts.jsonl`, the pictures that it names, and `photo.jpg`, a copy of the first one."""
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    lines = []
    for number, item in enumerate(posts):
        row = {"id": item.id, "text": item.post.text}
        # About a third keep their picture. Those of unlabelled posts are noise.
        if number % 2 and item.gold is not None and isinstance(item.post.image, bytes):
            picture = photos / f"{item.id}.jpg"
            picture.write_bytes(item.post.image)
            row["image"] = f"{photos.name}/{picture.name}"
        lines.append(json.dumps(row, ensure_ascii=False))
    first = next(item.post.image for item in posts if isinstance(item.post.image, bytes))
    (folder / "photo.jpg").write_bytes(first)
    write_whole(folder / "posts.jsonl", "\n".join(lines) + "\n")


def choose(engine: Engine, posts: tuple[BenchPost, ...]) -> list[tuple[BenchPost, Result, Result]]:
    """Three labelled posts with a picture, each with its answers with and without it."""
    shown = [item for item in posts if item.gold and item.post.image is not None]
    seen = engine.tag_batch([item.post for item in shown])
    blind = engine.tag_batch([Post(item.post.text, None, item.post.words) for item in shown])
    answers = list(zip(shown, seen, blind, strict=True))
    # A stable sort: the order within each group is the data's own.
    answers.sort(key=lambda row: entity_keys(row[1].entities) == entity_keys(row[2].entities))
    return answers[:POSTS]


def describe(entities: tuple[Entity, ...]) -> str:
    """Entities in one line."""
    return ", ".join(f"{e.text} [{e.label} {e.score:.2f}]" for e in entities) or "(none)"


if __name__ == "__main__":
    demo_command(prog_name="python -m amlr.benchmarks.demo")
