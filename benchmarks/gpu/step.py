"""One step in this process: `python -m amlr.benchmarks.gpu.step NAME --target MODULE:FUNCTION`."""

import argparse
import importlib
import traceback
from pathlib import Path

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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--target", required=True, help="module:function")
    for folder in ("--kit", "--work", "--out"):
        parser.add_argument(folder, type=Path, required=True)
    parser.add_argument("--variants", default="")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    context = Context(
        kit=args.kit,
        work=args.work,
        out=args.out,
        smoke=args.smoke,
        dry=args.dry_run,
        variants=tuple(filter(None, args.variants.split(","))),
    )
    run_step(args.name, args.target, context)


if __name__ == "__main__":
    main()
