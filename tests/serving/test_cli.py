"""`amlr-serve` as a process: starts, serves, stops with exit code 0, says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from amlr.serving import cli
from amlr.serving.cli import serve_command
from amlr.serving.settings import ServerSettings

RUN = [sys.executable, "-c", "from amlr.serving.cli import main; main()"]
OPTIONS = ("--provider", "onnxruntime", "--precision", "exact", "--answer-cache", "5")


def test_serves_and_stops(tiny_plan: Path, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*RUN, "--engine", str(tiny_plan), "--uds", str(socket), *OPTIONS],
            stderr=stderr,
            env={**os.environ, "AMLR_API_KEYS": "k"},
        )
    try:
        wait_for(lambda: "running on" in log.read_text(), process)
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=transport, base_url="http://server", timeout=20) as client:
            wait_for(lambda: client.get("/v2/health/ready").status_code == 200, process)
            answer = client.post("/v1/tag", json={"text": "Paris"}, headers={"X-API-Key": "k"})
            assert answer.status_code == 200
            assert client.post("/v1/tag", json={"text": "Paris"}).status_code == 401
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert {"engine loaded", "measured", "request"} <= {line["message"] for line in lines}


def wait_for(test: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while not test():
        assert process.poll() is None, "the server ended while starting"
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_stopping_while_warming_up_is_no_error(
    tiny_plan: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    log = tmp_path / "log"
    # So many posts in a batch that warming up lasts.
    slow = ("--batch-posts", "20000", "--batch-tokens", "1000000", "--workers", "1")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*RUN, "--engine", str(tiny_plan), "--port", "0", *OPTIONS, *slow], stderr=stderr
        )
    try:
        wait_for(lambda: "running on" in log.read_text(), process)
        process.send_signal(sign)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "measured" not in {line["message"] for line in lines}
    assert {line["level"] for line in lines} == {"info"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "nowhere.plan"], "nowhere.plan"),
        (["--api-key-file", "no-keys"], "cannot read the key file"),
        (["--api-key-file", "{latin}"], "not UTF-8"),
        (["--api-key-file", "{utf16}"], "not UTF-8"),
        (["--api-key-file", "{blank}"], "holds no key"),
        (["--api-key-file", "{folder}"], "cannot read the key file"),
        (["--queue-posts", "0"], "must be above 0"),
        (["--queue-mb", "0"], "must be above 0"),
        (["--uds", "{folder}/no/s"], "no socket can be made here"),
        (["--uds", "{folder}/" + "s" * 200], "no socket can be made here"),
        (["--uds", "{folder}"], "is no socket"),
        (["--uds", "{latin}"], "is no socket"),
        (["--host", "no-such-host.invalid"], "--host"),
        (["--host", "x" * 500], "--host"),
        (["--cors-origin", "example.org"], "no origin"),
        (["--root-path", "ner"], "--root-path"),
        (["--root-path", "/ner/"], "--root-path"),
    ],
)
def test_expected_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {"latin": b"cl\xe9\n", "utf16": "key\n".encode("utf-16"), "blank": b"\xef\xbb\xbf\n \n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    places = {name: str(tmp_path / name) for name in files} | {"folder": str(tmp_path)}
    result = CliRunner().invoke(
        serve_command, ["--engine", "x", *(a.format(**places) for a in arguments)]
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for name, content in files.items():
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300", "x"])
@pytest.mark.parametrize(
    "option",
    ["--queue-mb", "--max-body-mb", "--image-cache-mb", "--wait-ms", "--drain-s", "--shutdown-s"],
)
def test_odd_numbers_are_refused_by_name(option: str, value: str) -> None:
    result = CliRunner().invoke(serve_command, ["--engine", "x", option, value])
    assert result.exit_code == 2
    assert option in result.stderr
    assert "Traceback" not in result.stderr


def test_key_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r\n")
    assert cli._keys(path) == ("one", "two")


@pytest.mark.parametrize(
    ("host", "uds", "is_public"),
    [
        ("127.0.0.1", None, False),
        ("127.1.2.3", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("", None, True),
        ("10.0.0.5", None, True),
        ("server.example.org", None, True),
        ("0.0.0.0", Path("s"), False),
    ],
)
def test_a_public_address_without_a_key_is_warned_of(
    host: str, uds: Path | None, is_public: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place = {"host": host, "uds": uds}
    cli._warn_if_open(ServerSettings(api_keys=("k",)), place)
    assert not caplog.records
    cli._warn_if_open(ServerSettings(), place)
    assert len(caplog.records) == is_public


def test_keys_that_are_set_but_empty_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AMLR_API_KEYS", " ,")
    assert cli._keys(None) == ()
    cli._warn_if_open(ServerSettings(), {"host": "127.0.0.1", "uds": None})
    (record,) = caplog.records
    assert "AMLR_API_KEYS" in record.getMessage()


def test_help_has_examples() -> None:
    text = CliRunner().invoke(serve_command, ["--help"]).output
    assert "amlr-serve --engine amlr.plan" in text
    for option in ("--precision escalate", "--image-mode [always|when-needed]", "--answer-cache"):
        assert option in text
