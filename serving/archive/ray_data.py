"""The same chunks on Ray Data: stateful actors that write their parts themselves."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from amlr.errors import AmlrError
from amlr.extras import require_extra
from amlr.serving.archive.plan import Chunk
from amlr.serving.archive.tier import choose_tier, settle_tier
from amlr.serving.archive.worker import ChunkWorker, Work

_STORE_BYTES = 100_000_000


class ChunkActor:
    """One engine in one actor; a batch is one chunk."""

    def __init__(self, work: Work) -> None:
        """Load the engine; every actor that Ray starts anew does the same."""
        self._worker = ChunkWorker(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run chunks; a second run of one replaces its part by the same part."""
        chunks = [Chunk.from_dict(json.loads(text)) for text in batch["chunk"]]
        return {"report": [json.dumps(self._worker.run(chunk)) for chunk in chunks]}


def run_ray(work: Work, chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    """Reports of the chunks as they are finished.

    Args:
        work: For every actor; addresses must be valid on every node. A local cluster lives as long
            as this call.
        chunks: What is left to do.

    Raises:
        InputError: Ray is not installed.
        AmlrError: An actor gives up on a chunk.
    """
    require_extra("--ray", "ray", "ray", "ray.data")
    import ray
    import ray.data

    job = work.job
    count = min(job.workers, len(chunks))
    if job.ray == "local":
        ray.init(
            address="local",
            num_cpus=count + 1,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        ray.init(address=job.ray, log_to_driver=False, logging_level="ERROR")
    try:
        # This command draws its own line; what goes wrong is raised, not only logged.
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # On a node of the cluster: this machine's processor may be another.
        choose = ray.remote(num_cpus=1, max_retries=0)(choose_tier)
        job = settle_tier(job, lambda asked: ray.get(choose.remote(asked)))
        items = [{"chunk": json.dumps(asdict(chunk))} for chunk in chunks]
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            ChunkActor,
            fn_constructor_args=(replace(work, job=job),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield json.loads(row["report"])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        last = str(cause).strip().splitlines()[-1]
        raise AmlrError(f"Ray could not finish: {last}; repair it, then --resume") from error
    finally:
        ray.shutdown()
