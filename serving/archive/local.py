"""Worker processes on this machine; one that dies is replaced and its chunk begun anew."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from amlr.errors import AmlrError
from amlr.serving.archive.plan import Chunk
from amlr.serving.archive.tier import choose_in_process, settle_tier
from amlr.serving.archive.worker import ChunkWorker, Work

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_IDLE_DEATHS = 5


class _Process:
    """A worker as seen from the driver."""

    def __init__(self, work: Work) -> None:
        # A forked child must not use an engine library that its parent has loaded.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.chunk: Chunk | None = None

    def give(self, chunk: Chunk) -> None:
        """Hand over a chunk; one that died meanwhile is noticed by its closed pipe."""
        self.chunk = chunk
        with suppress(OSError):
            self.pipe.send(chunk)

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries read these when they are first loaded, which is too early for the child itself."""
    kept = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_local(work: Work, chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    """Reports of the chunks as they are finished, in any order.

    Raises:
        AmlrError: A worker cannot load the engine, or gives up on a chunk.
    """
    with _one_thread():
        work = replace(work, job=settle_tier(work.job, choose_in_process))
    waiting = deque(chunks)
    pool = [_Process(work) for _ in range(min(work.job.workers, len(chunks)))]
    idle_deaths = 0
    try:
        left = len(chunks)
        while left:
            ready = wait([worker.pipe for worker in pool])
            for worker in [worker for worker in pool if worker.pipe in ready]:
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    idle_deaths += worker.chunk is None
                    if idle_deaths > _IDLE_DEATHS:
                        raise AmlrError(
                            "workers die before they are ready; is memory short? "
                            "try fewer --workers, then --resume"
                        ) from None
                    if worker.chunk is not None:
                        waiting.appendleft(worker.chunk)
                    worker.stop()
                    pool.remove(worker)
                    pool.append(_Process(work))
                    continue
                if kind == "failed":
                    raise AmlrError(value)
                worker.chunk = None
                if waiting:
                    worker.give(waiting.popleft())
                if kind == "done":
                    left -= 1
                    yield value
    finally:
        for worker in pool:
            worker.stop()


def _serve(pipe: Connection, work: Work) -> None:
    """Main function of a worker process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        worker = ChunkWorker(work)
        pipe.send(("ready", None))
        while True:
            pipe.send(("done", worker.run(pipe.recv())))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        # The driver says it; a traceback here would only be said twice.
        text = str(error) if isinstance(error, AmlrError) else f"{type(error).__name__}: {error}"
        pipe.send(("failed", text))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
