import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from amlr.runtime.results import Post
from amlr.serving.costs import CostModel
from amlr.serving.jobs import Answer, Job, RefusedError, WorkerFailedError
from amlr.serving.queue import JobQueue
from amlr.serving.settings import BatchSettings, QueueSettings
from amlr.serving.workers import BatchReport, WorkerPool
from fake_engine import FakeEngine, expected_entities


class Rig:
    """A pool around a fake engine."""

    def __init__(self, engine: FakeEngine, *, workers: int = 1, stuck_s: float = 60.0) -> None:
        self.engine = engine
        self.queue = JobQueue(QueueSettings(), BatchSettings(max_posts=4))
        self.reports: list[BatchReport] = []
        self.replaced = 0
        self.pool = WorkerPool(
            engine,
            self.queue,
            CostModel(),
            workers=workers,
            stuck_s=stuck_s,
            report=self.reports.append,
            replaced=self._count,
            check_every_s=0.02,
        )

    def _count(self) -> None:
        self.replaced += 1

    def put(self, *texts: str, deadline: float = float("inf")) -> "list[Future[Answer]]":
        jobs = [
            Job(post=Post(t), tokens=5, size_bytes=1, cost_s=0.001, deadline=deadline)
            for t in texts
        ]
        self.queue.put(jobs)
        return [job.future for job in jobs]

    def stop(self) -> bool:
        self.queue.close()
        return self.pool.stop(5.0)


def wait(test: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not test():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_every_post_gets_its_own_answer() -> None:
    rig = Rig(FakeEngine(0.001), workers=3)
    rig.pool.start()
    texts = [f"name{i} was here" for i in range(200)]
    futures = [future for text in texts for future in rig.put(text)]
    for text, future in zip(texts, futures, strict=True):
        answer = future.result(10)
        assert answer.result.entities == expected_entities(text)
        assert answer.wait_s >= 0
    assert rig.stop()
    assert sum(len(report.jobs) for report in rig.reports) == 200
    assert all(1 <= len(report.jobs) <= 4 for report in rig.reports)


def test_a_poisoned_post_fails_alone() -> None:
    def trouble(posts: Sequence[Post]) -> None:
        if any(post.text == "poison" for post in posts):
            raise ValueError("secret detail")

    rig = Rig(FakeEngine(trouble=trouble))
    futures = rig.put("a", "poison", "b")
    rig.pool.start()
    assert futures[0].result(10).result.entities == expected_entities("a")
    assert futures[2].result(10).result.entities == expected_entities("b")
    with pytest.raises(WorkerFailedError) as failed:
        futures[1].result(10)
    assert "secret" not in str(failed.value)
    assert not rig.reports[-1].failed  # the post's fault, not the engine's
    assert rig.stop()


def test_a_broken_engine_is_reported() -> None:
    def trouble(posts: Sequence[Post]) -> None:
        raise RuntimeError("broken")

    rig = Rig(FakeEngine(trouble=trouble))
    futures = rig.put("a", "b", "c", "d")
    rig.pool.start()
    assert all(isinstance(f.exception(10), WorkerFailedError) for f in futures)
    assert rig.reports[-1].failed
    # Not every post of a broken engine is tried: a whole batch, and two alone.
    assert len(rig.engine.batches) == 3
    assert rig.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_is_replaced_and_its_posts_are_answered() -> None:
    class Killed(BaseException):
        pass

    def trouble(posts: Sequence[Post]) -> None:
        if posts[0].text == "kill":
            raise Killed

    rig = Rig(FakeEngine(trouble=trouble))
    (victim,) = rig.put("kill")
    rig.pool.start()
    assert isinstance(victim.exception(10), WorkerFailedError)
    (after,) = rig.put("after")
    assert after.result(10).result.entities == expected_entities("after")
    wait(lambda: rig.replaced == 1)
    assert rig.pool.alive == 1
    assert rig.stop()


def test_a_worker_that_hangs_is_replaced() -> None:
    release = threading.Event()

    def trouble(posts: Sequence[Post]) -> None:
        if posts[0].text == "hang":
            release.wait(20)

    rig = Rig(FakeEngine(trouble=trouble), stuck_s=0.1)
    (victim,) = rig.put("hang")
    rig.pool.start()
    assert isinstance(victim.exception(10), WorkerFailedError)
    (after,) = rig.put("after")
    assert after.result(10).result.entities == expected_entities("after")
    release.set()  # its late answer must harm nobody
    assert rig.stop()


def test_cancelled_and_expired_posts_are_not_computed() -> None:
    rig = Rig(FakeEngine())
    (cancelled,) = rig.put("cancelled")
    (late,) = rig.put("late", deadline=time.monotonic() - 1)
    (good,) = rig.put("good")
    cancelled.cancel()
    rig.pool.start()
    assert good.result(10).result.entities == expected_entities("good")
    error = late.exception(10)
    assert isinstance(error, RefusedError)
    assert error.cause == "expired"
    assert rig.engine.batches == [["good"]]
    assert rig.stop()


def test_stopping_answers_everything() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    rig = Rig(engine)
    futures = rig.put("a", "b")
    rig.pool.start()
    wait(lambda: rig.pool.in_flight > 0)
    waiting = rig.put("c")
    rig.queue.close()
    assert not rig.pool.stop(0.05)
    for future in (*futures, *waiting):
        assert isinstance(future.exception(1), WorkerFailedError)
    engine.gate.set()


def test_wrong_number_of_results_is_a_failure() -> None:
    class Short(FakeEngine):
        def tag_batch(self, posts: Sequence[Post]) -> list[object]:  # type: ignore[override]
            return []

    rig = Rig(Short())
    (future,) = rig.put("a")
    rig.pool.start()
    assert isinstance(future.exception(10), WorkerFailedError)
    assert rig.stop()
