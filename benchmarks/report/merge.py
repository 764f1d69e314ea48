"""One report out of several runs of a bundle on the same machine, each of other workloads."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import TypeVar

from amlr.benchmarks.report.records import ParityRecord, PeerRecord, Report, Row, TierParity
from amlr.errors import InputError

T = TypeVar("T")
_SAME = ("engine.manifest_sha256", "machine.cpu", "settings.threads", "settings.clock")


def decisive(tiers: Sequence[TierParity]) -> ParityRecord:
    """The record that a run is judged by: of tiers that promise float32's entities one that fails.

    A tier that was asked for by name and is known to change some decides only where nothing else
    was asked for.
    """
    judged = [tier for tier in tiers if tier.promised] or list(tiers)
    chosen = next((tier for tier in judged if tier.verdict == "fail"), judged[0])
    values = {item.name: getattr(chosen, item.name) for item in fields(TierParity)}
    return ParityRecord(**values, tiers=list(tiers))


def merge_reports(reports: Sequence[Report]) -> Report:
    """Join reports; rows of one workload always stay from one run, the last that has it.

    Ratios are therefore still of one interleaved run.

    Raises:
        InputError: They are of different bundles, machines, threads or clocks.
    """
    first = reports[0]
    for other in reports[1:]:
        for name in _SAME:
            one, two = map(attrgetter(name), (first, other))
            if one != two:
                raise InputError(
                    f"reports differ in {name}: {one} and {two}; merge runs of one bundle on one "
                    "machine"
                )
    largest = max(reports, key=lambda report: report.settings.posts)
    engines = [report.engine for report in reports]
    return replace(
        first,
        settings=replace(largest.settings, runs=len(reports)),
        engine=replace(
            first.engine,
            passed_over=_unique(note for engine in engines for note in engine.passed_over),
            auto=_known(engine.auto for engine in engines),
        ),
        parity=decisive(_tiers(reports)),
        rows=_rows(reports),
        peers=_peers(reports),
        calibration=_known(report.calibration for report in reports),
        host=next((report.host for report in reversed(reports) if report.host), []),
        notes=_unique(note for report in reports for note in report.notes),
    )


def _known(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _tiers(reports: Sequence[Report]) -> list[TierParity]:
    """Each tier from the run that compared it on the most posts."""
    best: dict[tuple[str, str], TierParity] = {}
    for report in reports:
        for tier in report.parity.all_tiers:
            key = (tier.backend, tier.precision)
            if key not in best or tier.posts > best[key].posts:
                best[key] = tier
    return list(best.values())


def _rows(reports: Sequence[Report]) -> list[Row]:
    owner = {
        (row.workload, row.batch): number
        for number, report in enumerate(reports)
        for row in report.rows
    }
    return [
        row
        for number, report in enumerate(reports)
        for row in report.rows
        if owner[row.workload, row.batch] == number
    ]


def _peers(reports: Sequence[Report]) -> list[PeerRecord]:
    merged: dict[tuple[str, str], PeerRecord] = {}
    for peer in (peer for report in reports for peer in report.peers):
        key = (peer.backend, peer.precision)
        known = merged.get(key)
        if known is None:
            merged[key] = copy.deepcopy(peer)
        elif known.status != "measured" and peer.status == "measured":
            # The reason stays: it says why some workloads lack this peer.
            merged[key] = replace(peer, errors=known.errors | peer.errors, reason=known.reason)
        else:
            known.reason = known.reason or peer.reason
            known.errors |= peer.errors
            for name in ("max_abs_error", "peak_memory_mb", "waiting"):
                values = [getattr(known, name), getattr(peer, name)]
                setattr(known, name, max((v for v in values if v is not None), default=None))
    return list(merged.values())
