"""A whole run: plan, or resume; hand out what is left; add up the reports."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from amlr.cli_support import progress
from amlr.errors import InputError
from amlr.extras import require_extra
from amlr.runtime.bundle import read_manifest
from amlr.serving.archive.local import run_local
from amlr.serving.archive.locations import Folder
from amlr.serving.archive.plan import Chunk, Job, Plan, plan_chunks, scan_pictures
from amlr.serving.archive.ray_data import run_ray
from amlr.serving.archive.sources import find_sources, scan
from amlr.serving.archive.worker import Work, part_name, report_name
from amlr.whole import stop_signals_raise

# In chunks: a picture of more rows than that is given to several workers.
_LONGEST_RUN = 10
_PLAN, _SUMMARY = "_run/plan.json", "_run/summary.json"
# Folders of work in progress, removed when it is over.
_SCRATCH = ("_run/aside", "_run/tries")


def run_job(job: Job) -> dict[str, Any]:
    """Do what is left of a run.

    Returns:
        The summary, which is also written to `_run/summary.json`.

    Raises:
        InputError: The input, the options or the output folder cannot be used.
        AmlrError: The engine cannot be loaded, or workers give up.
    """
    require_extra("amlr-tag --input", "archive", "fsspec", "pyarrow")
    begun = time.monotonic()
    folder = Folder(job.output)
    _, bundle = read_manifest(Path(job.bundle), job.manifest_sha256)
    plan = _plan(job, folder, bundle)
    done = {chunk.number: _report(folder, chunk, job.output_format) for chunk in plan.chunks}
    left = [chunk for chunk in plan.chunks if done[chunk.number] is None]
    reports = [report for report in done.values() if report]
    fresh: list[dict[str, Any]] = []
    started = time.monotonic()
    total = sum(chunk.rows for chunk in left)
    if left:
        try:
            with stop_signals_raise():
                parts = _start(job, plan, left)
                before = plan.rows - total
                fresh.extend(
                    progress(parts, "tagged", plan.rows, size=itemgetter("rows"), before=before)
                )
        finally:
            # Workers are gone, whatever ended them; what they had begun is of no use.
            folder.remove("_run/aside")
    seconds = time.monotonic() - started
    summary = _summary(plan, reports + fresh) | {
        "resumed_rows": sum(report["rows"] for report in reports),
        "seconds": round(seconds, 2),
        "planning_seconds": round(started - begun, 2),
        "posts_per_second": round(total / seconds, 1) if total else 0.0,
        "workers": job.workers,
        "ray": job.ray is not None,
    }
    folder.write_json(_SUMMARY, summary)
    for name in _SCRATCH:
        folder.remove(name)
    return summary


def _plan(job: Job, folder: Folder, bundle: str) -> Plan:
    found = folder.read_json(_PLAN)
    if not job.resume and folder.names():
        raise InputError(
            f"the output folder {job.output} is not empty; add --resume, or choose another"
        )
    if job.chunk_rows < 1:
        raise InputError(f"--chunk-rows must be at least 1, got {job.chunk_rows}")
    sources = find_sources(job.inputs, job.input_format, job.columns, job.output)
    if found is not None:
        plan = Plan.from_dict(found)
        plan.check_same(job.options(), bundle, sources)
        # Leftovers of workers that were killed.
        for name in _SCRATCH:
            folder.remove(name)
        return plan
    if job.group_by_picture:
        longest = job.chunk_rows * _LONGEST_RUN
        runs = (scan_pictures(source, job.columns, longest) for source in sources)
    else:
        runs = (scan(source) for source in sources)
    chunks = tuple(plan_chunks(runs, job.chunk_rows, keep_runs=job.group_by_picture))
    if not chunks:
        raise InputError("the input has no rows")
    plan = Plan(options=job.options(), bundle=bundle, sources=tuple(sources), chunks=chunks)
    folder.write_json(_PLAN, asdict(plan))
    return plan


def _report(folder: Folder, chunk: Chunk, kind: str) -> dict[str, Any] | None:
    """The report of a finished part, if part and report are both there."""
    report: dict[str, Any] | None = folder.read_json(report_name(chunk.number))
    if report is None or folder.size(part_name(chunk.number, kind)) != report["bytes"]:
        return None
    return report


def _start(job: Job, plan: Plan, chunks: list[Chunk]) -> Iterator[dict[str, Any]]:
    job = replace(job, engine=replace(job.engine, threads=1), manifest_sha256=plan.bundle)
    work = Work(job=job, sources=plan.sources, plan=plan.id)
    return run_local(work, chunks) if job.ray is None else run_ray(work, chunks)


def _summary(plan: Plan, reports: list[dict[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    names = ("rows", "entities", "failed", "warned", "image_used", "certified")
    caches = ("picture_hits", "pictures_encoded", "answer_hits")
    for report in reports:
        counts.update({name: report.get(name, 0) for name in (*names, *caches)})
        counts["retried_parts"] += report["attempts"] > 1
        tiers.update(report["tiers"])
    return {
        "plan": plan.id,
        "manifest_sha256": plan.bundle,
        "parts": len(reports),
        **counts,
        "tiers": dict(tiers),
        "peak_rss_mb_of_a_worker": max(report["peak_rss_mb"] for report in reports),
    }
