"""Steps of a GPU run that concern our CUDA kernels: exact replay, tests, sanitizers, times.

What cannot run leaves a row with `not_run`, the reason. `write_kernel_kit` fills `<kit>/kernels`
beforehand, on a machine with a C++ compiler and NVRTC. In a dry run every step runs its code on the
driver double of the tests; its rows say `dry_run` and their times mean nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.benchmarks.gpu.kernel_times import kernel_times
from amlr.benchmarks.gpu.run import RESULTS, Row, read_rows, step_command
from amlr.errors import AmlrError, BackendUnavailableError
from amlr.kernels.images import KernelSpec, compile_image

Rows = list[Row]
ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
_ARCHITECTURE = "sm_90"
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# A sanitizer that reports nothing is believed only if it reports this damage.
_PLANTED = {"memcheck": "--plant-short", "initcheck": "--plant-unwritten"}


def write_kernel_kit(kit: Path) -> None:
    """Fill `<kit>/kernels`: recorded launches, the replay program's source, cubins for SM 9.0.

    Raises:
        AmlrError: The recording failed; the message ends with why.
    """
    command = [sys.executable, "-m", "shims.kernel_kit", str(kit / "kernels")]
    _make("the kernel kit could not be written", command)


def _make(failure: str, command: Sequence[str]) -> str:
    """What a command prints that makes files.

    Raises:
        AmlrError: It failed; says what it is for, and ends with why.
    """
    environment = os.environ | {"PYTHONPATH": _python_path()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise AmlrError(f"{failure}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _step(function: Callable[[Context], Rows]) -> Callable[[Context], Iterator[Row]]:
    """Rows of a kernel step, each marked as failed or as of a dry run where it is.

    Raises:
        NotRunError: The kit has no kernels, or the driver double failed.
    """
    name = function.__name__

    @wraps(function)
    def step(context: Context) -> Iterator[Row]:
        if not (context.kit / "kernels").is_dir():
            raise NotRunError("the kit has no part 'kernels'")
        if context.dry and not _is_dry():
            yield from _on_double(context, name)
            return
        for row in function(context):
            is_bad = any(row.get(key) is False for key in ("equal", "noticed"))
            is_reported = row.get("clean") is False and "planted" not in row
            if "not_run" not in row and (is_bad or is_reported):
                row |= {"failed": f"kernel {name}: see the rows"}
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
    """The tests marked gpu of `tests/kernels`, on the device: what pytest prints."""
    folder = ROOT / "tests" / "kernels"
    if not folder.is_dir():
        return [{"not_run": f"{folder} is not here; run from a checkout"}]
    # The sanitizers have a step of their own; plugins of the machine's image are not ours.
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=3"),
        *("-m", "gpu", "-k", "not compute_sanitizer"),
        *("-o", "filterwarnings=default", "-p", "no:cacheprovider"),
        str(folder / "test_device.py" if context.smoke else folder),
    ]
    environment = {
        "PYTHONPATH": _python_path(),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "AMLR_REQUIRE": "gpu",
    }
    row = _run(command, seconds=150, environment=environment)
    return [row | {"equal": row["exit_code"] == 0}]


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


def _on_double(context: Context, name: str) -> Rows:
    """The step on the driver double, in a process of its own: the loader reads its path once."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "shims.kernel_kit", "--double", folder]
        try:
            double = json.loads(_make("no driver double", build))
        except AmlrError as error:
            raise NotRunError(str(error)[-300:]) from error
        inner = replace(context, out=Path(folder), smoke=True)
        subprocess.run(
            step_command(name, f"{__name__}:{name}", inner),
            check=False,
            env=os.environ | {"PYTHONPATH": _python_path()} | double,
        )
        rows = read_rows(Path(folder) / RESULTS)
    if not rows or rows[-1].get("status") == "not run":
        raise NotRunError("the step did not run on the driver double; see log.txt")
    hidden = ("step", "kind")
    return [{key: row[key] for key in row if key not in hidden} for row in rows[:-1]]


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
    _make("the replay program could not be built", command)
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
            name = f"{spec.function(spec.source)}.cubin"
            (folder / name).write_bytes(compile_image(spec, _ARCHITECTURE))
        return folder
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BackendUnavailableError("nvcc is not on the path")
    running = []
    for spec in specs:
        macros = [f"-D{name}={value}" for name, value in spec.macros.items()]
        target = folder / f"{spec.function(spec.source)}.cubin"
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
