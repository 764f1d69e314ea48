"""`amlr-tag` and `amlr-inspect`."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from amlr.cli_support import AmlrCommand, progress
from amlr.errors import InputError
from amlr.runtime.bundle import check_file, read_manifest
from amlr.runtime.cli_options import speed_options
from amlr.runtime.engine import Engine
from amlr.runtime.inspection import describe
from amlr.runtime.jsonl import Line, answer, read_chunks, tag_lines
from amlr.runtime.options import CHECKS
from amlr.runtime.results import Post, Result
from amlr.runtime.tier_timing import describe_choice

_PATH = click.Path(path_type=Path)
TAG_EXAMPLES = """\b
Examples:
  amlr-tag --engine amlr.plan --text "Kevin Love at Quicken Loans Arena" --image photo.jpg
  amlr-tag --engine amlr.plan --image-root photos/ < posts.jsonl > answers.jsonl
  echo '{"id": 7, "text": "Paris in May"}' | amlr-tag --engine amlr.plan --pretty
  amlr-tag --engine amlr.plan --precision escalate --answer-cache 10000 < posts.jsonl
  amlr-tag --engine amlr.plan --image-mode when-needed < posts.jsonl
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
@click.option("--provider", default="auto", show_default=True, help="auto, onnxruntime, ...")
@speed_options
@click.option("--threads", type=click.IntRange(1), help="CPU threads; the physical cores if unset.")
@click.option("--image-cache-mb", type=float, default=256, show_default=True)
@click.option("--cache-dir", type=_PATH, help="Where a provider may keep compiled forms.")
@click.option("--manifest-sha256", help="Refuse a bundle whose manifest has another hash.")
@click.option("--check", type=click.Choice(CHECKS), default="full", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Most lines.")
@click.option("--json/--pretty", "as_json", default=True, help="JSON lines, or text for people.")
@click.option("--verbose", is_flag=True, help="Say on stderr which tier serves, and why.")
def tag_command(
    bundle: Path,
    text: str | None,
    image: Path | None,
    image_root: Path | None,
    provider: str,
    precision: str,
    threads: int | None,
    image_cache_mb: float,
    image_mode: str,
    answer_cache: int,
    cache_dir: Path | None,
    manifest_sha256: str | None,
    check: str,
    batch: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find entities in one text, or in JSON lines {"id", "text", "image", "words"} from stdin.

    Answers are JSON lines {"id", "entities", "image_used", "warnings", "error"} in the order of
    the input. A line that cannot be read is answered with its error; a picture that cannot be used
    gives a warning.
    """
    if text is None and image is not None:
        raise InputError("--image goes with --text; lines from stdin name their own pictures")
    if text is None and sys.stdin.isatty():
        raise InputError('nothing to tag; give --text "..." or JSON lines on stdin')
    engine = Engine.load(
        bundle,
        provider=provider,
        precision=precision,
        threads=threads,
        image_cache_mb=image_cache_mb,
        cache_dir=cache_dir,
        manifest_sha256=manifest_sha256,
        check=check,
        answer_cache=answer_cache,
        image=image_mode,
    )
    with engine:
        if verbose:
            for row in describe_choice(engine.choice, engine.skipped):
                click.echo(row, err=True)
        if text is not None:
            _write(iter([(Line(id=None), engine.tag(text, image))]), text, as_json)
            return
        chunks = read_chunks(sys.stdin.buffer, batch, image_root)
        _write(progress(tag_lines(engine, chunks), "tagged"), None, as_json)


def _write(answers: Iterator[tuple[Line, Result]], text: str | None, as_json: bool) -> None:
    try:
        for line, result in answers:
            # JSON lines are UTF-8 whatever the terminal's encoding.
            row = answer(line, result).encode() if as_json else _pretty(line, result, text)
            click.echo(row)
    except BrokenPipeError:
        # The reader (say, `head`) has enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pretty(line: Line, result: Result, text: str | None) -> str:
    post = line.post or Post(text or "")
    picture = " [picture used]" if result.image_used else ""
    rows = [f"{'' if line.id is None else f'{line.id}: '}{post.text}{picture}"]
    rows += [f"    {e.label:<8} {e.score:.2f}  {e.text}" for e in result.entities]
    rows += [f"    warning: {warning['message']}" for warning in result.warnings]
    if result.error:
        rows.append(f"    error: {result.error['message']}")
    # What stdout cannot encode (half a surrogate pair) must not end the run.
    return "\n".join(rows).encode("utf-8", "replace").decode()


@click.command("inspect", cls=AmlrCommand, epilog=INSPECT_EXAMPLES)
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="The manifest and its hash, as JSON.")
@click.option("--verify/--no-verify", default=True, help="Compare every file with its hash.")
def inspect_command(bundle: Path, as_json: bool, verify: bool) -> None:
    """Show what is inside a bundle, for which providers, and with which measured parity."""
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


def tag_main() -> None:
    """Entry point of `amlr-tag`."""
    tag_command()


def inspect_main() -> None:
    """Entry point of `amlr-inspect`."""
    inspect_command()
