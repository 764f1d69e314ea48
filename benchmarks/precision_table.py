"""What each tier of the engine changes, what it takes to run, and what `auto` serves."""

from collections.abc import Sequence
from typing import Any

from amlr.benchmarks.figures import number
from amlr.benchmarks.rows import ENGINE_PREFIX

PRECISION_HEAD = ("tier", "precision", "changed entities", "not calibrated on", "at most",
                  "F1 eager", "F1", "answered by", "memory MB", "load s")  # fmt: skip


def precision_lines(report: dict[str, Any]) -> list[list[str]]:
    """What each tier changes, on which posts, and what it takes to run."""
    parity = report["parity"]
    peers = {(p["backend"], p["precision"]): p for p in report.get("peers", ())}
    lines = []
    for tier in parity.get("tiers") or [parity]:
        backend, precision = str(tier.get("backend", "")), str(tier.get("precision", ""))
        peer = peers.get((backend, precision), {})
        held, f1 = tier.get("held") or {}, tier.get("f1") or {}
        lines.append(
            [
                backend.removeprefix(ENGINE_PREFIX),
                precision,
                f"{tier['changed_entities']} of {tier['entities']:,}",
                f"{held['changed_entities']} of {held['entities']:,}, {held['posts']:,} posts"
                if held
                else "–",
                _share(held.get("change_bound")),
                _f1(f1.get("eager")),
                _f1(f1.get("engine")),
                _stages(held.get("stages", {})),
                number(peer.get("peak_memory_mb")),
                number(peer.get("load_cpu_s")),
            ]
        )
    return lines


def table_lines(report: dict[str, Any]) -> list[list[str]]:
    """`precision_lines`, and the eager model's where it was measured."""
    eager = eager_line(report.get("peers", ()))
    return precision_lines(report) + ([eager] if eager else [])


def eager_line(peers: Sequence[dict[str, Any]]) -> list[str] | None:
    """Memory and loading of the eager model, for comparison."""
    peer = next((p for p in peers if p["backend"] == "research"), None)
    if peer is None or peer["peak_memory_mb"] is None:
        return None
    return ["eager PyTorch", "fp32", *["–"] * 6, number(peer["peak_memory_mb"]),
            number(peer["load_cpu_s"])]  # fmt: skip


def auto_lines(report: dict[str, Any]) -> list[str]:
    """What `auto` took on this host, and why."""
    auto = report.get("engine", {}).get("auto")
    if not auto:
        return []
    # The first part of a reason says why; what follows says how to change it.
    reasons = [reason.split(";")[0] for reason in auto["reasons"]]
    lines = [f"precision=auto serves {auto['provider']} {auto['precision']}:", *reasons]
    lines.extend(
        f"  on record for {record['variant']}: {record['changed_entities']} of "
        f"{record['entities']:,} entities changed over {record['posts']:,} posts"
        for record in auto["variants"]
        if record["entities"]
    )
    return lines


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g} % of posts"


def _f1(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _stages(stages: dict[str, int]) -> str:
    total = sum(stages.values())
    if len(stages) < 2 or not total:
        return "–"
    ordered = sorted(stages.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in ordered)
