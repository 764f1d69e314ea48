"""Our own kernels' steps as steps of a run; each is one function of `kernel_steps`."""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.benchmarks.gpu.rows import Row, read_rows

_MODULE = "amlr.benchmarks.gpu.kernel_steps"


def replay(context: Context) -> Iterator[Row]:
    """Recorded launches replayed; every byte must be equal."""
    return _run(context, "kernel_replay")


def tests(context: Context) -> Iterator[Row]:
    """The tests that need a device."""
    return _run(context, "kernel_tests")


def sanitizers(context: Context) -> Iterator[Row]:
    """compute-sanitizer's tools on the replay."""
    return _run(context, "kernel_sanitizers")


def times(context: Context) -> Iterator[Row]:
    """Times of the decoders against what they are compared with."""
    return _run(context, "kernel_times")


def _run(context: Context, name: str) -> Iterator[Row]:
    try:
        steps: Any = importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        raise NotRunError("this version of amlr has no kernel steps") from error
    if not (context.kit / "kernels").is_dir():
        raise NotRunError("the kit has no part 'kernels'")
    rows = (
        _dry_rows(context, name)
        if context.dry
        else steps.KERNEL_STEPS[name](context.kit, context.out, context.smoke)
    )
    for row in rows:
        yield row | _failure(name, row)


def _dry_rows(context: Context, name: str) -> list[Row]:
    """The step on the driver double, which needs a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", _MODULE, "--kit", str(context.kit), "--out", folder]
        done = subprocess.run(
            [*command, "--steps", name, "--smoke", "--dry-run"],
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout, done.stderr, flush=True)
        if done.returncode:
            raise NotRunError(f"on the driver double: exit code {done.returncode}; see log.txt")
        rows = read_rows(Path(folder) / "kernels.jsonl")
    return [json.loads(json.dumps({n: v for n, v in r.items() if n != "step"})) for r in rows]


def _failure(name: str, row: Row) -> Row:
    """What makes a row fail the run."""
    if "not_run" in row:
        return {}
    is_planted = "planted" in row
    reported = row.get("clean") is False and not is_planted
    if row.get("equal") is False or row.get("noticed") is False or reported:
        return {"failed": f"{name}: see the rows"}
    return {}
