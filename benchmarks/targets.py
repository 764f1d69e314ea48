"""Speed that was aimed at, and whether a run reached it.

Targets hold for whole batches, tensors to logits, on one thread, and for the two presets; a bundle
of another shape has none. Of several providers the faster one counts, on all its baselines.
"""

from collections.abc import Iterator
from typing import Any

from amlr.benchmarks.figures import number
from amlr.benchmarks.rows import ENGINE_PREFIX
from amlr.benchmarks.tier_table import Line, collect_lines
from amlr.benchmarks.workloads import BATCH

ERROR = "max_abs_error"
Goals = dict[tuple[str, str], dict[str, float]]
_PRESETS = {(384, 49): "small", (768, 197): "paper"}
"""Text width and regions of a picture -> name of the preset."""
_BLOCK: Goals = {
    ("block", "fp32"): {"research": 15, "openvino": 5, ERROR: 1e-5},
    ("block-text-only", "fp32"): {"research": 60, ERROR: 1e-5},
}
_GOALS: dict[str, Goals] = {
    "small": {
        ("cold", "fp32"): {"research": 6.5, "research-mkl": 5},
        ("cold", "bf16"): {"research": 12},
        ("cold", "int8"): {"research": 16},
        ("hit", "fp32"): {"research": 14},
        ("hit", "bf16"): {"research": 22},
        ("hit", "int8"): {"research": 29},
        **_BLOCK,
    },
    "paper": {
        ("cold", "fp32"): {"research": 3, "research-mkl": 1.5, "openvino": 1.25},
        ("cold", "bf16"): {"research": 5.5, "research-mkl": 2.8, "openvino": 1.3},
        ("cold", "int8"): {"research": 9, "research-mkl": 4.5, "openvino": 1.3},
        ("hit", "fp32"): {"research": 14, "research-mkl": 7, "openvino": 1.9},
        ("hit", "bf16"): {"research": 25},
        ("hit", "int8"): {"research": 38},
        **_BLOCK,
    },
}
TARGET_HEAD = ("workload", "precision", "system", "measure", "target", "found", "")
_MEASURES = {
    "research": "x research", "research-mkl": "x MKL", "openvino": "x OpenVINO",
    ERROR: "largest difference",
}  # fmt: skip


def judge_targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target of what a run measured.

    Returns:
        One record a target. `found` and `met` are None where its baseline was not measured in the
        same run, and, for OpenVINO, in the same precision.
    """
    engine = report["engine"]
    preset = _PRESETS.get((engine.get("text_width", 0), engine.get("regions", 0)))
    if preset is None or report["settings"]["threads"] != 1:
        return []
    lines = {k: line for k, line in collect_lines(report["rows"]).items() if line.batch == BATCH}
    records = []
    for (workload, precision), goals in _GOALS[preset].items():
        own = {k: line for k, line in lines.items() if (k[0], k[2]) == (workload, precision)}
        if not own:
            continue
        backend = min(own, key=lambda key: own[key].ms)[1]
        line = own[workload, backend, precision]
        for measure, target in goals.items():
            found = _found(report, workload, backend, precision, line, measure)
            records.append(
                {
                    "workload": workload,
                    "precision": precision,
                    "backend": backend,
                    "measure": measure,
                    "target": target,
                    "found": found,
                    "met": None if found is None else _is_met(measure, found, target),
                }
            )
    return records


def _found(
    report: dict[str, Any],
    workload: str,
    backend: str,
    precision: str,
    line: Line,
    measure: str,
) -> float | None:
    if measure == ERROR:
        for peer in report["peers"]:
            if (peer["backend"], peer["precision"]) == (backend, precision):
                error: float | None = peer.get("errors", {}).get(workload)
                return error
        return None
    ratio, other = line.ratios.get(measure, (None, ""))
    return ratio if measure != "openvino" or other == precision else None


def _is_met(measure: str, found: float, target: float) -> bool:
    return found <= target if measure == ERROR else found >= target


def target_lines(report: dict[str, Any]) -> Iterator[list[str]]:
    """Records of the report for people."""
    words = {True: "met", False: "missed", None: "not measured"}
    for record in report.get("targets", ()):
        is_error = record["measure"] == ERROR
        show = _error_text if is_error else _exact_ratio
        yield [
            record["workload"],
            record["precision"],
            record["backend"].removeprefix(ENGINE_PREFIX),
            _MEASURES[record["measure"]],
            f"{'at most' if is_error else 'at least'} {show(record['target'])}",
            show(record["found"]),
            words[record["met"]],
        ]


def _error_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _exact_ratio(value: float | None) -> str:
    # One digit more than elsewhere: 1.24 misses 1.25, and must not look like it.
    return "–" if value is None else f"{number(value)}x"
