"""`amlr-export`: a checkpoint in, a proved bundle out; or a bundle in, and more in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError

EXAMPLES = """\b
Examples:
  amlr-export --ckpt best.pt
  amlr-export --ckpt best.pt --precision fp32,bf16,int8 --calib posts.jsonl
  amlr-export --ckpt best.pt --precision fp32,fp16 --target tensorrt-rtx --sms 86,89
  amlr-export --from amlr.plan --target tensorrt            (needs no checkpoint, no torch)
  amlr-export --from amlr.plan --precision fp16-cuda    (onnxruntime-gpu)
  amlr-export --from amlr.plan --triton triton/             (model repository for Triton)
  amlr-export --from amlr.plan --plan-buckets posts.jsonl --json > plan.json
  amlr-export --ckpt release.pt --tokenizer bert-base-uncased/ --labels PER,LOC,ORG,OTHER
"""
FilePath = click.Path(path_type=Path)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str, option: str, kind: type, count: int | None = None) -> tuple[Any, ...]:
    try:
        values = tuple(kind(part) for part in _list(text))
    except ValueError:
        values = ()
    if not values or (count is not None and len(values) != count):
        example = "0.5,0.5,0.5" if kind is float else "86,89"
        raise InputError(f"{option} needs numbers like {example}, got {text!r}")
    return values


@click.command("export", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--ckpt", type=FilePath, help="best.pt of amlr-train, or a release state_dict.")
@click.option("--from", "source", type=FilePath, help="A bundle to add to, instead of --ckpt.")
@click.option(
    "--out", type=FilePath, help="Bundle to write [default: amlr.plan, or the --from bundle]"
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="Comma-separated: fp32, fp16 (TensorRT), fp16-cuda (onnxruntime), bf16, int8 (CPU).",
)
@click.option("--target", default="", help="Comma-separated: tensorrt, tensorrt-rtx, cuda.")
@click.option("--calib", type=FilePath, help="Posts for calibration: JSON lines or CoNLL.")
@click.option("--images", type=FilePath, help="Folder of the pictures of --calib.")
@click.option("--calib-posts", type=int, default=1000, show_default=True, help="Most posts read.")
@click.option("--sms", default="80,86,89,120", show_default=True, help="GPU architectures.")
@click.option(
    "--hardware",
    type=click.Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    help="TensorRT: which other GPUs may run the engine.",
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: loads in later versions too.")
@click.option("--strip-weights", is_flag=True, help="TensorRT: weights come from the ONNX at load.")
@click.option("--timing-cache", type=FilePath, help="TensorRT: measurements kept between builds.")
@click.option(
    "--profile",
    "--plan",
    "plan",
    type=FilePath,
    help="Profiles and buckets from --plan-buckets --json.",
)
@click.option("--plan-buckets", type=FilePath, help="Plan buckets for the posts of this file only.")
@click.option("--triton", type=FilePath, help="Write a Triton model repository of --from here.")
@click.option("--name", help="Name in the manifest; the folder's by default.")
@click.option("--no-reference", is_flag=True, help="Leave the eager model out of the bundle.")
@click.option("--fold/--no-fold", default=None, help="Fold the attention; by cost if not given.")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="On raw logits.")
@click.option("--tokenizer", help="Release: folder or hub name of the tokenizer.")
@click.option("--image-mean", help="Release: channel means, e.g. 0.5,0.5,0.5.")
@click.option("--image-std", help="Release: channel deviations.")
@click.option("--labels", help="Release: classes in the order of the span head.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export_command(
    ckpt: Path | None, source: Path | None, out: Path | None, quiet: bool, **options: Any
) -> None:
    """Export a checkpoint to ONNX, prove it against the eager model, and write a bundle.

    The bundle appears only if every number and every entity agrees; a failed or interrupted export
    leaves nothing, and an older bundle stays as it was. Low precisions are judged on posts of
    --calib that they were not calibrated on.
    """

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if (ckpt is None) == (source is None):
        raise InputError("give either --ckpt best.pt or --from amlr.plan")
    if options["triton"] is not None:
        _triton(source, options["triton"], say)
        return
    # Heavy imports wait until the arguments are known to be good: --help stays instant.
    if options["plan_buckets"] is not None:
        _plan(source, options["plan_buckets"], options["as_json"])
        return
    if ckpt is not None:
        out = out or Path("amlr.plan")
        manifest = _from_checkpoint(ckpt, out, options, say)
    else:
        from amlr.export.additions import add_to_bundle

        assert source is not None
        out = out or source
        manifest = add_to_bundle(source, out, _additions(options), say=say)
    size = sum(entry.bytes for entry in manifest.files.values())
    say(f"wrote {out} ({size / 1e6:.1f} MB, {len(manifest.files)} files)")
    engines = [name for name in _list(options["target"]) if name != "cuda"]
    for provider in engines:
        say(
            f"next, on the machine with the GPU: amlr-tag --engine {out.name} "
            f'--provider {provider} --text "..."'
        )
    if options["as_json"]:
        variants = {name: variant.parity for name, variant in manifest.variants.items()}
        click.echo(json.dumps({"bundle": str(out), "bytes": size, "variants": variants}))


def _from_checkpoint(
    ckpt: Path, out: Path, options: dict[str, Any], say: Callable[[str], None]
) -> Any:
    additions = _additions(options)
    labels, mean, std = (options[name] for name in ("labels", "image_mean", "image_std"))
    given = {
        "tokenizer": options["tokenizer"],
        "image_mean": _numbers(mean, "--image-mean", float, 3) if mean else None,
        "image_std": _numbers(std, "--image-std", float, 3) if std else None,
        "labels": _list(labels) if labels else None,
    }
    from amlr.export.pipeline import ExportOptions, export_checkpoint
    from amlr.training.checkpoint import ReleaseOptions

    release = ReleaseOptions(**{name: value for name, value in given.items() if value is not None})
    settings = ExportOptions(
        name=options["name"],
        keep_reference=not options["no_reference"],
        fold=options["fold"],
        tolerance=options["tolerance"],
        release=release,
        additions=additions,
    )
    return export_checkpoint(ckpt, out, settings, say=say)


def _additions(options: dict[str, Any]) -> Any:
    sms = _numbers(options["sms"], "--sms", int)
    from amlr.export.additions import Additions
    from amlr.export.extend import TargetOptions
    from amlr.export.plan_report import read_plan
    from amlr.export.tensorrt.builder import BuildOptions

    build = BuildOptions(
        sms=sms,
        hardware=options["hardware"],
        version_compatible=options["version_compatible"],
        strip_weights=options["strip_weights"],
        timing_cache=options["timing_cache"],
    )
    engines = TargetOptions(build=build)
    if options["plan"] is not None:
        profile, buckets = read_plan(options["plan"])
        engines = TargetOptions(build=build, profiles=(profile,), buckets=buckets)
    return Additions(
        precisions=_list(options["precision"]),
        targets=_list(options["target"]),
        calib=options["calib"],
        images=options["images"],
        most=options["calib_posts"],
        engines=engines,
    )


def _plan(source: Path | None, posts: Path, as_json: bool) -> None:
    if source is None:
        raise InputError("--plan-buckets needs --from amlr.plan: its tokenizer decides the lengths")
    from amlr.export.plan_report import plan_report
    from amlr.runtime.bundle import Bundle

    lines, values = plan_report(Bundle.open(source), posts)
    click.echo(json.dumps(values, indent=1) if as_json else "\n".join(lines))


def _triton(source: Path | None, out: Path, say: Callable[[str], None]) -> None:
    if source is None:
        raise InputError("--triton needs --from amlr.plan: export the bundle first")
    from amlr.serving.triton.repository import MODELS, write_repository

    write_repository(source, out)
    say(f"wrote {out}; serve it with: tritonserver --model-repository={(out / MODELS).absolute()}")


def main() -> None:
    """Entry point of `amlr-export`."""
    export_command()
