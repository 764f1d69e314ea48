"""One tier for a whole run: chosen once, written down, and taken by every worker."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from amlr.errors import AmlrError
from amlr.runtime.bundle import read_manifest
from amlr.runtime.tiers import list_low_tiers, list_tiers
from amlr.serving.archive.locations import Folder
from amlr.serving.archive.plan import Job

AUTO = "auto"
TIER = "_run/tier.json"
Tier = dict[str, str]
Choose = Callable[[Job], Tier]


def settle_tier(job: Job, choose: Choose) -> Job:
    """Replace `auto` by the tier that this run began with, or by the one that is chosen now.

    Workers that timed the tiers themselves, each beside the others, could come to different ones.

    Args:
        job: The run, with the engine of a worker.
        choose: Calls `choose_tier` where workers run.

    Returns:
        The run with the provider and the precision named.

    Raises:
        AmlrError: As `Engine.load`.
    """
    asked = job.engine
    if AUTO not in (asked.provider, asked.precision) or asked.escalates:
        return job
    folder = Folder(job.output)
    tier = folder.read_json(TIER)
    if tier is None:
        manifest, _ = read_manifest(Path(job.bundle))
        low_tiers, _ = list_low_tiers(manifest, asked)
        if len(list_tiers(manifest, asked)) + len(low_tiers) < 2:
            return job
        tier = choose(job)
        folder.write_json(TIER, tier)
    return replace(job, engine=replace(asked, **tier))


def choose_tier(job: Job) -> Tier:
    """Load the engine once as a worker would, and say what it took."""
    with job.load_engine() as loaded:
        # Two tiers may have two providers; each precision of theirs has one that is fastest.
        provider = job.engine.provider if loaded.certificates else loaded.provider
        return {"provider": provider, "precision": loaded.precision}


def choose_in_process(job: Job) -> Tier:
    """`choose_tier` in a process of its own, whose memory is given back before workers start.

    Raises:
        AmlrError: As `Engine.load`, or the process died.
    """
    # A forked child must not use an engine library that its parent has loaded.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(choose_tier, job).result()
        except BrokenProcessPool:
            raise AmlrError(
                "the process that times the tiers died; is memory short? "
                "name one with --provider and --precision"
            ) from None
