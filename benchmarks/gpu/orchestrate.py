"""Run the steps one after another, each in a process of its own, within a budget of seconds."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amlr.benchmarks.gpu.context import Context
from amlr.benchmarks.gpu.rows import RESULTS, append_row, read_rows
from amlr.benchmarks.gpu.step import step_command
from amlr.benchmarks.gpu.steps import STEPS, Step

# Kept for the last lines of the report.
RESERVE_S = 3.0
LOG = "log.txt"
_log = logging.getLogger(__name__)


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
    run.out.mkdir(parents=True, exist_ok=True)
    run.work.mkdir(parents=True, exist_ok=True)
    results = run.out / RESULTS
    append_row(
        results,
        {"step": "run", "kind": "start", "smoke": run.smoke, "dry": run.dry, "budget": run.budget},
    )
    good = True
    for step in steps:
        if run.steps and step.name not in run.steps:
            continue
        left = run.budget - (clock() - started) - RESERVE_S
        before = clock()
        status, reason = "not run", ""
        expected = 0 if run.dry else step.expected(smoke=run.smoke)
        if not run.dry and not expected:
            reason = "not part of a smoke run" if run.smoke else "no time is set aside for it"
        elif left < max(1, expected):
            reason = f"budget: {left:.0f} s left, {expected} s needed"
        else:
            status, reason = (launch or _in_a_process)(
                run, step, left if run.dry else min(step.limit, left)
            )
        good = good and status != "failed"
        seconds = round(clock() - before, 2)
        append_row(
            results,
            {"step": step.name, "kind": "end", "status": status, "reason": reason,
             "seconds": seconds},
        )  # fmt: skip
        _log.info(f"{step.name}: {status}{': ' + reason if reason else ''} ({seconds:.1f} s)")
    append_row(results, {"step": "run", "kind": "total", "seconds": round(clock() - started, 2)})
    return good


def site_folder(work: Path) -> Path:
    """Where the kit's wheels are installed; first on the path of later steps."""
    return work / "site"


def _in_a_process(run: Run, step: Step, limit: float) -> tuple[str, str]:
    """Status and reason of one step."""
    command = step_command(step.name, step.target, run)
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
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return "failed", f"killed after its limit of {limit:.0f} s"
        finally:
            _end(process)
    return _outcome(run.out / RESULTS, step.name, code)


def _outcome(results: Path, name: str, code: int) -> tuple[str, str]:
    """What the step itself said, or what its exit code says."""
    own = [row for row in read_rows(results) if row.get("step") == name]
    said = own[-1] if own and own[-1].get("kind") == "outcome" else None
    if said is not None:
        return str(said["status"]), str(said["reason"])
    return "failed", f"ended with exit code {code} without an outcome; see {LOG}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the step and whatever it started: a process session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
