"""Every option of every command with values that nobody should give.

`test_hostile_options.py` runs it; `python tests/hostile.py` prints the counts. Options and values
come from click's own parameter objects, so a new option is covered as soon as it exists.
"""

import importlib
import os
import pkgutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
from click.testing import CliRunner

import amlr
from amlr.runtime.manifest import MANIFEST
from amlr.serving.server import Server

# Modules that import only inside a server of their own.
_NOT_HERE = (
    "amlr.kernels.device_pycuda",
    "amlr.serving.triton",
    "amlr.benchmarks.load.litserve",
)
_NOT_THE_OPTIONS = ("Error: memory is too short", "Error: no NVIDIA driver")
_INTEGERS = ("-1", "0", "x", "", "nan", "1e9", "99999999999999999999")
_FLOATS = ("-1", "0", "nan", "inf", "-inf", "1e999", "x", "")
_TEXTS = (
    "",
    " ",
    ",",
    "-1",
    "nan",
    "\udcff",
    "x" * 5000,
    "../..",
    "\N{LATIN SMALL LETTER U WITH DIAERESIS}",
)


def all_commands() -> dict[str, click.Command]:
    """Every click command of the package by the name of its module, groups left out."""
    found: dict[int, tuple[str, click.Command]] = {}
    for module in pkgutil.walk_packages(amlr.__path__, "amlr."):
        if module.name.startswith(_NOT_HERE):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, click.Command) and not isinstance(value, click.Group):
                found.setdefault(id(value), (module.name, value))
    return dict(found.values())


# Commands that need no input, with arguments that end them early.
_END_EARLY = {
    "amlr.benchmarks.gpu.kit": ["--paper", "missing"],
    "amlr.benchmarks.decoders": ["--clock", "none"],
    "amlr.training.cli": ["--data", "missing", "--text-encoder", "a", "--image-encoder", "b"],
}


def missing_inputs(name: str, command: click.Command) -> list[str]:
    """Arguments with which a command stops before it computes anything."""
    words = list(_END_EARLY.get(name, ()))
    for param in command.params:
        if param.required and isinstance(param, click.Option):
            is_number = isinstance(param.type, click.types.IntParamType)
            words += [max(param.opts, key=len), "0" if is_number else "missing.plan"]
    return words


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths of the wrong kind."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "folder").mkdir(parents=True)
        (self.folder / "empty").write_bytes(b"")
        (self.folder / "bytes").write_bytes(bytes(range(256)) * 4)
        (self.folder / "closed").write_bytes(b"x")
        (self.folder / "closed").chmod(0)
        (self.folder / "loop").symlink_to("loop")

    @property
    def values(self) -> tuple[str, ...]:
        """As a user would give them."""
        names = ("missing", "folder", "empty", "bytes", "closed", "loop", "empty/below")
        places = [str(self.folder / name) for name in names]
        return (*places, "/dev/full", "/proc/self/mem", "/proc/x", "", "\udcff", "x" * 300)


@dataclass(kw_only=True)
class Counts:
    """What was tried."""

    commands: int = 0
    options: int = 0
    values: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def values_for(param: click.Parameter, places: Places) -> tuple[str, ...]:
    """Hostile values of a parameter's type."""
    kind = param.type
    if isinstance(kind, click.Path | click.File):
        return places.values
    if isinstance(kind, click.Choice):
        return ("", "nonsense", "\udcff")
    if isinstance(kind, click.types.IntParamType):
        return _INTEGERS
    if isinstance(kind, click.types.FloatParamType):
        return _FLOATS
    return (*_TEXTS, *places.values[:4], "/dev/full")


