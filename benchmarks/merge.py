"""One report out of several runs of a bundle on the same machine, each of other workloads."""

from collections.abc import Sequence
from typing import Any

from amlr.benchmarks.parity import decisive
from amlr.errors import InputError

_SAME = (("engine", "manifest_sha256"), ("machine", "cpu"), ("settings", "threads"),
         ("settings", "clock"))  # fmt: skip


def merge_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join reports; rows of one workload always stay from one run, the last that has it.

    Ratios are therefore still of one interleaved run.

    Raises:
        InputError: They are of different bundles, machines, threads or clocks.
    """
    first = reports[0]
    for other in reports[1:]:
        for part, name in _SAME:
            if first[part].get(name) != other[part].get(name):
                raise InputError(
                    f"reports differ in {part} {name}: {first[part].get(name)} and "
                    f"{other[part].get(name)}; merge runs of one bundle on one machine"
                )
    tiers = _tiers(reports)
    largest = max(reports, key=lambda report: report["settings"].get("posts", 0))
    return {
        **first,
        "settings": {**largest["settings"], "runs": len(reports)},
        "engine": {**first["engine"], **_engine(reports)},
        "parity": {**decisive(tiers), "tiers": tiers},
        "rows": _rows(reports),
        "peers": _peers(reports),
        "roofline": _known(reports, "roofline"),
        "calibration": _known(reports, "calibration"),
        "notes": list(dict.fromkeys(note for report in reports for note in report["notes"])),
    }


def _known(reports: Sequence[dict[str, Any]], name: str) -> Any:
    return next((report[name] for report in reports if report.get(name)), None)


def _engine(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    engines = [report["engine"] for report in reports]
    return {
        "tiers": _unique([tier for one in engines for tier in one.get("tiers", ())]),
        "passed_over": _unique([note for one in engines for note in one.get("passed_over", ())]),
        "auto": _known(engines, "auto"),
    }


def _unique(items: Sequence[Any]) -> list[Any]:
    return [item for number, item in enumerate(items) if item not in items[:number]]


def _tiers(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tier from the run that proved it on the most posts."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for report in reports:
        for tier in report["parity"].get("tiers") or [report["parity"]]:
            key = (tier.get("backend"), tier.get("precision"))
            if key not in best or tier["posts"] > best[key]["posts"]:
                best[key] = tier
    return list(best.values())


def _rows(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    owner = {
        (row["workload"], row["batch"]): number
        for number, report in enumerate(reports)
        for row in report["rows"]
    }
    return [
        row
        for number, report in enumerate(reports)
        for row in report["rows"]
        if owner[row["workload"], row["batch"]] == number
    ]


def _peers(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for report in reports:
        for peer in report["peers"]:
            key = (peer["backend"], peer["precision"])
            known = found.get(key)
            if known is None:
                found[key] = {**peer, "errors": dict(peer.get("errors", {}))}
            elif known["status"] != "measured" and peer["status"] == "measured":
                # The reason stays: it says why some workloads lack this peer.
                errors = known["errors"] | peer.get("errors", {})
                found[key] = {**peer, "errors": errors, "reason": known["reason"]}
            else:
                known["reason"] = known["reason"] or peer["reason"]
                known["errors"] |= peer.get("errors", {})
                for name in ("max_abs_error", "peak_memory_mb", "waiting"):
                    values = [v for v in (known.get(name), peer.get(name)) if v is not None]
                    known[name] = max(values, default=None)
    return list(found.values())
