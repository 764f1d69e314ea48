"""The `amlr` group: every command is also a subcommand, loaded only when it is called."""

import importlib
from typing import Any

import click

from amlr.cli_support import AmlrCommand, CliError
from amlr.extras import missing_extra

_COMMANDS = {
    "train": ("amlr.training.cli", "train_command"),
    "eval": ("amlr.training.eval_cli", "eval_command"),
    "export": ("amlr.export.cli", "export_command"),
    "bench": ("amlr.benchmarks.cli", "bench_command"),
    "tag": ("amlr.serving.archive.cli", "tag_command"),
    "inspect": ("amlr.runtime.cli", "inspect_command"),
    "serve": ("amlr.serving.cli", "serve_command"),
}


class LazyGroup(AmlrCommand, click.Group):
    """Import a room only when its command runs: `amlr tag` must not need torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        try:
            command: Any = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            return _missing(cmd_name, error)
        assert isinstance(command, click.Command)
        return command


def _missing(name: str, error: ModuleNotFoundError) -> click.Command:
    message = missing_extra(f"`amlr {name}`", error, _EXTRA.get(name, name))

    @click.command(
        name, context_settings={"ignore_unknown_options": True}, short_help="(not installed)"
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def report(arguments: tuple[str, ...]) -> None:
        raise CliError(message)

    return report


_EXTRA = {"train": "train", "eval": "train", "export": "export", "bench": "bench"}


@click.group(cls=LazyGroup)
@click.version_option(package_name="amlr")
def main() -> None:
    """Train, export, verify and run the AMLR multimodal entity tagger."""
