"""Measured rows: one per peer and baseline, the ratio from the same interleaved run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amlr.benchmarks.measure import Clock, Percentiles, Samples, percentiles
from amlr.benchmarks.peers.base import PeerSpec
from amlr.benchmarks.peers.registry import BASELINE
from amlr.benchmarks.workloads import Workload

ENGINE_PREFIX = "amlr-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of `bench.json`; times are of one call of `batch` posts."""

    workload: str
    backend: str
    precision: str
    threads: int
    batch: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    posts_per_s: float | None
    baseline: str | None
    ratio: float | None
    baseline_precision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the schema's order."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        digits = {"p50_ms": 4, "p95_ms": 4, "p99_ms": 4, "posts_per_s": 2, "ratio": 3}
        for name, places in digits.items():
            if values[name] is not None:
                values[name] = round(values[name], places)
        return values

    @property
    def is_engine(self) -> bool:
        """Whether the row is the engine's own."""
        return self.backend.startswith(ENGINE_PREFIX)


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
    found = {label: percentiles(s, clock) for label, s in samples.items() if s.wall_ns}
    rows = []
    for label, own in found.items():
        spec = specs[label]
        for baseline in _baselines(label, found, specs):
            reference = found.get(baseline) if baseline else None
            rows.append(_row(workload, spec, own, threads, specs, baseline, reference))
    return rows


def _baselines(
    label: str, found: Mapping[str, Percentiles], specs: Mapping[str, PeerSpec]
) -> Sequence[str | None]:
    research = next((other for other in found if specs[other].name == BASELINE), None)
    if not specs[label].name.startswith(ENGINE_PREFIX):
        return [research]
    precision = specs[label].precision
    by_name: dict[str, str] = {}
    for other in found:
        spec = specs[other]
        if spec.name.startswith(ENGINE_PREFIX):
            continue
        # Where a peer was measured in several precisions, the one that is fair wins.
        known = by_name.get(spec.name)
        if known is None or _rank(spec.precision, precision) < _rank(
            specs[known].precision, precision
        ):
            by_name[spec.name] = other
    order = sorted(by_name.values(), key=lambda other: specs[other].name != BASELINE)
    return order or [None]


def _rank(peer: str, own: str) -> int:
    """How fair a peer's precision is to the engine's; 0 is best."""
    if own in ("int8", "mixed"):
        return ("int8", "bf16", "fp32").index(peer) if peer in ("int8", "bf16", "fp32") else 3
    # An escalating engine gives float32's answers.
    wanted = "fp32" if "+" in own else own
    return 0 if peer == wanted else 1 if peer == "fp32" else 2


def _row(
    workload: Workload,
    spec: PeerSpec,
    own: Percentiles,
    threads: int,
    specs: Mapping[str, PeerSpec],
    baseline: str | None,
    reference: Percentiles | None,
) -> Row:
    return Row(
        workload=workload.name,
        backend=spec.name,
        precision=spec.precision,
        threads=threads,
        batch=workload.batch,
        p50_ms=own.p50_ms,
        p95_ms=own.p95_ms,
        p99_ms=own.p99_ms,
        posts_per_s=1000 * workload.batch / own.p50_ms if own.p50_ms > 0 else None,
        baseline=specs[baseline].name if baseline else None,
        baseline_precision=specs[baseline].precision if baseline else None,
        ratio=reference.p50_ms / own.p50_ms if reference and own.p50_ms > 0 else None,
    )
