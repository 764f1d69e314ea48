"""One step in this process; `step_command` starts it in another one."""

import importlib
import sys
import traceback

from amlr.benchmarks.gpu.context import Context, NotRunError, one_line
from amlr.benchmarks.gpu.rows import RESULTS, append_row
from amlr.errors import AmlrError, ParityError


def run_step(name: str, target: str, context: Context) -> tuple[str, str]:
    """Run a step, append its rows, and say how it ended.

    Returns:
        `done`, `failed` or `not run`, and the reason.
    """
    results = context.out / RESULTS
    try:
        failures = []
        module, _, function = target.partition(":")
        for row in getattr(importlib.import_module(module), function)(context):
            append_row(results, {"step": name, "kind": "row", **row})
            print(row, flush=True)
            if row.get("failed"):
                failures.append(str(row["failed"]))
        status, reason = ("failed", "; ".join(failures)[:300]) if failures else ("done", "")
    except Exception as error:  # a step of one library must not end the others
        if not isinstance(error, NotRunError):
            traceback.print_exc()
        status, reason = _verdict(error)
    append_row(results, {"step": name, "kind": "outcome", "status": status, "reason": reason})
    return status, reason


def _verdict(error: Exception) -> tuple[str, str]:
    if isinstance(error, NotRunError):
        return "not run", str(error)
    if isinstance(error, ModuleNotFoundError):
        return "not run", f"the package {error.name!r} is not installed here"
    if isinstance(error, AmlrError) and not isinstance(error, ParityError):
        return "not run", one_line(error)
    return "failed", one_line(error)


def step_command(name: str, target: str, context: Context) -> list[str]:
    """The command that runs a step in a process of its own."""
    return [sys.executable, "-m", "amlr.benchmarks.gpu.step", name, target, context.to_json()]


if __name__ == "__main__":
    run_step(sys.argv[1], sys.argv[2], Context.from_json(sys.argv[3]))
