"""Steps of a GPU run that concern our CUDA kernels: exact replay, tests, sanitizers, times.

What cannot run leaves a row with `not_run`, the reason. `write_kernel_kit` fills `<kit>/kernels`
beforehand, on a machine with a C++ compiler and NVRTC.

On the driver double of the tests every step runs its code; rows then say `dry_run` and their times
mean nothing:

    python -m amlr.benchmarks.gpu.kernel_steps --kit KIT --out OUT --dry-run

Without `--dry-run` the same command runs the steps on this machine's GPU.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.benchmarks.gpu.kernel_times import kernel_times
from amlr.benchmarks.gpu.rows import Row, append_row, read_rows
from amlr.cli_support import AmlrCommand
from amlr.errors import AmlrError, BackendUnavailableError
from amlr.kernels.images import KernelSpec, compile_image

Rows = list[Row]
ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
_ARCHITECTURE = "sm_90"
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# A sanitizer that reports nothing is believed only if it reports this damage.
_PLANTED = {"memcheck": "--plant-short", "initcheck": "--plant-unwritten"}


def write_kernel_kit(folder: Path) -> Path:
    """Fill `<folder>/kernels`: recorded launches, the replay program's source, cubins for SM 9.0.

    Raises:
        AmlrError: The recording failed; the message ends with why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "shims.kernel_kit", str(folder / "kernels")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": _python_path()},
    )
    if done.returncode:
        raise AmlrError(f"the kernel kit could not be written: {done.stderr.strip()[-2000:]}")
    return folder / "kernels"


def _step(function: Callable[[Context], Rows]) -> Callable[[Context], Iterator[Row]]:
    """Rows of a kernel step, each marked as failed or as of a dry run where it is.

    Raises:
        NotRunError: The kit has no kernels, or the driver double failed.
    """
    name = f"kernel_{function.__name__}"

    @wraps(function)
    def step(context: Context) -> Iterator[Row]:
        if not (context.kit / "kernels").is_dir():
            raise NotRunError("the kit has no part 'kernels'")
        if context.dry and not _is_dry():
            yield from _dry_rows(context, name)
            return
        for row in function(context):
            is_bad = any(row.get(key) is False for key in ("equal", "noticed"))
            is_reported = row.get("clean") is False and "planted" not in row
            if "not_run" not in row and (is_bad or is_reported):
                row |= {"failed": f"{name}: see the rows"}
            yield row | ({"dry_run": True} if _is_dry() else {})

    return step


@_step
def replay(context: Context) -> Rows:
    """Replay the recorded launches with images from three compilers; every byte must be equal.

    Raises:
        AmlrError: The replay program could not be built.
    """
    recording = _recording(context.kit, context.smoke)
    rows: Rows = []
    with tempfile.TemporaryDirectory() as made:
        program = build_replay(context.kit, Path(made))
        for compiler in ("carried", "nvcc", "nvrtc"):
            row: Row = {"images": compiler}
            try:
                images = _images(context.kit, Path(made) / compiler, compiler)
            except AmlrError as error:
                rows.append(row | {"not_run": str(error)})
                continue
            row |= _run([str(program), str(recording), str(images)], seconds=60)
            rows.append(row | {"equal": row["exit_code"] == 0})
    return rows


@_step
def tests(context: Context) -> Rows:
    """The tests marked gpu of `tests/kernels`, on the device: counts, then a row a failure."""
    folder = ROOT / "tests" / "kernels"
    if not folder.is_dir():
        return [{"not_run": f"{folder} is not here; run from a checkout"}]
    chosen = ["test_device.py"] if context.smoke else ["."]
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "tests.xml"
        # The sanitizers have a step of their own; plugins of the machine's image are not ours.
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "not compute_sanitizer"),
            *("-o", "filterwarnings=default", "-p", "no:cacheprovider"),
            f"--junitxml={report}",
            *(str(folder / name) for name in chosen),
        ]
        environment = {
            "PYTHONPATH": _python_path(),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "AMLR_REQUIRE": "gpu",
        }
        row = _run(command, seconds=150, environment=environment)
        if not report.is_file():
            return [row | {"not_run": "pytest left no report"}]
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    return _test_rows(cases, row)


