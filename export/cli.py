"""`amlr-export`: a checkpoint in, a proved bundle out."""

from pathlib import Path

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError

EXAMPLES = """\b
Examples:
  amlr-export --ckpt best.pt
  amlr-export --ckpt best.pt --out news.plan --precision fp32,fp16
  amlr-export --ckpt release/best.pt --tokenizer bert-base-uncased/ --labels PER,LOC,ORG,OTHER
"""


def _triple(text: str | None, option: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} needs three numbers like 0.5,0.5,0.5, got {text!r}") from error
    return (a, b, c)


@click.command("export", cls=AmlrCommand, epilog=EXAMPLES)
@click.option(
    "--ckpt",
    type=click.Path(path_type=Path),
    help="best.pt of amlr-train, or a release state_dict.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("amlr.plan"),
    show_default=True,
    help="Folder of the bundle.",
)
@click.option("--precision", default="fp32", show_default=True, help="Comma-separated: fp32.")
@click.option("--name", help="Name in the manifest; the folder's by default.")
@click.option(
    "--no-reference",
    is_flag=True,
    help="Leave the eager model out (it then cannot be proved again).",
)
@click.option(
    "--fold/--no-fold",
    default=None,
    help="Fold the attention per head; decided by cost by default.",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="Largest difference of raw logits.",
)
@click.option("--tokenizer", help="Release checkpoints: folder or hub name of the tokenizer.")
@click.option("--image-mean", help="Release checkpoints: channel means, e.g. 0.5,0.5,0.5.")
@click.option("--image-std", help="Release checkpoints: channel deviations.")
@click.option("--labels", help="Release checkpoints: classes in the order of the span head.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def export_command(
    ckpt: Path | None,
    out: Path,
    precision: str,
    name: str | None,
    no_reference: bool,
    fold: bool | None,
    tolerance: float,
    tokenizer: str | None,
    image_mean: str | None,
    image_std: str | None,
    labels: str | None,
    quiet: bool,
) -> None:
    """Export a checkpoint to ONNX, prove it against the eager model, and write a bundle.

    The bundle appears only if every number and every entity agrees; a failed or interrupted export
    leaves nothing, and an older bundle stays as it was.
    """
    if ckpt is None:
        raise InputError("nothing to export; give --ckpt best.pt")
    # Heavy imports wait until the arguments are known to be good: --help stays instant.
    from amlr.export.pipeline import ExportOptions, export_checkpoint
    from amlr.training.checkpoint import ReleaseOptions

    known = ReleaseOptions()
    release = ReleaseOptions(
        tokenizer=tokenizer or known.tokenizer,
        image_mean=_triple(image_mean, "--image-mean") or known.image_mean,
        image_std=_triple(image_std, "--image-std") or known.image_std,
        labels=tuple(labels.split(",")) if labels else None,
    )
    options = ExportOptions(
        name=name,
        keep_reference=not no_reference,
        fold=fold,
        tolerance=tolerance,
        release=release,
    )

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    manifest = export_checkpoint(ckpt, out, options, say=say)
    size = sum(entry.bytes for entry in manifest.files.values())
    say(f"wrote {out} ({size / 1e6:.1f} MB, {len(manifest.files)} files)")


def main() -> None:
    """Entry point of `amlr-export`."""
    export_command()
