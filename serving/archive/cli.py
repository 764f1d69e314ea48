"""`amlr-tag`: one text or stdin as the runtime does it, and whole archives with `--input`."""

import json
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.runtime.cli import TAG_EXAMPLES
from amlr.runtime.cli import tag_command as runtime_command
from amlr.runtime.cli_options import engine_options
from amlr.runtime.cpu import usable_cores
from amlr.serving.archive.rows import Columns

EXAMPLES = (
    TAG_EXAMPLES
    + """\
  amlr-tag --engine amlr.plan --input posts/ --image-root photos/ --output tagged/
  amlr-tag --engine amlr.plan --input "s3://bucket/*.parquet" --output s3://bucket/out --resume
  amlr-tag --engine amlr.plan --input posts.jsonl --output tagged/ --ray
"""
)
_ONLY_STDIN = ("text", "image", "threads", "n_best")


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(list(names), **settings)


_OPTIONS = [
    _option("--input", "inputs", multiple=True, help="File, folder or pattern, or an address."),
    _option("--output", help="Folder for the parts, or an address."),
    _option("--input-format", type=click.Choice(["auto", "jsonl", "csv", "tsv", "parquet"]),
            default="auto", show_default=True),
    _option("--output-format", "--format", type=click.Choice(["parquet", "jsonl"]),
            default="parquet", show_default=True),
    _option("--id-column", default="id", show_default=True),
    _option("--text-column", default="text", show_default=True),
    _option("--image-column", default="image", show_default=True, help="Path or address."),
    _option("--image-bytes-column", default="image_bytes", show_default=True),
    _option("--words-column", default="words", show_default=True),
    _option("--chunk-rows", type=click.IntRange(1), default=2000, show_default=True,
            help="Rows of an output part."),
    _option("--group-by-picture", is_flag=True,
            help="Keep neighbouring rows with the same picture in one part; with input sorted by "
            "picture, each picture is encoded once."),
    _option("--workers", type=click.IntRange(1), help="Processes; default: the physical cores."),
    _option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]",
            help="Run on Ray Data, at this address or on this machine."),
    _option("--resume", is_flag=True, help="Continue an earlier run that stopped."),
]  # fmt: skip


def _tag(**values: Any) -> None:
    """Find entities in one text, in JSON lines from stdin, or in whole archives.

    Without --input: JSON lines {"id", "text", "image", "words"} from stdin to JSON lines {"id",
    "entities", "image_used", "certified", "warnings", "error"} in the order of the input.

    With --input and --output: JSON lines, CSV or Parquet to Parquet or JSON lines, with worker
    processes of one thread each. Every row appears exactly once, bad ones with their error; a run
    that was killed goes on with --resume.
    """
    archive = {str(option.name): values.pop(str(option.name)) for option in _OPTIONS}
    if archive["inputs"]:
        _tag_archive(archive, values)
        return
    if archive["output"] or archive["resume"] or archive["ray"]:
        raise InputError("--output, --resume and --ray go with --input")
    root = values["image_root"]
    assert runtime_command.callback is not None
    runtime_command.callback(**values | {"image_root": None if root is None else Path(root)})


def _tag_archive(archive: dict[str, Any], values: dict[str, Any]) -> None:
    from amlr.serving.archive.job import run_job
    from amlr.serving.archive.plan import Job

    if "-" in archive["inputs"]:
        raise InputError(
            "--input - is no file; leave out --input and --output to tag JSON lines from stdin"
        )
    if archive["output"] is None:
        raise InputError("--input needs --output, the folder of the parts")
    for name in _ONLY_STDIN:
        if values[name] is not None:
            hint = "; workers have one thread each: give --workers" if name == "threads" else ""
            option = name.replace("_", "-")
            raise InputError(f"--{option} and --input exclude each other{hint}")
    names = Columns.__dataclass_fields__
    columns = Columns(**{name: archive.pop(f"{name}_column") for name in names})
    archive["workers"] = archive["workers"] or usable_cores()
    job = Job(
        bundle=str(values["bundle"]),
        manifest_sha256=values["manifest_sha256"],
        engine=engine_options(values),
        columns=columns,
        image_root=values["image_root"],
        **archive,  # named as the fields of the job
    )
    click.echo(json.dumps(run_job(job)))


def _params() -> list[click.Parameter]:
    """The runtime's options; pictures of an archive may lie at any address, not only in a path."""
    root = _option("--image-root", help="Folder or address of the pictures that rows name.")
    return [root if param.name == "image_root" else param for param in runtime_command.params]


tag_command = AmlrCommand(
    "tag", params=[*_params(), *_OPTIONS], callback=_tag, help=_tag.__doc__, epilog=EXAMPLES
)


def tag_main() -> None:
    """Entry point of `amlr-tag`."""
    tag_command()
