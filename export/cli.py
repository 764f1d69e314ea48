"""`amlr-export`: writes a verified bundle from a checkpoint, or adds to a bundle."""

import json
import logging
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import InputError

EXAMPLES = """\b
Examples:
  amlr-export --ckpt best.pt
  amlr-export --ckpt best.pt --calib posts.jsonl        (adds bf16 for `auto` on CPUs)
  amlr-export --ckpt best.pt --precision fp32,bf16,int8 --calib posts.jsonl
  amlr-export --ckpt best.pt --precision fp32,fp16 --target tensorrt-rtx --sms 86,89
  amlr-export --from amlr.plan --target tensorrt            (needs no checkpoint, no torch)
  amlr-export --from amlr.plan --precision fp16-cuda    (onnxruntime-gpu)
  amlr-export --from amlr.plan --triton triton/             (model repository for Triton)
  amlr-export --from amlr.plan --plan-buckets posts.jsonl --json > plan.json
  amlr-export --ckpt release.pt --tokenizer bert-base-uncased/ --labels PER,LOC,ORG,OTHER
"""
FilePath = click.Path(path_type=Path)
log = logging.getLogger(__name__)


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
    help="Comma-separated: fp32, fp16 (TensorRT), fp16-cuda (onnxruntime), bf16, int8 (CPU); "
    "default: fp32, and with --calib also bf16, which `auto` uses where it certifies answers.",
)
@click.option("--target", default="", help="Comma-separated: tensorrt, tensorrt-rtx, cuda.")
@click.option("--calib", type=FilePath, help="Posts for calibration: JSON lines or CoNLL.")
@click.option("--images", type=FilePath, help="Folder of the pictures of --calib.")
@click.option("--calib-posts", type=int, default=1000, show_default=True, help="Most posts read.")
@click.option(
    "--sms",
    default="80,86,89,120",
    show_default=True,
    help="TensorRT-RTX: GPU architectures; others are built only on a GPU of that architecture.",
)
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
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="TensorRT: effort of the builder [default: the library's, 3]; 5 for engines in "
    "production, 0 to test whether a build works.",
)
@click.option(
    "--aux-streams",
    type=click.IntRange(min=0),
    help="TensorRT: most additional streams of an engine [default: the library's choice]; 0 saves "
    "memory when many callers use the device.",
)
@click.option(
    "--profile",
    "--plan",
    "plan",
    type=FilePath,
    help="Profiles and buckets from --plan-buckets --json.",
)
@click.option(
    "--batches",
    help="TensorRT: batch sizes, e.g. 1,8,32: one optimization profile up to each size, tuned for "
    "it; a call uses the smallest that fits [default: one profile up to 32]. The build time grows "
    "with their number.",
)
@click.option(
    "--plan-buckets", type=FilePath, help="Only plan buckets, for the posts of this file."
)
@click.option("--triton", type=FilePath, help="Write a Triton model repository of --from here.")
@click.option("--name", help="Name in the manifest; the folder's by default.")
@click.option("--no-reference", is_flag=True, help="Leave the eager model out of the bundle.")
@click.option(
    "--fold/--no-fold", default=None, help="Fold the attention; default: if it costs less."
)
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="On raw logits.")
@click.option("--tokenizer", help="Release: folder or hub name of the tokenizer.")
@click.option("--image-mean", help="Release: channel means, e.g. 0.5,0.5,0.5.")
@click.option("--image-std", help="Release: channel deviations.")
@click.option("--labels", help="Release: classes in the order of the span head.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export_command(
    ckpt: Path | None, source: Path | None, out: Path | None, quiet: bool, **options: Any
) -> None:
    """Export a checkpoint to ONNX, verify it against the eager model, and write a bundle.

    The bundle is written only if every number agrees within the tolerance and every entity is the
    same. A failed or interrupted export writes nothing and keeps an older bundle. Low precisions
    are compared on posts of --calib that they were not calibrated on.
    """
    with log_to_stderr("amlr.export", is_quiet=quiet):
        _run(ckpt, source, out, options)


