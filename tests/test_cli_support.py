"""What every command shares: errors as one line, exit codes, packages that are missing."""

import logging
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from amlr import cli_support
from amlr.cli_support import AmlrCommand, log_to_stderr, progress
from amlr.errors import InputError, ParityError
from amlr.extras import missing_extra


def run(error: Exception) -> tuple[int, str]:
    @click.command(cls=AmlrCommand)
    def command() -> None:
        raise error

    result = CliRunner().invoke(command, [])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such file; check the path"), 2, "Error: no such file; check the path\n"),
        (ParityError("2 entities changed"), 1, "Error: 2 entities changed\n"),
    ],
)
def test_expected_errors_are_one_line(error: Exception, code: int, message: str) -> None:
    assert run(error) == (code, message)


def test_missing_package_names_its_extra() -> None:
    code, message = run(ModuleNotFoundError("No module named 'onnx'", name="onnx.helper"))
    assert code == 2
    assert 'pip install "amlr[export]"' in message


def test_a_package_that_refuses_is_not_called_absent() -> None:
    said = missing_extra("--ray", ImportError("pyarrow requires NumPy 2.0 or newer"), "ray")
    assert "(pyarrow requires NumPy 2.0 or newer)" in said
    assert "not installed" not in said
    assert 'pip install "amlr[ray]"' in said


def test_other_missing_modules_keep_their_traceback() -> None:
    @click.command(cls=AmlrCommand)
    def command() -> None:
        raise ModuleNotFoundError("No module named 'amlr.typo'", name="amlr.typo")

    assert isinstance(CliRunner().invoke(command, []).exception, ModuleNotFoundError)


@pytest.mark.parametrize(("is_quiet", "stderr"), [(False, "step 1\nwarning: odd\n"), (True, "")])
def test_log_lines_are_printed_while_the_command_runs(is_quiet: bool, stderr: str) -> None:
    log = logging.getLogger("amlr.test_log.inner")

    @click.command(cls=AmlrCommand)
    def command() -> None:
        with log_to_stderr("amlr.test_log", is_quiet=is_quiet):
            log.info("step 1")
            log.warning("odd")
            log.debug("detail")
        log.info("after")

    for _ in range(2):  # the handler is gone after the first call
        result = CliRunner().invoke(command, [])
        assert (result.stderr, result.stdout) == (stderr, "")


def test_progress_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A line every ten seconds; a work that ends on one says so once.
    for seconds, lines in ((10.0, ["1/2 (50 %)", "2/2 (100 %)"]), (4.0, [])):
        now = iter(range(100))
        clock = SimpleNamespace(monotonic=lambda now=now, seconds=seconds: seconds * next(now))
        monkeypatch.setattr(cli_support, "time", clock)
        assert list(progress("ab", "batches", 2)) == ["a", "b"]
        shown = capsys.readouterr().err.splitlines()
        assert [line.partition(",")[0] for line in shown] == [f"batches {line}" for line in lines]


def test_time_left_counts_this_run_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr("amlr.cli_support.time.monotonic", lambda: next(seconds))
    list(progress([200], "tagged", 1000, size=lambda rows: rows, before=400))
    assert capsys.readouterr().err.splitlines()[0] == ("tagged 600/1000 (60 %), 20.0/s, 20 s left")
