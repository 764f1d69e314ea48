import threading
import time

import pytest

from amlr.runtime.results import Post
from amlr.serving.jobs import Job, RefusedError
from amlr.serving.queue import JobQueue
from amlr.serving.settings import BatchSettings, QueueSettings


def job(text: str = "x", tokens: int = 10, size: int = 100) -> Job:
    return Job(post=Post(text), tokens=tokens, size_bytes=size, cost_s=0.5, deadline=float("inf"))


def queue(
    posts: int = 100,
    size: int = 10_000,
    batch: int = 4,
    tokens: int = 1000,
    wait_s: float = 0.005,
    workers: int = 1,
) -> JobQueue:
    return JobQueue(
        QueueSettings(max_posts=posts, max_bytes=size),
        BatchSettings(max_posts=batch, max_tokens=tokens, max_wait_s=wait_s, workers=workers),
    )


def take(jobs: JobQueue) -> list[str]:
    batch = jobs.take()
    assert batch is not None
    return [item.post.text for item in batch]


def test_oldest_first_with_batch_mates_of_similar_length() -> None:
    jobs = queue(batch=3)
    jobs.put([job(t, n) for t, n in (("a", 10), ("b", 90), ("c", 12), ("d", 95), ("e", 11))])
    assert take(jobs) == ["a", "c", "e"]
    assert take(jobs) == ["b", "d"]
    assert len(jobs) == 0
    assert jobs.size_bytes == 0
    assert jobs.cost_s == 0


def test_token_budget_bounds_a_batch_but_never_a_single_post() -> None:
    jobs = queue(tokens=25)
    jobs.put([job("a"), job("b"), job("c"), job("long", 99)])
    assert take(jobs) == ["a", "b"]
    assert take(jobs) == ["c"]
    assert take(jobs) == ["long"]


def test_several_workers_share_what_waits() -> None:
    jobs = queue(batch=16, workers=2)
    jobs.put([job(str(i)) for i in range(40)])
    sizes = []
    while len(jobs):
        sizes.append(len(take(jobs)))
    # A full batch while there is plenty, then halves of what waits, but no crumbs.
    assert sizes == [16, 12, 8, 4]


def test_bounds_take_all_or_nothing() -> None:
    jobs = queue(posts=3, size=250)
    jobs.put([job(), job()])
    with pytest.raises(RefusedError) as refused:
        jobs.put([job(size=1), job(size=1)])
    assert refused.value.cause == "queue_full"
    with pytest.raises(RefusedError) as refused:
        jobs.put([job()])
    assert refused.value.cause == "bytes_full"
    assert len(jobs) == 2


def test_bodies_being_received_count() -> None:
    jobs = queue(size=250)
    assert jobs.reserve(200)
    assert not jobs.reserve(100)
    with pytest.raises(RefusedError):
        jobs.put([job()])
    jobs.release(200)
    jobs.put([job()])
    assert jobs.size_bytes == 100


def test_cancelled_jobs_are_dropped() -> None:
    jobs = queue()
    items = [job(t) for t in "abc"]
    jobs.put(items)
    items[0].future.cancel()
    items[2].future.cancel()
    assert take(jobs) == ["b"]
    assert len(jobs) == 0


def test_closing_hands_out_the_rest_and_then_nothing() -> None:
    jobs = queue(batch=2)
    jobs.put([job(t) for t in "abc"])
    jobs.close()
    assert take(jobs) == ["a", "b"]
    assert take(jobs) == ["c"]
    assert jobs.take() is None
    with pytest.raises(RefusedError) as refused:
        jobs.put([job()])
    assert refused.value.cause == "stopping"


def test_a_post_alone_is_not_kept_waiting() -> None:
    jobs = queue(wait_s=30)
    jobs._gap_s = 60  # nobody else is likely to come
    jobs.put([job("a")])
    jobs._gap_s = 60
    assert take(jobs) == ["a"]


def test_batch_mates_that_come_in_time_share_the_batch() -> None:
    jobs = queue(batch=2, wait_s=20)
    jobs._gap_s = 0.0
    jobs.put([job("a")])
    later = threading.Timer(0.05, lambda: jobs.put([job("b")]))
    later.start()
    begun = time.monotonic()
    assert take(jobs) == ["a", "b"]
    assert time.monotonic() - begun < 20  # a full batch waits no longer
    later.join()


def test_waiting_is_bounded() -> None:
    jobs = queue(wait_s=0.01)
    jobs._gap_s = 0.0
    jobs.put([job("a")])
    jobs._gap_s = 0.0
    assert take(jobs) == ["a"]


def test_a_clock_of_its_own_drives_the_queue() -> None:
    """As a simulation does: nothing blocks, and time passes when it says so."""
    now = 100.0
    jobs = JobQueue(QueueSettings(), BatchSettings(max_posts=3, max_wait_s=0.5), lambda: now)

    def put(text: str) -> None:
        post = Post(text)
        job = Job(post=post, tokens=9, size_bytes=1, cost_s=1, deadline=200, submitted=now)
        jobs.put([job])

    assert jobs.wait_end() is None
    assert jobs.form() == []
    put("a")
    for _ in range(20):  # posts come often, so that waiting pays
        now += 0.1
        put("b")
        jobs.form()
    assert jobs.wait_end() is None
    put("c")
    assert jobs.wait_end() == now + 0.5
    now += 0.1
    put("d")
    assert jobs.wait_end() == pytest.approx(now + 0.4)
    put("e")
    assert jobs.wait_end() is None  # a full batch waits no longer
    assert [job.post.text for job in jobs.form()] == ["c", "d", "e"]
    jobs.close()
    assert jobs.take() is None
