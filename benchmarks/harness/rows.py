"""Rows of the report: one per system and baseline, the ratio from the same interleaved run."""

from collections.abc import Mapping, Sequence

from amlr.benchmarks.harness.stats import percentile
from amlr.benchmarks.harness.timing import Clock, Samples
from amlr.benchmarks.harness.worker import Job
from amlr.benchmarks.report.records import Row
from amlr.benchmarks.systems.base import PeerSpec
from amlr.benchmarks.systems.registry import BASELINE


def make_rows(
    job: Job,
    samples: Mapping[str, Samples],
    specs: Mapping[str, PeerSpec],
    threads: int,
    clock: Clock,
) -> list[Row]:
    """Rows of one workload.

    The engine gets one row per peer measured beside it, that peer as baseline: an OpenVINO baseline
    in the engine's own precision where there is one, in the nearest above it otherwise. A peer gets
    one row, against `research`.
    """
    times = {label: s.values_ms(clock) for label, s in samples.items() if s.wall_ns}
    medians = {label: percentile(values, 50) or 0.0 for label, values in times.items()}
    rows = []
    for label, values in times.items():
        spec, median = specs[label], medians[label]
        for baseline in _baselines(label, list(times), specs):
            other = specs[baseline] if baseline else None
            ratio = medians[baseline] / median if baseline and median > 0 else None
            rows.append(
                Row(
                    workload=job.name,
                    backend=spec.name,
                    precision=spec.precision,
                    threads=threads,
                    batch=job.batch,
                    p50_ms=_rounded(median, 4),
                    p95_ms=_rounded(percentile(values, 95), 4),
                    p99_ms=_rounded(percentile(values, 99), 4),
                    posts_per_s=_rounded(1000 * job.batch / median, 2) if median > 0 else None,
                    baseline=other.name if other else None,
                    baseline_precision=other.precision if other else None,
                    ratio=_rounded(ratio, 3),
                )
            )
    return rows


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _baselines(
    label: str, measured: Sequence[str], specs: Mapping[str, PeerSpec]
) -> Sequence[str | None]:
    research = next((other for other in measured if specs[other].name == BASELINE), None)
    if not specs[label].is_engine:
        return [research]
    precision = specs[label].precision
    by_name: dict[str, list[str]] = {}
    for other in measured:
        if not specs[other].is_engine:
            by_name.setdefault(specs[other].name, []).append(other)
    # Where a peer was measured in several precisions, the one that is fair wins.
    fair = [
        min(others, key=lambda other: _rank(specs[other].precision, precision))
        for others in by_name.values()
    ]
    order = sorted(fair, key=lambda other: specs[other].name != BASELINE)
    return order or [None]


def _rank(peer: str, engine: str) -> int:
    """How fair a peer's precision is to the engine's; 0 is best."""
    if engine in ("int8", "mixed"):
        return ("int8", "bf16", "fp32").index(peer) if peer in ("int8", "bf16", "fp32") else 3
    # An escalating engine gives float32's answers.
    wanted = "fp32" if "+" in engine else engine
    return 0 if peer == wanted else 1 if peer == "fp32" else 2
