"""`amlr-eval`: score a checkpoint or a bundle on a CoNLL file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand, progress
from amlr.errors import InputError
from amlr.training.conll import (
    ImageFolder,
    LabelledPost,
    has_entities,
    iob1_note,
    labels_of,
    match_labels,
    no_entities_note,
    read_conll,
    read_ids,
)
from amlr.training.score import Span, to_words

_EPILOG = """
\b
Examples:
  amlr-eval --ckpt best.pt --data twitter2017/valid.txt --images twitter2017/images
  amlr-eval --engine amlr.plan --data twitter2017/valid.txt --json
"""
_CHUNK = 64
_PATH = click.Path(path_type=Path)


@click.command("eval", cls=AmlrCommand, epilog=_EPILOG)
@click.option("--ckpt", type=_PATH, help="Checkpoint: every decoder is scored.")
@click.option("--engine", type=_PATH, help="Bundle: its own decoder is scored.")
@click.option("--data", type=_PATH, required=True, help="CoNLL file.")
@click.option("--images", type=_PATH, help="Folder of <IMGID>.jpg.")
@click.option("--broken-images", type=_PATH, help="File of ids to ignore.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--provider", default="auto", show_default=True, help="Of --engine.")
@click.option("--precision", default="auto", show_default=True, help="Of --engine.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def eval_command(**options: Any) -> None:
    """Score entities: precision, recall, F1, strict (IOB2) and lenient (conlleval), per type."""
    if (options["ckpt"] is None) == (options["engine"] is None):
        raise InputError("give either --ckpt best.pt or --engine amlr.plan")
    posts = read_conll(options["data"])
    broken = read_ids(options["broken_images"]) if options["broken_images"] else frozenset()
    folder = ImageFolder(root=options["images"], broken=broken)
    evaluate = _evaluate_checkpoint if options["ckpt"] else _evaluate_engine
    report = evaluate(posts, folder, options)
    _warn(options["data"], posts)
    result = {
        "data": str(options["data"]),
        "posts": len(posts),
        "pictures": folder.report() if options["images"] else None,
        "decoders": report,
    }
    if options["as_json"]:
        click.echo(json.dumps(result))
        return
    from amlr.training.evaluate import table

    click.echo(table(report))
    if options["images"]:
        click.echo(folder.summary())


def _warn(path: Path, posts: Sequence[LabelledPost]) -> None:
    """Say what makes scores of this file mean something else than they seem to."""
    if not has_entities(posts):
        click.echo(f"warning: {no_entities_note(path)}", err=True)
    note = iob1_note(path, posts)
    if note is not None:
        click.echo(
            f"warning: {note}, which strict scores do not count; look at the lenient ones, or "
            "convert the file to IOB2",
            err=True,
        )


def _evaluate_checkpoint(
    posts: Sequence[LabelledPost], folder: ImageFolder, options: Mapping[str, Any]
) -> dict[str, Any]:
    import torch

    from amlr.training.data import Pictures, make_corpus
    from amlr.training.evaluate import Tuned, score_decoders
    from amlr.training.predict import make_decoder, predict
    from amlr.training.release import load_any_checkpoint
    from amlr.training.scorer import Scorer

    if options["threads"]:
        torch.set_num_threads(options["threads"])
    checkpoint = load_any_checkpoint(options["ckpt"])
    model = checkpoint.build_model()
    pictures = Pictures(folder, checkpoint.image, posts) if folder.root else None
    corpus = make_corpus(posts, checkpoint, pictures, "all")
    predictions = predict(Scorer(model), corpus, batch_size=options["batch_size"])
    # Nothing is tuned here: the checkpoint's own settings are what it would be deployed with.
    tuned = Tuned(
        joint=replace(checkpoint.decoder, kind="joint"),
        segmental=replace(checkpoint.decoder, kind="segmental"),
    )
    decoder = make_decoder(model, checkpoint.decoder)
    return score_decoders(predictions, corpus, decoder, tuned)


def _evaluate_engine(
    posts: Sequence[LabelledPost], folder: ImageFolder, options: Mapping[str, Any]
) -> dict[str, Any]:
    from amlr.runtime import Engine, Post
    from amlr.training.evaluate import score_modes

    predicted: list[list[Span]] = []
    with Engine.load(
        options["engine"],
        provider=options["provider"],
        precision=options["precision"],
        threads=options["threads"],
    ) as engine:
        labels: tuple[str, ...] = engine.manifest.labels
        kind = engine.manifest.decoder.kind
        starts = range(0, len(posts), _CHUNK)
        for begin in progress(starts, "batches", len(starts)):
            chunk = posts[begin : begin + _CHUNK]
            images = [folder.find(post.image_id) if folder.root else None for post in chunk]
            requests = [
                Post(text=post.text, image=image, words=post.word_spans_n2.tolist())
                for post, image in zip(chunk, images, strict=True)
            ]
            for post, image, result in zip(chunk, images, engine.tag_batch(requests), strict=True):
                if result.error is not None:
                    raise InputError(f"post {len(predicted)}: {result.error}")
                if image is not None and not result.image_used and post.image_id is not None:
                    folder.mark_unreadable(post.image_id, "; ".join(map(str, result.warnings)))
                predicted.append(to_words(post.word_spans_n2, result.entities))
    rename = match_labels(labels_of(posts), labels)
    return {kind: score_modes(posts, predicted, rename)}


def main() -> None:
    """Entry point of `amlr-eval`."""
    eval_command()


if __name__ == "__main__":
    main()
