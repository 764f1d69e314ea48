"""What every command shares: one-line errors, exit codes, progress bars on stderr."""

import errno
import io
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from amlr.errors import AmlrError, ParityError
from amlr.extras import missing_extra

T = TypeVar("T")


class CliError(click.ClickException):
    """An expected error as one line on stderr: bad input or a missing requirement."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


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
    "pydantic": "bench",
    "starlette": "serve",
    "uvicorn": "serve",
}


def _missing_package(error: ModuleNotFoundError) -> CliError | None:
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        return None
    return CliError(missing_extra("this command", error, _EXTRAS[name]))


class AmlrCommand(click.Command):
    """A command whose expected errors are one line; unexpected ones keep their traceback."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the arguments; what is wrong with them is one line as well."""
        try:
            ctx = super().make_context(info_name, args, parent, **extra)
            for param in self.get_params(ctx):
                _check_size(param, ctx)
        except click.UsageError as error:
            raise _one_line(error) from error
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, translating what users and machines get wrong."""
        _allow_any_text(sys.stdout)
        try:
            answer = super().invoke(ctx)
            # Here, so that a full disk behind stdout is an error of this command.
            sys.stdout.flush()
        except AmlrError as error:
            raise cli_error(error) from error
        except click.UsageError as error:
            raise _one_line(error) from error
        except ModuleNotFoundError as error:
            missing = _missing_package(error)
            if missing is None:
                raise
            raise missing from error
        except BrokenPipeError:
            raise
        except OSError as error:
            _forget_output()
            raise CliError(describe_os_error(error)) from error
        except MemoryError as error:
            raise CliError(
                f"memory is too short ({error or 'no more given'}); lower the sizes asked for"
            ) from error
        return answer


def _one_line(error: click.UsageError) -> click.ClickException:
    """Without click's two lines of usage; a group that is called alone still shows its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    path = error.ctx.command_path if error.ctx else "the command"
    return CliError(f"{error.format_message()} See: {path} --help")


_MOST = 2**31 - 1


def _check_size(param: click.Parameter, ctx: click.Context) -> None:
    """Refuse numbers that no option can mean: NaN, infinities, integers that C cannot hold."""
    value = ctx.params.get(str(param.name))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise click.BadParameter(f"{number} is not a finite number.", ctx, param)
        if isinstance(number, int) and abs(number) > _MOST:
            raise click.BadParameter(f"{number} is not in the range up to {_MOST}.", ctx, param)


_FIXES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "raise the limit of file sizes, or choose another place",
    errno.EROFS: "choose a place that is not read-only",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file; choose another",
    errno.EISDIR: "give a file instead of a folder",
    errno.EEXIST: "remove it, or choose another place",
    errno.ELOOP: "repair the link that leads to itself",
}


def describe_os_error(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    place = error.filename2 or error.filename
    reason = error.strerror or str(error) or type(error).__name__
    fix = _FIXES.get(error.errno or 0, "check the path and its permissions")
    return f"{os.fsdecode(place) if isinstance(place, str | bytes) else 'output'}: {reason}; {fix}"


def _allow_any_text(stream: Any) -> None:
    """What a terminal's encoding lacks becomes a question mark; JSON goes out as bytes."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """What stdout still holds cannot be written; Python would complain again at exit."""
    stdout = sys.__stdout__
    if stdout is not None and sys.stdout is stdout:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


class _StderrLines(logging.Handler):
    """Prints records as plain lines on whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


@contextmanager
def log_to_stderr(name: str, *, is_quiet: bool = False) -> Iterator[None]:
    """Print what a logger and those below it log, while a command runs.

    Args:
        name: Of the logger, e.g. `amlr.export`.
        is_quiet: Print errors only.
    """
    logger, handler = logging.getLogger(name), _StderrLines()
    level = logger.level
    logger.setLevel(logging.ERROR if is_quiet else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def progress(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    *,
    after_s: float = 2.0,
    size: Callable[[T], int] = lambda item: 1,
    before: int = 0,
) -> Iterator[T]:
    """Yield from `items`, drawing a bar on stderr once the work has lasted `after_s` seconds.

    On a terminal the bar is redrawn in place; elsewhere a plain line appears every ten seconds, so
    logs stay readable. An item counts `size`; `before` of the total was done in an earlier run.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    start = last = time.monotonic()
    is_tty = sys.stderr.isatty()
    done = drawn = before
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - start >= after_s and now - last >= (0.2 if is_tty else 10.0):
            _draw(label, done, total, (done - before) / (now - start), is_tty)
            last, drawn = now, done
    if before < drawn < done:
        _draw(label, done, total, (done - before) / (time.monotonic() - start), is_tty)
    if drawn > before and is_tty:
        click.echo("", err=True)


def _draw(label: str, done: int, total: int | None, rate: float, is_tty: bool) -> None:
    text = f"{label} {done}" + (f"/{total} ({100 * done // max(total, 1)} %)" if total else "")
    text += f", {rate:.1f}/s"
    if total and done < total:
        text += f", {(total - done) / max(rate, 1e-9):.0f} s left"
    click.echo(("\r\x1b[K" if is_tty else "") + text, err=True, nl=not is_tty)
