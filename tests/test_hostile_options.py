"""Hostile values of every option of every command: one line, exit code 0, 1 or 2, no traceback.

Inputs that are needed are missing here, so that nothing is computed; what full disks, unwritable
folders and encodings do to the work itself is tested below.
"""

import builtins
import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import amlr.cli
import hostile
from amlr.benchmarks.cli import bench_command
from amlr.cli_support import AmlrCommand
from amlr.export.cli import export_command
from amlr.runtime.cli import tag_command
from amlr.serving.archive.cli import tag_command as archive_command
from amlr.serving.server import Server
from amlr.training.cli import train_command
from amlr.training.sample import write_sample
from corpora import write_encoders


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> hostile.Places:
    return hostile.Places(folder=tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A device read as a file never ends; memory must, before the machine's does."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 400_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", sorted(hostile.all_commands()))
def test_every_option_with_every_hostile_value(
    name: str, places: hostile.Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(Server, "run", lambda self: None)
    command = hostile.all_commands()[name]
    counts = hostile.Counts()
    hostile.drive(name, command, hostile.missing_inputs(name, command), places, counts)
    assert counts.faults == []
    assert counts.values > counts.options


def test_tagging_takes_every_hostile_value_to_its_end(
    tiny_plan: Path, places: hostile.Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, counts = "amlr.serving.archive.cli", hostile.Counts()
    base = ["--engine", str(tiny_plan), "--text", "Paris", "--check", "off"]
    base += ["--provider", "onnxruntime-cpu"]
    hostile.drive(name, hostile.all_commands()[name], base, places, counts)
    assert counts.faults == []
    assert counts.codes[0] > 50


@pytest.mark.parametrize("words", [["nonsense"], ["tag", "--nonsense"], ["--nonsense"]])
def test_the_group_is_as_terse(words: list[str]) -> None:
    result = CliRunner().invoke(amlr.cli.main, words)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "nonsense" in result.stderr


def test_the_group_alone_shows_its_help() -> None:
    assert "Commands:" in CliRunner().invoke(amlr.cli.main, []).output


def assert_one_line(done: Any, *parts: str) -> None:
    """Of a `CompletedProcess` or a click `Result`."""
    code = done.returncode if isinstance(done, subprocess.CompletedProcess) else done.exit_code
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert code == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in lines if line.startswith("Error: ")] == lines[-1:], done.stderr
    for part in parts:
        assert part in lines[-1]


def invoke(command: click.Command, *arguments: Any) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@contextmanager
def small_files() -> Iterator[None]:
    """Every file ends at 100 kB: as a full disk, for whatever library writes it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_while_exporting_is_one_line(tiny_pt: Path, tmp_path: Path) -> None:
    with small_files():
        done = invoke(export_command, "--ckpt", tiny_pt, "--out", tmp_path / "a.plan", "--quiet")
    assert_one_line(done)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_training_is_one_line(tmp_path: Path) -> None:
    text, image = write_encoders(tmp_path / "encoders")
    data = write_sample(tmp_path / "data", train=4, dev=2)
    out = tmp_path / "out"
    arguments = ["--data", data, "--text-encoder", text, "--image-encoder", image, "--heads", 2]
    arguments += ["--epochs", 1, "--device", "cpu", "--cache-dir", tmp_path, "--out"]
    with small_files():
        done = invoke(train_command, *arguments, out / "best.pt")
    assert_one_line(done, str(out / "best"))
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that answers as a read-only file system; root may write despite any permission."""
    folder = tmp_path / "read-only"
    folder.mkdir()

    def refuse(place: Any) -> None:
        if isinstance(place, str | os.PathLike) and Path(place).is_relative_to(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))

    def refusing(call: Any, changes: Callable[[Any], bool]) -> Any:
        def instead(place: Any, how: Any = None, *more: Any, **named: Any) -> Any:
            if changes(how):
                refuse(place)
            return call(place, *(() if how is None else (how,)), *more, **named)

        return instead

    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    opening = refusing(open, lambda mode: bool(mode) and not set("wax+").isdisjoint(mode))
    monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, lambda _: True))
    monkeypatch.setattr(os, "open", refusing(os.open, lambda flags: bool((flags or 0) & writing)))
    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(io, "open", opening)
    return folder


