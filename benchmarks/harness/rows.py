"""Rows of the report: one per system and baseline, the ratio from the same interleaved run."""

from collections.abc import Mapping, Sequence

from amlr.benchmarks.harness.jobs import Clock, Samples
from amlr.benchmarks.harness.stats import percentile
from amlr.benchmarks.harness.workloads import Workload
from amlr.benchmarks.report.records import Row
from amlr.benchmarks.systems.base import PeerSpec
from amlr.benchmarks.systems.registry import BASELINE


def make_rows(
    workload: Workload,
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
                    workload=workload.name,
                    backend=spec.name,
                    precision=spec.precision,
                    threads=threads,
                    batch=workload.batch,
                    p50_ms=_rounded(median, 4),
                    p95_ms=_rounded(percentile(values, 95), 4),
                    p99_ms=_rounded(percentile(values, 99), 4),
                    posts_per_s=_rounded(1000 * workload.batch / median, 2) if median > 0 else None,
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
    by_name: dict[str, str] = {}
    for other in measured:
        spec = specs[other]
        if spec.is_engine:
            continue
        # Where a peer was measured in several precisions, the one that is fair wins.
        known = by_name.get(spec.name)
        if known is None or _rank(spec.precision, precision) < _rank(
            specs[known].precision, precision
        ):
            by_name[spec.name] = other
    order = sorted(by_name.values(), key=lambda other: specs[other].name != BASELINE)
    return order or [None]


def _rank(peer: str, engine: str) -> int:
    """How fair a peer's precision is to the engine's; 0 is best."""
    if engine in ("int8", "mixed"):
        return ("int8", "bf16", "fp32").index(peer) if peer in ("int8", "bf16", "fp32") else 3
    # An escalating engine gives float32's answers.
    wanted = "fp32" if "+" in engine else engine
    return 0 if peer == wanted else 1 if peer == "fp32" else 2
