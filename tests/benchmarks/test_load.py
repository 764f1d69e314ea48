"""Load generation against servers of this process."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.benchmarks.harness.timing import run_threads
from amlr.benchmarks.load import __main__ as load_module
from amlr.benchmarks.load.client import Reply, open_loop, request_bytes
from amlr.benchmarks.process import memory_mib, own_peak_mib, thread_variables
from amlr.runtime import Post


@contextlib.asynccontextmanager
async def listening(name: bytes) -> AsyncIterator[int]:
    """A server that answers every request with its name."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name) + name)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("most_open", [1, 100])
def test_requests_go_out_at_their_times_to_their_servers(most_open: int) -> None:
    replies: list[Reply] = []
    at_s = [0.0, 0.0, 0.05, 0.1, 0.1]
    place = [0, 1, 1, 0, 1]
    requests = [request_bytes(Post(text)) for text in ("a", "b", "c", "d", "e")]

    async def run() -> float:
        async with listening(b"one") as first, listening(b"two") as second:
            seconds = await open_loop(
                [first, second], requests, at_s=at_s, take=replies.append, server=place,
                most_open=most_open,
            )  # fmt: skip
            await asyncio.sleep(0.05)  # both sides close their connections
            return seconds

    seconds = asyncio.run(run())
    assert seconds >= at_s[-1]
    assert sorted(reply.index for reply in replies) == [0, 1, 2, 3, 4]
    for reply in replies:
        assert reply.status == 200
        assert reply.body == (b"one", b"two")[place[reply.index]]
        assert reply.at >= at_s[reply.index]


def test_a_server_above_its_capacity(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_WARM_S", 0.3)
    posts, out = tmp_path / "posts.jsonl", tmp_path / "load.json"
    posts.write_text("".join(json.dumps({"text": f"Jordan {i} in Paris"}) + "\n" for i in range(8)))
    options = ["--engine", tiny_plan, "--posts", posts, "--images", tmp_path, "--json", out]
    tier = ["--provider", "onnxruntime", "--precision", "fp32", "--workers", "1"]
    result = CliRunner().invoke(
        load_module.load_command,
        [*map(str, options), *tier, "--clients", "4", "--seconds", "1", "--overload", "1.5"],
    )
    assert result.exit_code == 0, result.output
    sustained, above = json.loads(out.read_text())["rows"].values()
    assert set(sustained["statuses"]) == {"200"}
    assert set(above["statuses"]) <= {"200", "429"}
    assert above["requests"] == pytest.approx(above["offered_per_s"], abs=1)
    assert sustained["wrong_answers"] == above["wrong_answers"] == 0
    assert above["posts_per_s"] > 0
    assert above["rss_mib"]["after"] > 0


def test_threads_share_the_calls_and_stop_at_an_error() -> None:
    numbers: list[int] = []

    def call(number: int) -> int:
        numbers.append(number)
        time.sleep(0.001)
        return 2

    posts, seconds = run_threads(call, 3, 0.05)
    assert posts == 2 * len(numbers)
    assert sorted(numbers) == list(range(len(numbers)))
    assert seconds >= 0.05

    def broken(number: int) -> int:
        raise OSError(f"call {number}")

    with pytest.raises(OSError, match="call"):
        run_threads(broken, 2, 60.0)


def test_memory_is_in_mib() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert memory_mib() == pytest.approx(mib, rel=0.05)
    assert own_peak_mib() >= 0.95 * mib
    assert memory_mib(2**22 + 1) == 0.0
    assert set(thread_variables(3).values()) == {"3"}
