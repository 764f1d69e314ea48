"""Generated requests: fuzzed bodies, and cases derived from the interface's own description."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from amlr.benchmarks.serving.fuzz import fuzz
from amlr.runtime import Engine
from amlr.serving.settings import RequestLimits, ServerSettings
from live_server import LiveServer
from requirements import require


# Starlette's form parser leaves the temporary file of a broken form to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_broken_body_is_answered_with_500(engine: Engine) -> None:
    with LiveServer(engine, ServerSettings(warm_up=False)) as server:
        seen = asyncio.run(fuzz(server.address[1], "tiny", 600, seed=1))
    assert sum(seen.values()) == 600
    assert set(seen) <= {"200", "400", "404", "413", "415", "422", "429", "stream"}


def test_answers_agree_with_the_description(engine: Engine) -> None:
    tool = Path(sys.executable).parent / "schemathesis"
    require("schemathesis", found=tool.exists(), reason="the package schemathesis")
    limits = RequestLimits(body_timeout_s=2.0)
    # What a schema cannot say: base64, spans within the text, JSON inside a form's field.
    excluded = "positive_data_acceptance"
    with LiveServer(engine, ServerSettings(warm_up=False, limits=limits)) as server:
        run = subprocess.run(
            [
                str(tool),
                "run",
                f"{server.url}/openapi.json",
                *("--max-examples", "4", "--seed", "1", "--request-timeout", "20"),
                *("--phases", "coverage,fuzzing", "--exclude-checks", excluded, "--no-color"),
                # It knows no serializer for JSON lines.
                *("--exclude-path", "/v1/tag/stream", "--generation-database", "none"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout[-5000:]