@_step
def sanitizers(context: Context) -> Rows:
    """The four tools of compute-sanitizer on the replay, and that they notice planted damage."""
    if not _is_dry() and shutil.which("compute-sanitizer") is None:
        return [{"not_run": "compute-sanitizer is not on the path"}]
    rows: Rows = []
    kit = context.kit
    with tempfile.TemporaryDirectory() as made:
        program = build_replay(kit, Path(made))
        try:
            images = _images(kit, Path(made) / "nvcc", "nvcc")  # they know their source lines
        except AmlrError:
            images = kit / "kernels" / "cubins"
        for tool in _TOOLS:
            replay = [str(program), str(_recording(kit, context.smoke)), str(images)]
            if tool == "initcheck":
                replay.append("--unwritten")
            rows.append(_sanitized(tool, replay))
            if tool in _PLANTED and not _is_dry():
                damaged = [*replay[:1], str(_recording(kit, True)), *replay[2:], _PLANTED[tool]]
                row = _sanitized(tool, damaged)
                rows.append(row | {"planted": _PLANTED[tool], "noticed": row["errors"] > 0})
    return rows


@_step
def times(context: Context) -> Rows:
    """Times of every decoder and of what it is compared with, in microseconds."""
    return kernel_times(smoke=context.smoke, dry=_is_dry())


KERNEL_STEPS: Mapping[str, Callable[[Context], Iterator[Row]]] = {
    "kernel_replay": replay,
    "kernel_tests": tests,
    "kernel_sanitizers": sanitizers,
    "kernel_times": times,
}


def _dry_rows(context: Context, name: str) -> Rows:
    """The step on the driver double, which needs a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "amlr.benchmarks.gpu.kernel_steps"]
        command += ["--kit", str(context.kit), "--out", folder, "--steps", name]
        done = subprocess.run(
            [*command, "--smoke", "--dry-run"], capture_output=True, text=True, check=False
        )
        print(done.stdout, done.stderr, flush=True)
        if done.returncode:
            raise NotRunError(f"on the driver double: exit code {done.returncode}; see log.txt")
        rows = read_rows(Path(folder) / "kernels.jsonl")
    return [{name: value for name, value in row.items() if name != "step"} for row in rows]


def build_replay(kit: Path, folder: Path) -> Path:
    """Compile the replay program; it opens the driver at run time, so g++ is enough.

    Raises:
        AmlrError: No compiler, or it refused.
    """
    compiler = shutil.which("g++") or shutil.which("nvcc")
    if compiler is None:
        raise BackendUnavailableError("no g++ and no nvcc to build the replay program with")
    program = folder / "replay_device"
    source = kit / "kernels" / "replay_device.cpp"
    command = [compiler, "-O1", "-std=c++17", str(source), "-o", str(program), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AmlrError(f"the replay program could not be built: {done.stderr.strip()[-2000:]}")
    return program


def _images(kit: Path, folder: Path, compiler: str) -> Path:
    """A folder of cubins for the recorded launches, from one of the compilers."""
    if compiler == "carried":
        return kit / "kernels" / "cubins"
    folder.mkdir()
    listed = json.loads((kit / "kernels" / "specs.json").read_text(encoding="utf-8"))
    specs = [KernelSpec(**entry) for entry in listed]
    if compiler == "nvrtc":
        for spec in specs:
            name = f"{spec.source}{spec.variant}.cubin"
            (folder / name).write_bytes(compile_image(spec, _ARCHITECTURE))
        return folder
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BackendUnavailableError("nvcc is not on the path")
    running = []
    for spec in specs:
        macros = [f"-D{name}={value}" for name, value in spec.macros.items()]
        target = folder / f"{spec.source}{spec.variant}.cubin"
        command = [nvcc, "-cubin", f"-arch={_ARCHITECTURE}", "-std=c++17", "-lineinfo", *macros]
        command += [str(KERNELS / f"{spec.source}.cu"), "-o", str(target)]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    messages = [process.communicate()[1] for process in running]
    if any(process.returncode for process in running):
        raise AmlrError(f"nvcc refused a kernel: {' '.join(messages).strip()[-2000:]}")
    return folder


def _sanitized(tool: str, replay: Sequence[str]) -> Row:
    """Run the replay under a tool; in a dry run without it."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--print-limit", "20"]
    command += ["--leak-check", "full"] if tool == "memcheck" else []
    row: Row = {"tool": tool} | _run([*([] if _is_dry() else command), *replay], seconds=60)
    summary = [line for line in row["output"] if "ERROR SUM" in line or "RACECHECK SUM" in line]
    row["summary"] = summary[-1].strip("= ") if summary else None
    row["errors"] = _count(row["summary"])
    row["clean"] = row["exit_code"] == 0 and (row["errors"] == 0 or _is_dry())
    return row


