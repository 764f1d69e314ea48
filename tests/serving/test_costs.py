import io

import pytest
from PIL import Image, UnidentifiedImageError

from amlr.errors import AmlrError
from amlr.runtime.results import Post
from amlr.serving.costs import CostModel, CostRow, CostTable, estimate_tokens
from amlr.serving.jobs import RefusedError
from amlr.serving.queue import Admission, JobQueue
from amlr.serving.settings import BatchSettings, QueueSettings
from amlr.serving.warmup import BUCKETS, measure, sample_text
from fake_engine import FakeEngine

TABLE = CostTable(
    rows=(
        CostRow(tokens=10, single_s=0.010, full_s=0.080),
        CostRow(tokens=100, single_s=0.100, full_s=0.800),
    ),
    image_s=0.05,
    batch_posts=8,
    workers=2,
)


def test_costs_lie_on_lines_between_the_measured_lengths() -> None:
    assert TABLE.batch_s([10], 0) == pytest.approx(0.010)
    assert TABLE.batch_s([55], 0) == pytest.approx(0.055)
    assert TABLE.batch_s([1], 0) == pytest.approx(0.010)
    assert TABLE.batch_s([200], 0) == pytest.approx(0.200)  # beyond: in proportion
    assert TABLE.post_s(10, has_image=False) == pytest.approx(0.080 / 16)
    assert TABLE.post_s(10, has_image=True) == pytest.approx(0.080 / 16 + 0.025)
    assert TABLE.batch_s([10] * 8, 0) == pytest.approx(0.080)
    assert TABLE.batch_s([10], 2) == pytest.approx(0.110)


def test_correction_follows_what_is_measured() -> None:
    costs = CostModel(TABLE)
    for _ in range(200):
        costs.observe([10] * 8, 0, 0.160)
    assert costs.correction == pytest.approx(2.0, rel=1e-3)
    assert costs.batch_s([10] * 8, 0) == pytest.approx(0.160, rel=1e-3)
    for i in range(200):
        costs.observe([10] * 8, 0, 0.120 if i % 2 else 0.200)
    assert costs.correction == pytest.approx(2.0, rel=0.05)
    assert costs.batch_s([10] * 8, 0) > 0.200  # an unsteady machine is trusted less
    costs.observe([10], 0, 1e9)  # one outlier moves it a bounded way
    assert costs.correction < 5


def admission(in_flight_s: float = 0.0, margin: float = 1.0) -> tuple[Admission, JobQueue]:
    settings = QueueSettings(deadline_s=1.0, margin=margin)
    queue = JobQueue(settings, BatchSettings())
    return Admission(settings, CostModel(TABLE), queue, lambda: in_flight_s), queue


def test_work_that_would_be_late_is_refused_before_it_is_begun() -> None:
    gate, queue = admission()
    post = Post(sample_text(10))
    accepted = 0
    with pytest.raises(RefusedError) as refused:
        for _ in range(1000):
            gate.admit([post], deadline_s=0.2001)
            accepted += 1
    # 10 ms alone on top of 5 ms for each post ahead.
    assert accepted == 39
    assert len(queue) == 39
    assert refused.value.cause == "deadline"
    assert refused.value.retry_after_s >= 0
    gate.admit([post], deadline_s=5.0)  # who has time may still come


def test_posts_under_way_count() -> None:
    gate, _ = admission(in_flight_s=0.5)
    with pytest.raises(RefusedError):
        gate.admit([Post("x")], deadline_s=0.4)
    gate.admit([Post("x")], deadline_s=0.6)


def test_reserved_bytes_are_not_counted_twice() -> None:
    gate, queue = admission()
    picture = b"x" * 50_000
    gate.admit([Post("x", picture)], reserved=70_000)
    assert queue.size_bytes == 0
    gate.admit([Post("x", picture)])
    assert queue.size_bytes > 50_000


def test_warm_up_measures_every_length() -> None:
    table = measure(FakeEngine(), workers=2, batch_posts=4, repeats=1)
    assert [row.tokens for row in table.rows] == list(BUCKETS)
    assert all(0 < row.single_s <= row.full_s for row in table.rows)
    assert (table.provider, table.workers, table.batch_posts) == ("fake", 2, 4)
    assert table.image_s > 0


def test_warm_up_meets_a_picture_that_is_none() -> None:
    pictures: list[object] = []
    engine = FakeEngine(trouble=lambda posts: pictures.extend(post.image for post in posts))
    measure(engine, workers=1, batch_posts=1, repeats=1)
    unreadable = []
    for content in pictures:
        try:
            Image.open(io.BytesIO(content)).load() if isinstance(content, bytes) else None
        except UnidentifiedImageError:
            unreadable.append(content)
    assert len(unreadable) == 1


def test_warm_up_can_be_given_up() -> None:
    with pytest.raises(AmlrError, match="stopped"):
        measure(FakeEngine(), workers=1, batch_posts=4, stop=lambda: True)


@pytest.mark.parametrize("tokens", BUCKETS)
def test_sample_texts_have_their_length(tokens: int) -> None:
    assert abs(estimate_tokens(sample_text(tokens)) - tokens) <= 1
