"""Options of the engine that `amlr-tag` and `amlr-serve` share."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from amlr.runtime.options import IMAGES, EngineOptions
from amlr.runtime.providers.registry import GROUPS, PROVIDERS

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--provider",
        default=EngineOptions().provider,
        show_default=True,
        help=f"One of {', '.join([*GROUPS, *PROVIDERS])}.",
    ),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        help="auto (the fastest here that gives the entities of fp32), exact (fp32), escalate "
        "(low precision first, fp32 where an answer is not certified), or a name: bf16, int8.",
    ),
    click.option(
        "--image-mode",
        type=click.Choice(IMAGES),
        default="always",
        show_default=True,
        help="when-needed reads a picture only if the text leaves a small margin; some answers may "
        "change, within the budget of the export.",
    ),
    click.option(
        "--answer-cache",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Answers to keep for repeated posts.",
    ),
    click.option(
        "--sentinel",
        type=click.FloatRange(0, 1),
        default=EngineOptions().sentinel,
        show_default=True,
        help="Share of certified answers that are checked in fp32.",
    ),
    click.option(
        "--trust-file-times",
        is_flag=True,
        help="Recognise a known picture file by its size and times, without reading it.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        help="Folder for compiled graphs and the choice of a tier; not kept if unset.",
    ),
    click.option("--manifest-sha256", help="Refuse a bundle whose manifest has another hash."),
)


def shared_options(function: F) -> F:
    """Add the options; `engine_options` reads their values."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def engine_options(values: Mapping[str, Any]) -> EngineOptions:
    """The engine's options among a command's values; those that a command lacks keep their default.

    Raises:
        InputError: An option is wrong.
    """
    named = {**values, "image": values["image_mode"]}
    return EngineOptions(
        **{f.name: named[f.name] for f in fields(EngineOptions) if f.name in named}
    )