def _count(summary: str | None) -> int:
    """Errors of a line such as "ERROR SUMMARY: 0 errors"; -1 where there is none."""
    numbers = [int(word) for word in (summary or "").replace("(", " ").split() if word.isdigit()]
    return numbers[0] if numbers else -1


def _test_rows(cases: Sequence[ElementTree.Element], run: Mapping[str, Any]) -> Rows:
    failures: Rows = []
    skipped: dict[str, int] = {}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        for kind in ("failure", "error"):
            for problem in case.findall(kind):
                lines = (problem.text or problem.get("message") or "").splitlines()
                failures.append({"failed": name, "lines": [line for line in lines if line][-30:]})
        for reason in case.findall("skipped"):
            text = reason.get("message") or ""
            skipped[text] = skipped.get(text, 0) + 1
    slowest = sorted(cases, key=lambda case: -float(case.get("time", 0)))[:3]
    bad = {row["failed"] for row in failures}
    summary = {
        "tests": len(cases),
        "passed": len(cases) - len(bad) - sum(skipped.values()),
        "failed": len(bad),
        "skipped": skipped,
        "exit_code": run["exit_code"],
        "seconds": run["seconds"],
        "slowest": [[case.get("name"), float(case.get("time", 0))] for case in slowest],
    }
    if run["exit_code"] not in (0, 1):
        summary["output"] = run["output"]
    return [summary, *failures]


def _run(
    command: Sequence[str], *, seconds: float, environment: Mapping[str, str] | None = None
) -> Row:
    """Exit code (-1 when it ran too long), seconds, and the first and last lines of output."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            env=os.environ | (environment or {}),
            cwd=ROOT,
        )
        code, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        code, text = -1, output.decode(errors="replace") if isinstance(output, bytes) else output
    lines = text.splitlines()
    if len(lines) > 40:
        lines = [*lines[:30], f"... {len(lines) - 40} lines ...", *lines[-10:]]
    return {
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 2),
        "output": [line[:400] for line in lines],
    }


def _recording(kit: Path, smoke: bool) -> Path:
    return kit / "kernels" / ("small.bin" if smoke else "corpus.bin")


def _python_path() -> str:
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), *others])


def _is_dry() -> bool:
    return "AMLR_DOUBLE_KERNELS" in os.environ


@click.command("kernel_steps", cls=AmlrCommand)
@click.option("--kit", type=click.Path(path_type=Path), required=True, help="Filled when missing.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the rows.")
@click.option("--smoke", is_flag=True, help="The shortest run of everything.")
@click.option("--steps", default=",".join(KERNEL_STEPS), show_default=True)
@click.option("--dry-run", is_flag=True, help="On the driver double.")
def main(kit: Path, out: Path, smoke: bool, steps: str, dry_run: bool) -> None:
    """Run the kernel steps and append their rows to <out>/kernels.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    if not (kit / "kernels" / "specs.json").is_file():
        write_kernel_kit(kit)
    if dry_run and not _is_dry():
        # The loader reads its path once, so the steps run in a process of their own.
        listed = [sys.executable, "-m", "shims.kernel_kit", "--double", str(kit / "double")]
        path = os.environ | {"PYTHONPATH": _python_path()}
        double = subprocess.run(listed, capture_output=True, text=True, check=True, env=path)
        done = subprocess.run(
            [sys.executable, "-m", "amlr.benchmarks.gpu.kernel_steps", *sys.argv[1:]],
            check=False,
            env=path | json.loads(double.stdout),
        )
        raise SystemExit(done.returncode)
    context = Context(kit=kit, work=out, out=out, smoke=smoke, dry=dry_run)
    for name in steps.split(","):
        start = time.perf_counter()
        for row in KERNEL_STEPS[name](context):
            append_row(out / "kernels.jsonl", {"step": name} | row)
        click.echo(f"{name}: {time.perf_counter() - start:.1f} s", err=True)


if __name__ == "__main__":
    main()