def test_a_read_only_file_system_is_one_line(
    tiny_plan: Path, tiny_pt: Path, tmp_path: Path, read_only: Path
) -> None:
    text, image = write_encoders(tmp_path / "encoders")
    data = write_sample(tmp_path / "data", train=4, dev=2)
    (tmp_path / "posts.jsonl").write_text('{"text": "Paris"}')
    train = ["--data", data, "--text-encoder", text, "--image-encoder", image, "--heads", 2]
    bench = ["--engine", tiny_plan, "--limit", 1, "--parity-only"]
    archive = ["--engine", tiny_plan, "--input", tmp_path / "posts.jsonl"]
    for command, words in (
        (export_command, ["--ckpt", tiny_pt, "--out", read_only / "a.plan"]),
        (export_command, ["--from", tiny_plan, "--out", read_only / "below" / "a.plan"]),
        (export_command, ["--from", tiny_plan, "--triton", read_only / "triton"]),
        (train_command, [*train, "--device", "cpu", "--out", read_only / "a" / "best.pt"]),
        (archive_command, [*archive, "--output", read_only / "out"]),
        (bench_command, [*bench, "--json", read_only / "a.json"]),
        (bench_command, [*bench, "--html", read_only / "below" / "a.html"]),
    ):
        done = invoke(command, *words)
        assert_one_line(done, str(read_only), "Read-only file system", "choose")
        assert "parity" not in done.stderr  # refused before the work
    assert list(read_only.iterdir()) == []


def test_a_full_disk_behind_stdout_is_one_line(tiny_plan: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code = "from amlr.runtime.cli import inspect_command as c; c()"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_plan)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert_one_line(done, "No space left on device")


@pytest.mark.parametrize("form", ["--json", "--pretty"])
def test_the_terminals_encoding_ends_no_run(tiny_plan: Path, form: str) -> None:
    text = "Zażółć in Paris \N{PARTY POPPER}"
    done = subprocess.run(
        [sys.executable, "-c", "from amlr.runtime.cli import tag_command as c; c()",
         "--engine", str(tiny_plan), "--provider", "onnxruntime", form],
        input=f'{{"id": "ż", "text": "{text}"}}'.encode(),
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if form == "--json":
        assert '"id": "ż"' in done.stdout.decode("utf-8")
    else:
        assert "in Paris" in done.stdout.decode("cp1252")


def test_an_unwritable_cache_folder_is_named(tiny_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("")
    done = invoke(tag_command, "--engine", tiny_plan, "--text", "Paris", "--provider", "openvino",
                  "--cache-dir", tmp_path / "file" / "below")  # fmt: skip
    assert_one_line(done, "--cache-dir", str(tmp_path / "file"))


def test_no_home_folder_is_one_line_and_the_cache_folder_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("AMLR_CACHE", raising=False)
    words = ["--data", tmp_path / "no", "--out", tmp_path / "best.pt", "--wheels", tmp_path]
    assert_one_line(invoke(train_command, *words), "AMLR_CACHE", "--cache-dir")
    local = ["--text-encoder", "a", "--image-encoder", "b"]
    assert_one_line(invoke(train_command, *words, *local), "has none of")
    monkeypatch.setenv("AMLR_CACHE", str(tmp_path / "cache"))
    assert_one_line(invoke(train_command, *words), "pip download")


def test_numbers_that_nothing_can_mean_are_refused_whatever_the_option() -> None:
    @click.command(cls=AmlrCommand)
    @click.option("--share", type=float)
    @click.option("--count", type=int)
    def command(share: float, count: int) -> None:
        raise AssertionError

    for word in ("--share=nan", "--share=inf", "--share=-inf", "--count=99999999999999"):
        result = CliRunner().invoke(command, [word])
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert word.partition("=")[0] in result.stderr
