"""A lean HTTP client for load: on a small machine the client shares the server's cores."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from amlr.benchmarks.harness.stats import percentiles_ms
from amlr.runtime import Post

Triples = list[tuple[int, int, str]]
"""Entities of one answer: start, end, label."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        index: Which of the requests was sent.
        status: HTTP status; 0 where the connection broke or nothing listened.
        seconds: From the first byte sent to the last one read.
        body: The answer's body.
        at: When it was sent, seconds since the start.
    """

    index: int
    status: int
    seconds: float
    body: bytes
    at: float


@dataclass(slots=True)
class Tally:
    """Answers checked as they come, so that a long run keeps no bodies.

    Attributes:
        expected: Entities of each post.
        statuses: Number of answers by status.
        seconds: Latencies of the 200s.
        wrong: Answers that are not the expected ones.
    """

    expected: Sequence[Triples]
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0

    def add(self, reply: Reply) -> None:
        """Count one answer."""
        self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
        if reply.status != 200:
            return
        self.seconds.append(reply.seconds)
        entities = json.loads(reply.body)["entities"]
        triples = [(e["start"], e["end"], e["label"]) for e in entities]
        self.wrong += triples != self.expected[reply.index]

    def to_dict(self, duration_s: float) -> dict[str, Any]:
        """Figures for a report."""
        return {
            "requests": sum(self.statuses.values()),
            "statuses": {str(k): v for k, v in sorted(self.statuses.items())},
            "wrong_answers": self.wrong,
            "posts_per_s": round(len(self.seconds) / duration_s, 2),
            **percentiles_ms(self.seconds),
        }


def request_bytes(post: Post, deadline_ms: int | None = None) -> bytes:
    """A whole HTTP request for one post."""
    value: dict[str, Any] = {"text": post.text}
    if isinstance(post.image, bytes):
        value["image"] = base64.b64encode(post.image).decode()
    if deadline_ms is not None:
        value["deadline_ms"] = deadline_ms
    body = json.dumps(value).encode()
    head = (
        "POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One kept-alive connection, opened again whenever it breaks."""

    def __init__(self, port: int) -> None:
        """Connect later, to this port of the loopback interface."""
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; the status is 0 where the connection broke or nothing listens."""
        # A server closes connections that were idle for long; that is no broken request.
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            await asyncio.sleep(0.05)  # nobody listens: asking faster helps nobody
            return 0, b""
        reader, writer = self._streams
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            if b"connection: close" in head:
                self.close()
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
            self.close()
            return 0, b""
        return status, body

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    take: Callable[[Reply], None],
) -> float:
    """Clients that each ask again as soon as they are answered.

    Returns:
        Seconds from the start to the last answer.
    """
    begun = time.perf_counter()
    turn = itertools.cycle(range(len(requests)))

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() - begun < seconds:
            index = next(turn)
            take(await _timed(connection, index, requests[index], begun))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - begun


async def open_loop(
    ports: Sequence[int],
    requests: Sequence[bytes],
    *,
    at_s: Iterable[float],
    take: Callable[[Reply], None],
    server: Sequence[int] | None = None,
    most_open: int = 2000,
) -> float:
    """Requests at certain times, whatever the answers do.

    Args:
        ports: Of the servers.
        requests: Sent in turn.
        at_s: When to send each request, ascending.
        take: Receives every answer.
        server: Which server gets each; the first one if not given.
        most_open: Above so many open requests the next ones wait.

    Returns:
        Seconds from the start to the last answer.
    """
    begun = time.perf_counter()
    idle: list[list[Connection]] = [[] for _ in ports]
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        place = 0 if server is None else server[number]
        connection = idle[place].pop() if idle[place] else Connection(ports[place])
        index = number % len(requests)
        take(await _timed(connection, index, requests[index], begun))
        idle[place].append(connection)

    for number, at in enumerate(at_s):
        while (pause := begun + at - time.perf_counter()) > 0 or len(tasks) >= most_open:
            await asyncio.sleep(max(pause, 0.002 if len(tasks) >= most_open else 0.0))
        task = asyncio.create_task(one(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for connection in itertools.chain(*idle):
        connection.close()
    return time.perf_counter() - begun


async def _timed(connection: Connection, index: int, request: bytes, begun: float) -> Reply:
    started = time.perf_counter()
    status, body = await connection.ask(request)
    return Reply(index, status, time.perf_counter() - started, body, started - begun)
