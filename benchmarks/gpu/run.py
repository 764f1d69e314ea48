"""Steps of a GPU run: which there are, one in this process, all of them within a budget.

Rows go to a file of JSON lines at once, so they survive a step that is killed. Imports
nothing heavy.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from amlr.benchmarks.gpu.context import Context, NotRunError, one_line
from amlr.errors import AmlrError, ParityError

Row = dict[str, Any]
RESULTS, LOG = "results.jsonl", "log.txt"
# Kept for the last lines of the report.
RESERVE_S = 3.0
_log = logging.getLogger("amlr.benchmarks.gpu.run")


class Step(NamedTuple):
    """One step.

    Attributes:
        name: As `--steps` takes it.
        target: `module:function`; the function takes a `Context` and yields rows.
        seconds: Expected on an H100; a budget that holds less does not start the step.
        limit: Seconds after which the step is killed.
        smoke: Expected seconds of one repetition of everything.
    """

    name: str
    target: str
    seconds: int
    limit: int
    smoke: int


HERE = "amlr.benchmarks.gpu"
# The most valuable first.
STEPS = (
    Step("ceilings", f"{HERE}.setup_steps:ceilings", 8, 40, 6),
    Step("install", f"{HERE}.setup_steps:install", 15, 60, 15),
    Step("kernel-replay", f"{HERE}.kernel_steps:replay", 15, 60, 10),
    Step("kernel-tests", f"{HERE}.kernel_steps:tests", 30, 90, 30),
    Step("kernel-sanitizers", f"{HERE}.kernel_steps:sanitizers", 50, 90, 20),
    Step("kernel-times", f"{HERE}.kernel_steps:times", 40, 80, 10),
    Step("ort-parity", f"{HERE}.onnx_steps:parity", 30, 70, 15),
    Step("ort-speed", f"{HERE}.onnx_steps:speed", 50, 100, 20),
    Step("eager", f"{HERE}.torch_steps:eager", 20, 60, 10),
    Step("decoders", f"{HERE}.engine_steps:decoders", 15, 40, 8),
    Step("compile", f"{HERE}.torch_steps:compile_static", 60, 120, 25),
    Step("end-to-end", f"{HERE}.engine_steps:end_to_end", 25, 60, 10),
    Step("compile-max", f"{HERE}.torch_steps:compile_max", 60, 150, 0),
    Step("small", f"{HERE}.engine_steps:small", 40, 90, 15),
)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and wait until it is on the disk.

    A half-written last line, left by a killed process, is closed first so that it spoils no other.
    """
    line = json.dumps(row, default=str).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All whole rows; lines that a killed process left unfinished are skipped."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def run_step(name: str, target: str, context: Context) -> tuple[str, str]:
    """Run a step in this process, append its rows, and say how it ended.

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
    return [sys.executable, "-m", f"{HERE}.run", name, target, context.to_json()]


@dataclass(frozen=True, kw_only=True)
class Run(Context):
    """Steps in the same surroundings.

    Attributes:
        budget: Seconds for everything.
        steps: Names of the steps to run; empty for all.
    """

    budget: float
    steps: tuple[str, ...] = ()


Launch = Callable[[Run, Step, float], tuple[str, str]]


def orchestrate(
    run: Run,
    *,
    steps: Sequence[Step] = STEPS,
    launch: Launch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Run every step that the budget holds.

    Args:
        run: What to do.
        steps: All steps in order.
        launch: Runs one step within some seconds and says how it ended; None gives each a process
            of its own.
        clock: Seconds.

    Returns:
        Whether no step failed; a step that was not run has not failed.
    """
    started = clock()
    for folder in (run.out, run.work):
        folder.mkdir(parents=True, exist_ok=True)
    results = run.out / RESULTS
    start = {"smoke": run.smoke, "dry": run.dry, "budget": run.budget}
    append_row(results, {"step": "run", "kind": "start", **start})
    good = True
    for step in steps:
        if run.steps and step.name not in run.steps:
            continue
        before = clock()
        left = run.budget - (before - started) - RESERVE_S
        status, reason = "not run", _why_not(run, step, left)
        if not reason:
            limit = left if run.dry else min(step.limit, left)
            status, reason = (launch or _in_a_process)(run, step, limit)
        good = good and status != "failed"
        seconds = round(clock() - before, 2)
        end = {"status": status, "reason": reason, "seconds": seconds}
        append_row(results, {"step": step.name, "kind": "end", **end})
        _log.info(f"{step.name}: {status}{': ' + reason if reason else ''} ({seconds:.1f} s)")
    append_row(results, {"step": "run", "kind": "total", "seconds": round(clock() - started, 2)})
    return good


def _why_not(run: Run, step: Step, left: float) -> str:
    """Why a step is not started; empty where it is."""
    expected = step.smoke if run.smoke else step.seconds
    if not run.dry and not expected:
        return "not part of a smoke run" if run.smoke else "no time is set aside for it"
    if left < max(1, 0 if run.dry else expected):
        return f"budget: {left:.0f} s left, {expected} s needed"
    return ""


def site_folder(work: Path) -> Path:
    """Where the kit's wheels are installed; first on the path of later steps."""
    return work / "site"


def _in_a_process(run: Run, step: Step, limit: float) -> tuple[str, str]:
    """Status and reason of one step."""
    path = [str(site_folder(run.work)), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    with (run.out / LOG).open("ab") as log:
        log.write(f"\n===== {step.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            step_command(step.name, step.target, run),
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return "failed", f"killed after its limit of {limit:.0f} s"
        finally:
            # The step and whatever it started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = next((r for r in read_rows(run.out / RESULTS)[::-1] if r["step"] == step.name), {})
    if last.get("kind") == "outcome":
        return str(last["status"]), str(last["reason"])
    return "failed", f"ended with exit code {code} without an outcome; see {LOG}"


if __name__ == "__main__":
    run_step(sys.argv[1], sys.argv[2], Context.from_json(sys.argv[3]))
