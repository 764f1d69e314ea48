"""The engine's tiers beside the peers that matter: a line for each workload and tier."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from amlr.benchmarks.figures import number, ratio_text
from amlr.benchmarks.rows import ENGINE_PREFIX

_BASELINES = ("research", "research-mkl", "openvino")
_ORDER = ("cold", "hit", "text-only", "block", "block-text-only")
SPEED_HEAD = ("workload", "tier", "precision", "ms a post", "x research", "x MKL",
              "x OpenVINO (in)", "end to end: ms", "x research", "x OpenVINO (in)")  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Line:
    """One tier on one workload, at the largest batch measured.

    Attributes:
        ms: Milliseconds a post.
        batch: Posts a call.
        ratios: By baseline how many times as fast, and the baseline's precision.
    """

    ms: float
    batch: int
    ratios: dict[str, tuple[float | None, str]]


def speed_lines(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Tensors to logits, and beside it from text and picture file to entities, same run.

    Of several batch sizes the largest counts: what a busy service forms.
    """
    found = collect_lines(rows)
    lines = []
    keys = sorted(
        {(w.removeprefix("end-to-end-"), b, p) for w, b, p in found},
        key=lambda key: (_ORDER.index(key[0]), _rank(key[2]), key[1]),
    )
    for workload, backend, precision in keys:
        own = found.get((workload, backend, precision))
        whole = found.get((f"end-to-end-{workload}", backend, precision))
        lines.append(
            [
                *(workload, backend.removeprefix(ENGINE_PREFIX), precision, _ms(own)),
                *(_ratio(own, name) for name in _BASELINES),
                *(_ms(whole), _ratio(whole, "research"), _ratio(whole, "openvino")),
            ]
        )
    return lines


def collect_lines(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], Line]:
    """The engine's rows by workload, backend and precision; growth curves are left out."""
    found: dict[tuple[str, str, str], Line] = {}
    for row in rows:
        workload, backend = str(row["workload"]), str(row["backend"])
        plain = workload.removeprefix("end-to-end-")
        if not backend.startswith(ENGINE_PREFIX) or plain not in _ORDER or not row["p50_ms"]:
            continue
        key = (workload, backend, str(row["precision"]))
        line = found.get(key)
        if line is None or row["batch"] > line.batch:
            line = Line(ms=row["p50_ms"] / row["batch"], batch=row["batch"], ratios={})
            found[key] = line
        if row["batch"] == line.batch and row["baseline"] is not None:
            precision = row.get("baseline_precision") or "fp32"
            line.ratios[row["baseline"]] = (row["ratio"], precision)
    return found


def _rank(precision: str) -> int:
    order = ("fp32", "bf16", "int8", "mixed")
    return order.index(precision) if precision in order else len(order)


def _ms(line: Line | None) -> str:
    return "–" if line is None else number(line.ms)


def _ratio(line: Line | None, name: str) -> str:
    if line is None or name not in line.ratios:
        return "–"
    ratio, precision = line.ratios[name]
    return f"{ratio_text(ratio)} ({precision})" if name == "openvino" else ratio_text(ratio)