def _run(
    ckpt: Path | None, source: Path | None, out: Path | None, arguments: dict[str, Any]
) -> None:
    if (ckpt is None) == (source is None):
        raise InputError("give either --ckpt best.pt or --from amlr.plan")
    if arguments["triton"] is not None:
        _write_triton(source, arguments["triton"])
        return
    # Heavy imports wait until the arguments are known to be good: --help stays instant.
    if arguments["plan_buckets"] is not None:
        _print_plan(source, arguments["plan_buckets"], arguments["as_json"])
        return
    if ckpt is not None:
        out = out or Path("amlr.plan")
        manifest = _export(ckpt, out, arguments)
    else:
        assert source is not None
        out, options = out or source, _options(arguments)
        from amlr.export.additions import add_to_bundle

        manifest = add_to_bundle(source, out, options)
    size = sum(entry.bytes for entry in manifest.files.values())
    log.info(f"wrote {out} ({size / 1e6:.1f} MB, {len(manifest.files)} files)")
    engines = [name for name in _list(arguments["target"]) if name != "cuda"]
    for provider in engines:
        log.info(
            f"next, on the machine with the GPU: amlr-tag --engine {out.name} "
            f'--provider {provider} --text "..."'
        )
    if arguments["as_json"]:
        variants = {name: variant.parity for name, variant in manifest.variants.items()}
        click.echo(json.dumps({"bundle": str(out), "bytes": size, "variants": variants}))


def _export(ckpt: Path, out: Path, arguments: dict[str, Any]) -> Any:
    options = _options(arguments)
    labels, mean, std = (arguments[name] for name in ("labels", "image_mean", "image_std"))
    values = {
        "tokenizer": arguments["tokenizer"],
        "image_mean": _numbers(mean, "--image-mean", float, 3) if mean else None,
        "image_std": _numbers(std, "--image-std", float, 3) if std else None,
        "labels": _list(labels) if labels else None,
    }
    from amlr.export.pipeline import export_checkpoint
    from amlr.training.release import ReleaseOptions

    release = ReleaseOptions(**{name: value for name, value in values.items() if value is not None})
    return export_checkpoint(ckpt, out, options, release=release)


def _options(arguments: dict[str, Any]) -> Any:
    plan, sms = arguments["plan"], _numbers(arguments["sms"], "--sms", int)
    batches = _numbers(arguments["batches"], "--batches", int) if arguments["batches"] else None
    from amlr.export.options import ExportOptions
    from amlr.export.planner import read_plan
    from amlr.export.profiles import Profile

    profile, buckets = (Profile(), ()) if plan is None else read_plan(plan)
    profiles = (profile,) if batches is None else profile.split(batches)
    same = (
        *("name", "fold", "tolerance", "calib", "images"),
        *("hardware", "version_compatible", "strip_weights", "timing_cache"),
        *("optimization_level", "aux_streams"),
    )
    return ExportOptions(
        **{name: arguments[name] for name in same},
        profiles=profiles,
        buckets=buckets,
        keep_reference=not arguments["no_reference"],
        precisions=_precisions(arguments),
        targets=_list(arguments["target"]),
        max_posts=arguments["calib_posts"],
        sms=sms,
    )


def _precisions(arguments: dict[str, Any]) -> tuple[str, ...]:
    if arguments["precision"] is not None:
        return _list(arguments["precision"])
    # Only measured radii let `auto` certify answers in low precision. Engines for a device get no
    # use out of it.
    is_for_cpus = arguments["calib"] is not None and not _list(arguments["target"])
    return ("fp32", "bf16") if is_for_cpus else ("fp32",)


def _print_plan(source: Path | None, posts: Path, as_json: bool) -> None:
    if source is None:
        raise InputError("--plan-buckets needs --from amlr.plan: its tokenizer decides the lengths")
    from amlr.export.planner import plan_report
    from amlr.runtime.bundle import Bundle

    lines, values = plan_report(Bundle.open(source), posts)
    click.echo(json.dumps(values, indent=1) if as_json else "\n".join(lines))


def _write_triton(source: Path | None, out: Path) -> None:
    if source is None:
        raise InputError("--triton needs --from amlr.plan: export the bundle first")
    from amlr.serving.triton.repository import MODELS, write_repository

    write_repository(source, out)
    models = (out / MODELS).absolute()
    log.info(f"wrote {out}; serve it with: tritonserver --model-repository={models}")


def main() -> None:
    """Entry point of `amlr-export`."""
    export_command()
