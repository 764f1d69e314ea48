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

from amlr.serving.cli import serve_command

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
    assert {"engine loaded", "measured", "request"} <= {line["message"] for line in lines}


def wait_for(test: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while not test():
        assert process.poll() is None, "the server ended while starting"
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "nowhere.plan"], "nowhere.plan"),
        (["--engine", "x", "--api-key-file", "no-keys"], "cannot read the key file"),
        (["--engine", "x", "--queue-posts", "0"], "must be above 0"),
    ],
)
def test_expected_errors_are_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(serve_command, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_help_has_examples() -> None:
    text = CliRunner().invoke(serve_command, ["--help"]).output
    assert "amlr-serve --engine amlr.plan" in text
    for option in ("--precision escalate", "--image-mode [always|when-needed]", "--answer-cache"):
        assert option in text
