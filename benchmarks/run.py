"""One benchmark run: parity, then speed, then the report as plain values."""

import datetime
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from amlr import __version__
from amlr.benchmarks.calibration import calibrate
from amlr.benchmarks.data import BenchData, BenchPost, relabelled
from amlr.benchmarks.harness.machine import describe_machine
from amlr.benchmarks.harness.session import RunOptions, Session
from amlr.benchmarks.harness.workloads import BATCH, Pool, make_pool, plan
from amlr.benchmarks.host import measure_host
from amlr.benchmarks.parity import Reference, TierAnswers, judge
from amlr.benchmarks.report.merge import decisive
from amlr.benchmarks.report.records import (
    EngineRecord,
    MachineRecord,
    Report,
    ResourcesRecord,
    Row,
    SettingsRecord,
    TierParity,
)
from amlr.benchmarks.report.tables import verdict_line
from amlr.benchmarks.systems.base import ModelInput, Picture
from amlr.benchmarks.systems.tiers import Tier, Tiers, explain_auto, open_tiers
from amlr.errors import BackendUnavailableError, InputError
from amlr.runtime.batching import Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine

_log = logging.getLogger(__name__)
BUSY = 1.15
"""Wall time over processor time of one thread from which a run counts as disturbed."""


def run_benchmark(options: RunOptions, bundle: Bundle, data: BenchData) -> Report:
    """Compare with the eager model, then measure.

    Returns:
        The report, ready for `write_report`.

    Raises:
        InputError: No tier that was asked for can run here.
    """
    posts = relabelled(data.posts, bundle.manifest.labels)
    report = _measured(options, bundle, data, posts)
    if options.host:
        _measure_host(report, options, posts)
    return report


def _measured(
    options: RunOptions, bundle: Bundle, data: BenchData, posts: Sequence[BenchPost]
) -> Report:
    machine = describe_machine()
    with Session(options) as session, ExitStack() as stack:
        # Peers load in their own processes while this one imports the same libraries.
        import torch

        from amlr.export.eager import EagerProvider, load_reference

        torch.set_num_threads(options.threads)
        tiers = stack.enter_context(closing(_load_tiers(options)))
        if options.groups:
            session.add_engines([tier.spec for tier in tiers.tiers])
        provider = EagerProvider(load_reference(bundle))
        records = compare_tiers(Engine(bundle, provider), tiers.tiers, posts)
        report = _header(options, bundle, data, machine, tiers, records)
        if options.groups:
            _log.info("loading peers")
            session.wait()
            pool = make_pool(posts, bundle, BATCH if options.deadline.is_set else 2 * BATCH)
            report.rows = _measure(session, options, pool, bundle, provider, report.notes)
            report.peers = session.records
            report.notes += _notes(report, pool)
        if options.calibration:
            report.calibration = calibrate(tiers.tiers[0].engine, posts)
    return report


def _load_tiers(options: RunOptions) -> Tiers:
    tiers = open_tiers(options.engine, options.providers, options.precisions, options.threads)
    if not tiers.tiers:
        raise InputError(f"no tier of {options.engine} can run here: {'; '.join(tiers.notes)}")
    if tiers.auto is None and not options.deadline.is_set:
        tiers.auto = explain_auto(options.engine, options.threads)
    return tiers


def _measure_host(report: Report, options: RunOptions, posts: Sequence[BenchPost]) -> None:
    if options.deadline.is_over:
        report.notes.append("time was up before: host")
        return
    _log.info("measuring the host's own cost")
    try:
        report.host = measure_host(options.engine, posts, quick=options.deadline.is_set)
    except BackendUnavailableError as error:
        report.notes.append(str(error))


def compare_tiers(
    eager: Engine, tiers: Sequence[Tier], posts: Sequence[BenchPost]
) -> list[TierParity]:
    """Compare every tier with the eager model."""
    _log.info(f"parity of {len(posts)} posts against eager PyTorch")
    reference = Reference.of(eager, posts)
    records = []
    for tier in tiers:
        record = judge(
            reference,
            TierAnswers.of(tier.engine, posts),
            backend=tier.spec.name,
            precision=tier.spec.precision,
            tolerance=tier.tolerance,
            promised=tier.promised,
        )
        _log.info(f"  {record.backend} {record.precision}: {verdict_line(record)}")
        records.append(record)
    return records


def _header(
    options: RunOptions,
    bundle: Bundle,
    data: BenchData,
    machine: MachineRecord,
    tiers: Tiers,
    records: Sequence[TierParity],
) -> Report:
    manifest = bundle.manifest
    return Report(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        amlr=__version__,
        engine=EngineRecord(
            name=manifest.name,
            manifest_sha256=bundle.manifest_sha256,
            auto=tiers.auto,
            passed_over=tiers.notes,
        ),
        settings=SettingsRecord(
            threads=options.threads,
            clock=options.clock,
            quick=options.quick,
            data=data.source,
            posts=len(data.posts),
            pictures=data.pictures,
            missing_pictures=data.missing_pictures,
        ),
        machine=machine,
        parity=decisive(records),
        resources=_sizes(bundle),
    )


def _sizes(bundle: Bundle) -> ResourcesRecord:
    files = bundle.manifest.files
    sizes = {
        name: sum(files[file].bytes for file in bundle.files_of(variant.graphs.values()))
        for name, variant in bundle.manifest.variants.items()
    }
    return ResourcesRecord(
        bundle_mb=round(sum(entry.bytes for entry in files.values()) / 1e6, 2),
        variants_mb={name: round(size / 1e6, 2) for name, size in sizes.items()},
    )


def _measure(
    session: Session,
    options: RunOptions,
    pool: Pool,
    bundle: Bundle,
    provider: Any,
    notes: list[str],
) -> list[Row]:
    from amlr.benchmarks.systems.eager import EagerPeer

    eager = EagerPeer(provider.model, bundle.manifest, exact=True)
    known: dict[tuple[tuple[int, ...], Picture], list[Scores]] = {}

    def reference(inputs: Sequence[ModelInput], picture: Picture) -> list[Scores]:
        # Cached regions come from the same pixels; workloads share their posts.
        chosen: Picture = "cold" if picture == "hit" else picture
        key = (tuple(id(item) for item in inputs), chosen)
        if key not in known:
            known[key] = eager.scores(eager.prepare(inputs, chosen)(), inputs)
        return known[key]

    session.first_post(pool)
    rows: list[Row] = []
    jobs = plan(pool, options.groups, quick=options.quick)
    for number, job in enumerate(jobs):
        # The first one is measured in any case: without it there is nothing to show.
        if number and options.deadline.is_over:
            late = ", ".join(dict.fromkeys(later.name for later in jobs[number:]))
            notes.append(f"time was up before: {late}")
            break
        share = job.weight / sum(later.weight for later in jobs[number:])
        rows += session.run(job, reference, share)
    session.note_memory()
    return rows


def _notes(report: Report, pool: Pool) -> list[str]:
    notes = []
    if pool.generated_posts:
        notes.append(f"{pool.generated_posts} of the timed posts are generated: too few in data")
    if pool.generated_pictures:
        notes.append(f"{pool.generated_pictures} of the timed posts got a generated picture")
    waiting = [peer.waiting for peer in report.peers if peer.waiting]
    if report.settings.threads == 1 and waiting and max(waiting) > BUSY:
        notes.append(
            f"other programs used this machine: calls took up to {max(waiting):.2f}x their "
            "processor time; repeat on an idle machine, or use --clock cpu"
        )
    return notes
