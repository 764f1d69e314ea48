"""Certified answers against float32's on posts that no calibration has seen.

    python -m amlr.benchmarks.certificates --engine amlr.plan --data posts.jsonl --spread photos/

Counts, by kind of post, what was certified, what would have changed without a certificate, errors
beyond the radii, and the answers that differ from float32's: there must be none.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from amlr.benchmarks.data import load_data
from amlr.benchmarks.report.figures import markdown_table
from amlr.benchmarks.variants import spread_pictures
from amlr.cli_support import AmlrCommand, log_to_stderr, progress
from amlr.errors import InputError
from amlr.export.parity import change_bound, entity_keys
from amlr.runtime.certified import Certified
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.pipeline import ScoredPost
from amlr.runtime.radii import PICTURE, TEXT
from amlr.runtime.results import Post, Result
from amlr.runtime.sentinel import UNDECIDABLE, largest_errors

_PATH = click.Path(path_type=Path)
_CHUNK = 128
_COUNTS = (
    *("posts", "entities", "covered", "beyond", "certified", "certified_on_picture"),
    *("changed_uncertified", "undecidable", "changed"),
)
_log = logging.getLogger("amlr.benchmarks.certificates")
EXAMPLES = """\b
Examples:
  python -m amlr.benchmarks.certificates --engine amlr.plan --data posts.jsonl
  python -m amlr.benchmarks.certificates --engine amlr.plan --data posts.jsonl --radii 0.001
"""


@click.command(cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", "bundle", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--data", required=True, help="CoNLL file, .jsonl, or `sample` (generated).")
@click.option("--images", type=_PATH, help="Folder of the posts' own pictures.")
@click.option("--spread", type=_PATH, help="Give every other post a picture of this folder.")
@click.option("--low", default="bf16", show_default=True, help="Precision that answers first.")
@click.option("--decoder", type=click.Choice(["joint", "segmental", "linear-chain"]))
@click.option("--radii", default=1.0, show_default=True, help="Factor on the radii.")
@click.option("--limit", type=int, help="Most posts.")
@click.option("--json", "json_path", type=_PATH, help="Write the counts here.")
def main(
    bundle: Path,
    data: str,
    images: Path | None,
    spread: Path | None,
    low: str,
    decoder: str | None,
    radii: float,
    limit: int | None,
    json_path: Path | None,
) -> None:
    """Compare certified answers with float32's; exit code 1 if one differs."""
    posts = load_data(data, images, limit, 200)
    if spread is not None:
        posts = spread_pictures(posts, spread)
    with log_to_stderr(_log.name):
        counts = count_certificates(
            bundle, [item.post for item in posts.posts], low=low, decoder=decoder, factor=radii
        )
    rows = [
        [name.replace("_", " "), *(str(counts[kind][name]) for kind in (TEXT, PICTURE))]
        for name in _COUNTS
    ]
    click.echo(markdown_table(["", "without a picture", "with a picture"], rows))
    certified = sum(counts[kind][name] for kind in counts for name in _COUNTS[4:6])
    changed = sum(counts[kind]["changed"] for kind in counts)
    bound = change_bound(changed, certified)
    if bound is not None:
        click.echo(f"0 of {certified} certified answers changed: at most {bound:.1e} at 95 %")
    if json_path is not None:
        json_path.write_text(json.dumps({"data": data, "low": low, "counts": counts}, indent=1))
    sys.exit(1 if changed else 0)


def count_certificates(
    bundle: Path, posts: Sequence[Post], *, low: str, decoder: str | None, factor: float = 1.0
) -> dict[str, Counter[str]]:
    """Counts by kind of post.

    Args:
        bundle: With measured radii.
        posts: None of the calibration's.
        low: Precision that answers first.
        decoder: Another decoder than the bundle's, or None.
        factor: On the radii: large ones certify nothing, small ones everything.

    Raises:
        BundleError: The bundle has no radii of this precision.
        InputError: The low tier has no provider of its own here.
    """
    counts: dict[str, Counter[str]] = {
        kind: Counter(dict.fromkeys(_COUNTS, 0)) for kind in (TEXT, PICTURE)
    }
    with (
        Engine.load(bundle, precision=f"{low}+fp32", threads=1, sentinel=0.0) as certified,
        Engine.load(bundle, provider="onnxruntime", precision="exact", threads=1) as exact,
    ):
        strategy = certified.strategy
        if not isinstance(strategy, Certified):
            raise InputError(f"{low} does not answer first here: {certified.choice.reason}")
        _log.info(certified.choice.reason)
        strategy.radii = {
            kind: replace(r, units=factor * r.units, tokens=factor * r.tokens)
            for kind, r in strategy.radii.items()
        }
        if decoder is not None:
            for engine in (certified, exact):
                engine.decoder = replace(engine.decoder, kind=decoder)
        decode = Decoder.of(exact.bundle, exact.decoder)
        starts = range(0, len(posts), _CHUNK)
        for start in progress(starts, "chunks", len(starts)):
            chunk = posts[start : start + _CHUNK]
            rows = zip(
                certified.tag_batch(chunk),
                exact.tag_batch(chunk),
                strategy.first.score(chunk),
                exact.pipeline.score(chunk),
                strict=True,
            )
            for answer, wanted, of_low, of_exact in rows:
                kind = PICTURE if wanted.image_used else TEXT
                _count(counts[kind], answer, wanted, strategy, of_low, of_exact, decode)
    return counts


def _count(
    counts: Counter[str],
    answer: Result,
    wanted: Result,
    strategy: Certified,
    low: ScoredPost,
    exact: ScoredPost,
    decoder: Decoder,
) -> None:
    counts["posts"] += 1
    counts["entities"] += len(wanted.entities)
    is_low = "+" not in answer.precision
    counts["certified"] += answer.certified is True and is_low
    counts["certified_on_picture"] += answer.certified is True and not is_low
    if low.scores is None or exact.scores is None:
        return
    (entities,) = decoder.entities([low.scores])
    counts["changed_uncertified"] += entity_keys(entities) != entity_keys(wanted.entities)
    radii = strategy.radii.get(PICTURE if low.image_used else TEXT)
    if radii is not None and radii.covers(low.scores.encoded):
        units, tokens = largest_errors(low.scores, exact.scores)
        counts["covered"] += 1
        counts["beyond"] += units > radii.units or tokens > radii.tokens
    if entity_keys(answer.entities) != entity_keys(wanted.entities):
        is_tie = bool(decoder.margins([exact.scores])[0] <= UNDECIDABLE)
        counts["undecidable" if is_tie else "changed"] += 1


if __name__ == "__main__":
    main()
