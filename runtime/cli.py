"""`amlr-tag` and `amlr-inspect`."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand, progress
from amlr.errors import InputError
from amlr.runtime.bundle import check_file, read_manifest
from amlr.runtime.cli_options import engine_options, shared_options
from amlr.runtime.decode import MAX_ALTERNATIVES
from amlr.runtime.engine import Engine
from amlr.runtime.inspection import describe
from amlr.runtime.jsonl import Line, answer, read_chunks, tag_lines
from amlr.runtime.options import CHECKS
from amlr.runtime.results import Alternative, Post, Result
from amlr.runtime.tier_timing import describe_choice

_PATH = click.Path(path_type=Path)
TAG_EXAMPLES = """\b
Examples:
  amlr-tag --engine amlr.plan --text "Kevin Love at Quicken Loans Arena" --image photo.jpg
  amlr-tag --engine amlr.plan < posts.jsonl > answers.jsonl
  echo '{"id": 7, "text": "Paris in May"}' | amlr-tag --engine amlr.plan --pretty
  amlr-tag --engine amlr.plan --precision escalate --answer-cache 10000 < posts.jsonl
  amlr-tag --engine amlr.plan --image-mode when-needed < posts.jsonl
  amlr-tag --engine amlr.plan --n-best 3 < posts.jsonl | jq '.alternatives[1]'
"""
INSPECT_EXAMPLES = """\b
Examples:
  amlr-inspect amlr.plan
  amlr-inspect amlr.plan --json | jq .variants
"""


@click.command("tag", cls=AmlrCommand, epilog=TAG_EXAMPLES)
@click.option("--engine", "bundle", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--text", help="Tag this text instead of JSON lines from stdin.")
@click.option("--image", type=_PATH, help="Picture of --text.")
@click.option("--image-root", type=_PATH, help="Folder of the pictures that lines name.")
@shared_options
@click.option("--threads", type=click.IntRange(1), help="CPU threads; the physical cores if unset.")
@click.option("--image-cache-mb", type=float, default=256, show_default=True)
@click.option("--check", type=click.Choice(CHECKS), default="full", show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Lines of a call."
)
@click.option(
    "--n-best",
    type=click.IntRange(1, MAX_ALTERNATIVES),
    help="Also give the N best answers as alternatives, best first; scores each post once more.",
)
@click.option("--json/--pretty", "as_json", default=True, help="JSON lines, or plain text.")
@click.option("--verbose", is_flag=True, help="Print on stderr which tier serves, and why.")
def tag_command(
    bundle: Path,
    text: str | None,
    image: Path | None,
    image_root: Path | None,
    manifest_sha256: str | None,
    batch: int,
    n_best: int | None,
    as_json: bool,
    verbose: bool,
    **engine_values: Any,
) -> None:
    """Find entities in one text, or in JSON lines {"id", "text", "image", "words"} from stdin.

    Answers are JSON lines {"id", "entities", "image_used", "certified", "warnings", "error"} in
    the order of the input. A line that cannot be read is answered with its error; a picture that
    cannot be used gives a warning. "certified" is true where a low precision answered and the
    answer is certified equal to float32's. With --n-best they also hold "alternatives":
    [{"entities", "score"}].
    """
    if text is None and image is not None:
        raise InputError("--image goes with --text; lines from stdin name their own pictures")
    if text is None and sys.stdin.isatty():
        raise InputError('nothing to tag; give --text "..." or JSON lines on stdin')
    engine = Engine.load(
        bundle, manifest_sha256=manifest_sha256, **asdict(engine_options(engine_values))
    )
    with engine:
        if verbose:
            for row in describe_choice(engine.choice, engine.skipped):
                click.echo(row, err=True)
        answers: Iterator[tuple[Line, Result]]
        if text is not None:
            answers = iter([(Line(id=None, post=Post(text, image)), engine.tag(text, image))])
        else:
            chunks = read_chunks(sys.stdin.buffer, batch, image_root)
            answers = progress(tag_lines(engine, chunks), "tagged")
        _write(
            ((*pair, _alternatives(engine, *pair, n_best)) for pair in answers),
            as_json,
        )
        if verbose and engine.certificates is not None:
            click.echo(str(engine.certificates), err=True)


def _alternatives(
    engine: Engine, line: Line, result: Result, n: int | None
) -> list[Alternative] | None:
    if n is None:
        return None
    return [] if line.post is None or result.error else engine.alternatives(line.post, n)


def _write(
    answers: Iterator[tuple[Line, Result, list[Alternative] | None]],
    as_json: bool,
) -> None:
    try:
        for line, result, alternatives in answers:
            # JSON lines are UTF-8 whatever the terminal's encoding.
            row = answer(line, result, alternatives).encode() if as_json else None
            click.echo(_pretty(line, result, alternatives) if row is None else row)
    except BrokenPipeError:
        # The reader (say, `head`) has enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pretty(line: Line, result: Result, alternatives: list[Alternative] | None) -> str:
    text = "" if line.post is None else line.post.text
    picture = " [picture used]" if result.image_used else ""
    rows = [f"{'' if line.id is None else f'{line.id}: '}{text}{picture}"]
    rows += [f"    {e.label:<8} {e.score:.2f}  {e.text}" for e in result.entities]
    for rank, other in enumerate(alternatives or (), start=1):
        entities = ", ".join(f"{e.text} ({e.label})" for e in other.entities)
        rows.append(f"    answer {rank}, score {other.score:.3f}: {entities or 'no entity'}")
    rows += [f"    warning: {warning['message']}" for warning in result.warnings]
    if result.error:
        rows.append(f"    error: {result.error['message']}")
    # What stdout cannot encode (half a surrogate pair) must not end the run.
    return "\n".join(rows).encode("utf-8", "replace").decode()


@click.command("inspect", cls=AmlrCommand, epilog=INSPECT_EXAMPLES)
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and its hash as JSON.")
@click.option("--verify/--no-verify", default=True, help="Compare every file with its hash.")
def inspect_command(bundle: Path, as_json: bool, verify: bool) -> None:
    """Show what a bundle holds, for which providers, and its measured parity."""
    manifest, digest = read_manifest(bundle)
    if verify:
        for name, entry in progress(manifest.files.items(), "verified", len(manifest.files)):
            check_file(bundle, name, entry)
    if as_json:
        values = json.loads(manifest.to_json())
        values |= {"manifest_sha256": digest, "verified": verify}
        click.echo(json.dumps(values))
        return
    for row in describe(manifest, digest):
        click.echo(row)
    click.echo(f"\n{len(manifest.files)} files " + ("verified" if verify else "not verified"))


def inspect_main() -> None:
    """Entry point of `amlr-inspect`."""
    inspect_command()