def arguments_for(param: click.Parameter, places: Places) -> Iterator[list[str]]:
    """Command lines that give a parameter each hostile value, or its flag."""
    is_option = isinstance(param, click.Option)
    name = max(param.opts, key=len)
    if isinstance(param, click.Option) and (param.is_flag or param.count):
        yield [name]
        yield [f"{name}=x"]
        return
    for value in values_for(param, places):
        repeated = [value] * max(param.nargs, 1)
        if not is_option:
            yield ["--", *repeated]
        elif param.nargs == 1:
            # As one word, so that "-1" and "" are values.
            yield [f"{name}={value}"]
        else:
            yield [name, *repeated]


def without(words: list[str], param: click.Parameter) -> list[str]:
    """Arguments less those that give a parameter itself."""
    kept: list[str] = []
    skip = 0
    for word in words:
        if skip:
            skip -= 1
        elif isinstance(param, click.Option) and word in param.opts:
            skip = 0 if param.is_flag else param.nargs
        else:
            kept.append(word)
    return kept


def _names_something(error: str, command: click.Command, words: list[str]) -> bool:
    """Whether an error names an option, its value, or a file that was given."""
    names = {option for param in command.params for option in (*param.opts, str(param.name))}
    # Settings that the library checks have other units: --wait-ms is max_wait_s there.
    names |= {name.replace("_", " ") for name in names} | {n.rpartition("_")[0] for n in names}
    values = {word.partition("=")[2] for word in words} | set(words)
    names |= {
        v
        for t in values
        for v in (t, repr(t), Path(t).name, f"{Path(t)}:", f"{Path(t) / MANIFEST}")
    }
    # As stderr shows what it cannot encode.
    names |= {name.encode("utf-8", "backslashreplace").decode() for name in names}
    # What the machine lacks is no option's fault; nor is a run in a process of its own.
    if error.startswith(_NOT_THE_OPTIONS):
        return True
    return any(name and name.lower() in error.lower() for name in names)


def fault_of(command: click.Command, words: list[str], stdin: bytes = b"") -> tuple[int, str]:
    """Exit code, and what is wrong with how the command ended ("" where nothing is)."""
    result = CliRunner().invoke(command, words, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        error = result.exception
        return result.exit_code, f"{type(error).__name__}: {str(error)[:150]}"
    if result.exit_code not in (0, 1, 2):
        return result.exit_code, f"exit code {result.exit_code}"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    if "Traceback" in result.stderr:
        return result.exit_code, "a traceback on stderr"
    errors = [line for line in lines if line.startswith(("Error", "Usage", "Try"))]
    if result.exit_code and len(errors) != 1:
        return result.exit_code, f"{len(errors)} error lines: {' | '.join(errors)[:200]}"
    if result.exit_code and lines[-1] != errors[0]:
        return result.exit_code, f"the error is not the last line: {lines[-1][:150]}"
    if result.exit_code and not _names_something(errors[0], command, words):
        return result.exit_code, f"names neither option nor file: {errors[0][:200]}"
    return result.exit_code, ""


def drive(
    name: str,
    command: click.Command,
    base: list[str],
    places: Places,
    counts: Counts,
    stdin: bytes = b"",
) -> None:
    """Give every option of a command every hostile value beside arguments that work."""
    counts.commands += 1
    for param in command.params:
        counts.options += 1
        for given in arguments_for(param, places):
            counts.values += 1
            words = [*without(base, param), *given]
            code, fault = fault_of(command, words, stdin)
            counts.codes[code] = counts.codes.get(code, 0) + 1
            if fault:
                counts.faults.append(f"{name} {' '.join(given)[:90]!r}: {fault}")


def main() -> None:
    """Drive all commands; print the counts, and every fault."""
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A server that starts would never end.
    Server.run = lambda self, **options: None  # type: ignore[method-assign]
    places = Places(folder=folder / "places")
    total = Counts()
    for name, command in sorted(all_commands().items()):
        drive(name, command, missing_inputs(name, command), places, total)
    print(f"{total.commands} commands, {total.options} options, {total.values} values")
    print(f"exit codes {dict(sorted(total.codes.items()))}, {len(total.faults)} faults")
    print("\n".join(total.faults))


if __name__ == "__main__":
    main()
