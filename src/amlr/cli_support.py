"""What every command shares: one-line errors, exit codes, progress bars on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import click

from amlr.errors import AmlrError, ParityError

T = TypeVar("T")


class CliError(click.ClickException):
    """An expected error as one line on stderr: bad input or a missing requirement."""

    exit_code = 2


class FailedCheckError(CliError):
    """A check that failed, as opposed to a request that could not be carried out."""

    exit_code = 1


def cli_error(error: AmlrError) -> CliError:
    """The command-line form of an error."""
    kind = FailedCheckError if isinstance(error, ParityError) else CliError
    return kind(str(error))


# Which extra brings a package that a base install lacks.
_EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "accelerate": "train",
    "matplotlib": "train",
    "onnx": "export",
    "jsonschema": "bench",
    "fastapi": "serve",
    "uvicorn": "serve",
}


def _missing_package(error: ModuleNotFoundError) -> CliError | None:
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        return None
    return CliError(
        f"this command needs the package {name!r}, which is not installed; "
        f'install it with: pip install "amlr[{_EXTRAS[name]}]"'
    )


class AmlrCommand(click.Command):
    """A command whose expected errors are one line; unexpected ones keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, translating `AmlrError`."""
        try:
            return super().invoke(ctx)
        except AmlrError as error:
            raise cli_error(error) from error
        except ModuleNotFoundError as error:
            missing = _missing_package(error)
            if missing is None:
                raise
            raise missing from error


def progress(
    items: Iterable[T], label: str, total: int | None = None, *, after_s: float = 2.0
) -> Iterator[T]:
    """Yield from `items`, drawing a bar on stderr once the work has lasted `after_s` seconds.

    On a terminal the bar is redrawn in place; elsewhere a plain line appears every ten seconds, so
    logs stay readable.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    start = last = time.monotonic()
    is_tty = sys.stderr.isatty()
    shown = False
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - start >= after_s and now - last >= (0.2 if is_tty else 10.0):
            _draw(label, done, total, now - start, is_tty)
            last, shown = now, True
    if shown:
        _draw(label, done, total, time.monotonic() - start, is_tty)
        if is_tty:
            click.echo("", err=True)


def _draw(label: str, done: int, total: int | None, elapsed_s: float, is_tty: bool) -> None:
    rate = done / max(elapsed_s, 1e-9)
    text = f"{label} {done}" + (f"/{total} ({100 * done // max(total, 1)} %)" if total else "")
    text += f", {rate:.1f}/s"
    if total and done < total:
        text += f", {(total - done) / max(rate, 1e-9):.0f} s left"
    click.echo(("\r\x1b[K" if is_tty else "") + text, err=True, nl=not is_tty)
