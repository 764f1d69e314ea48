"""Prometheus metrics, in their own registry: several servers may live in one process."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from amlr.runtime.results import Result
from amlr.serving.workers import BatchReport

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POSTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics of one server; names are documented in `docs/reference/metrics.md`."""

    def __init__(self) -> None:
        """Register everything."""
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        seconds = partial(histogram, buckets=_SECONDS)
        self.requests = counter("amlr_requests", "HTTP requests.", ["route", "method", "status"])
        head = "Time from a request's head to the end of its answer."
        self.request_s = seconds("amlr_request_duration_seconds", head, ["route"])
        self.posts = counter("amlr_posts", "Posts by outcome.", ["outcome"])
        self.pictures = counter("amlr_pictures", "Posts by use of a picture.", ["use"])
        self.entities = counter("amlr_entities", "Entities found.", ["label"])
        self.refusals = counter("amlr_refusals", "Requests refused, by cause.", ["cause"])
        self.batch_posts = histogram("amlr_batch_posts", "Posts in a batch.", buckets=_POSTS)
        self.wait_s = seconds("amlr_queue_wait_seconds", "Time a post waited for its batch.")
        self.compute_s = seconds("amlr_compute_seconds", "Time the engine took for a batch.")
        self.tokens = counter("amlr_tokens", "Estimated tokens computed.")
        self.padding = counter(
            "amlr_padding_tokens",
            "Tokens that padding every batch to its longest post would add (packed engines "
            "compute none of them).",
        )
        self.cancelled = counter("amlr_cancelled_posts", "Posts dropped: the client left.")
        self.replaced = counter("amlr_worker_replacements", "Workers that failed.")
        self.failures = counter("amlr_batch_failures", "Batches on which the engine broke.")
        self.ready = Gauge("amlr_ready", "1 while the server is ready.", registry=self.registry)
        tier = ["model", "provider", "precision", "version"]
        self.engine = Gauge("amlr_engine_info", "Tier in use.", tier, registry=self.registry)
        for cause in ("queue_full", "bytes_full", "deadline", "expired", "stopping"):
            self.refusals.labels(cause)

    def batch(self, report: BatchReport) -> None:
        """Count one batch."""
        if report.expired:
            self.refusals.labels("expired").inc(report.expired)
        if report.failed:
            self.failures.inc()
        if not report.jobs:
            return
        self.batch_posts.observe(len(report.jobs))
        self.compute_s.observe(report.compute_s)
        for job in report.jobs:
            self.wait_s.observe(report.started - job.submitted)
        tokens = [job.tokens for job in report.jobs]
        self.tokens.inc(sum(tokens))
        self.padding.inc(max(tokens) * len(tokens) - sum(tokens))

    def result(self, result: Result, *, had_image: bool) -> None:
        """Count one post that was answered."""
        self.posts.labels("ok" if result.error is None else result.error["code"]).inc()
        use = "none" if not had_image else "used" if result.image_used else "unusable"
        self.pictures.labels(use).inc()
        for entity in result.entities:
            self.entities.labels(entity.label).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge read on demand."""
    return GaugeMetricFamily(name, text, value=value)


def cache_metrics(stats: Any) -> Iterator[Metric]:
    """Counters of the engine's picture cache (`amlr.runtime` CacheStats)."""
    yield CounterMetricFamily("amlr_image_cache_hits", "Pictures found encoded.", stats.hits)
    yield CounterMetricFamily("amlr_image_cache_misses", "Pictures encoded anew.", stats.misses)
    yield CounterMetricFamily("amlr_image_cache_evictions", "Pictures dropped.", stats.evictions)
    yield gauge("amlr_image_cache_bytes", "Size of the picture cache.", stats.bytes)
    yield gauge("amlr_image_cache_entries", "Pictures in the cache.", stats.entries)


def certificate_metrics(stats: Any) -> Iterator[Metric]:
    """Counters of certified answers (`amlr.runtime` CertifiedStats)."""
    posts = CounterMetricFamily("amlr_certified_posts", "Posts by stage.", labels=["stage"])
    for stage in ("low", "picture", "exact"):
        posts.add_metric([stage], getattr(stats, stage))
    yield posts
    checks = {
        "checked": "Certified answers computed again in float32.",
        "changed": "Of these, answers whose entities differed.",
        "beyond": "Of these, posts with an error beyond its radius.",
    }
    for name, text in checks.items():
        yield CounterMetricFamily(f"amlr_sentinel_{name}", text, getattr(stats, name))
    yield gauge("amlr_low_tier_in_service", "1 while it answers.", float(stats.in_service))
