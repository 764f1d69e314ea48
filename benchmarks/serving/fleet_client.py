"""Clients of a fleet: kept-alive connections, the policy of `amlr.serving.client`, all counted."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amlr.benchmarks.harness.stats import percentiles_ms
from amlr.benchmarks.serving.client import Connection, Triples, answer_triples
from amlr.serving.client import Retries
from amlr.serving.ray.proxy import TRIES_HEADER
from amlr.serving.ray.switch import MANIFEST_HEADER

# Broken, nobody there, refused, not ready.
_AGAIN = (0, 1, 429, 503)


@dataclass(slots=True)
class Record:
    """One request with all its tries.

    Attributes:
        at: When its first try was sent, seconds since the start.
        seconds: Until its answer, pauses between tries included.
        status: Of the last try; 0 where the connection broke, 1 where nothing listened.
        bundle: Which bundle answered.
        wrong: Whether the answer is not what that bundle says.
        tries: Outcome of each try that was followed by another.
        asked_again: Whether the proxy itself sent it to a second replica.
    """

    at: float
    seconds: float = 0.0
    status: int = 0
    bundle: str = ""
    wrong: bool = False
    tries: list[int] = field(default_factory=list)
    asked_again: bool = False


class RetryingClient:
    """Many clients, each asking again as soon as it is answered."""

    def __init__(
        self, port: int, requests: Sequence[bytes], expected: dict[str, list[Triples]]
    ) -> None:
        """Ask a port of the loopback interface.

        Args:
            port: Of the proxy.
            requests: Whole HTTP requests.
            expected: Entities of each post, by the short hash of the bundle.
        """
        self._port, self._requests, self._expected = port, requests, expected
        self._retries, self._random = Retries(), random.Random(0)
        self._begun = time.perf_counter()
        self._stopped = False
        self._turn = 0
        self.records: list[Record] = []

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begun

    def stop(self) -> None:
        """Finish what is under way and ask no more."""
        self._stopped = True

    async def load(self, clients: int) -> None:
        """Run until `stop`."""
        self._begun = time.perf_counter()
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self) -> None:
        connection = Connection(self._port)
        while not self._stopped:
            index = self._turn % len(self._requests)
            self._turn += 1
            self.records.append(await self._ask(connection, index))
        connection.close()

    async def _ask(self, connection: Connection, index: int) -> Record:
        record = Record(self.now())
        attempt = 0
        while True:
            record.status, head, body = await connection.exchange(self._requests[index])
            headers = _headers(head)
            attempt += 1
            if record.status not in _AGAIN or attempt == self._retries.attempts:
                break
            record.tries.append(record.status)
            asked = headers.get("retry-after")
            await asyncio.sleep(self._retries.pause_s(attempt - 1, asked, self._random))
        record.seconds = self.now() - record.at
        if record.status == 200:
            record.bundle = headers[MANIFEST_HEADER.lower()]
            record.asked_again = TRIES_HEADER.decode() in headers
            record.wrong = answer_triples(json.loads(body)) != self._expected[record.bundle][index]
        return record

    def phases(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Figures for the time from each event to the next; requests count where they began."""
        rows = []
        for event, following in itertools.pairwise(events):
            start, end = event["at_s"], following["at_s"]
            last = following is events[-1]
            chosen = [r for r in self.records if start <= r.at and (last or r.at < end)]
            answered = [r for r in chosen if r.status == 200]
            tries = Counter(status for r in chosen for status in r.tries)
            seconds = [r.seconds for r in answered]
            rows.append(
                {
                    "from": event["event"],
                    "seconds": round(end - start, 1),
                    "requests": len(chosen),
                    "failed": len(chosen) - len(answered),
                    "failures": dict(Counter(r.status for r in chosen if r.status != 200)),
                    "wrong_answers": sum(r.wrong for r in answered),
                    "by_bundle": dict(Counter(r.bundle for r in answered)),
                    "client_retries": {str(k or "broken"): v for k, v in tries.items()},
                    "asked_again_by_proxy": sum(r.asked_again for r in answered),
                    "posts_per_s": round(len(answered) / max(end - start, 1e-9), 1),
                    **percentiles_ms(seconds),
                    "max_ms": round(1000 * max(seconds, default=0.0), 1),
                }
            )
        return rows


def _headers(head: bytes) -> dict[str, str]:
    """Headers of an answer by lower-case name."""
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return {name: value.strip() for name, _, value in pairs}


def table(phases: Sequence[dict[str, Any]]) -> str:
    """The phases as a Markdown table."""
    names = (
        "from", "seconds", "requests", "failed", "wrong_answers", "client_retries",
        "asked_again_by_proxy", "by_bundle", "posts_per_s", "p50_ms", "p95_ms", "max_ms",
    )  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(str(phase[name]) for name in names) + " |" for phase in phases]
    return "\n".join(lines)
